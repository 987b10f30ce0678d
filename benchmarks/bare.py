"""Allows measuring the train step with only jax, flax, optax and numpy installed.

The step's only other dependency is jaxtyping; its annotations are replaced by empty ones.
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
