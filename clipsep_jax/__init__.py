"""CLIPSep and CLIPSep-NIT in JAX: pull a sound out of a mixture with a sentence."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipsep_jax.separation.separator import Separator

__all__ = ["load"]


def load(path: str | Path) -> "Separator":
    """Loads a trained model, ready to separate: a model directory, or the best model of a training workdir.

    Raises:
        InputError: there is no model, or it is damaged.
    """
    from clipsep_jax.separation.separator import Separator

    return Separator.load(path)
