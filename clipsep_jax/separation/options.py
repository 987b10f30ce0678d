"""How sounds are separated."""

from dataclasses import dataclass
from typing import Literal

from clipsep_jax.separation.chunks import ChunkPlan

CHUNKS_AT_ONCE = 2  # of a recording that is there as a whole; more take more memory, and hardly less time on CPUs


@dataclass(frozen=True)
class Options:
    """How sounds are separated.

    Attributes:
        masks: "soft"; "binary", where a mask is above a half; or "wiener", where the stems share the mixture's power.
        above: what a stem gets of the bands that the model does not know, at rates above its own: what there is
            ("keep"), nothing ("mute"), or as much as it has of the highest band that the model knows ("scale").
        noise: whether each noise mask gives a stem too.
        always: whether stems sound too where a calibrated model does not find the sound.
        overlap, fade: see `ChunkPlan`.
    """

    masks: Literal["soft", "binary", "wiener"] = "soft"
    above: Literal["keep", "mute", "scale"] = "scale"
    noise: bool = False
    always: bool = False
    overlap: float = ChunkPlan.overlap
    fade: Literal["linear", "cosine"] = ChunkPlan.fade


DEFAULT_OPTIONS = Options()
