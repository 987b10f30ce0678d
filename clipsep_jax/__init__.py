"""CLIPSep and CLIPSep-NIT in JAX: pull a sound out of a mixture with a sentence."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipsep_jax.separation.separator import Separator

__all__ = ["load"]


def load(path: str | Path, *, download: bool = False) -> "Separator":
    """Loads a trained model, ready to separate: a model directory, or the best model of a training workdir.

    Args:
        download: whether a query encoder that the model names, and that is not on this machine, is fetched from the
            Hugging Face Hub.

    Raises:
        InputError: there is no model, or it is damaged.
    """
    from clipsep_jax.separation.separator import Separator

    return Separator.load(path, download=download)
