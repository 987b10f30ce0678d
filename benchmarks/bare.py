"""Lets the train step be measured where jax, flax, optax and numpy are all that is installed.

Of the package's other needs it takes only jaxtyping, for annotations, which say nothing here.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any


class _Annotation:
    def __class_getitem__(cls, _: Any) -> Any:
        return Any


class _Annotations(ModuleType):
    def __getattr__(self, name: str) -> type:
        return _Annotation


if importlib.util.find_spec("jaxtyping") is None:
    sys.modules["jaxtyping"] = _Annotations("jaxtyping")
