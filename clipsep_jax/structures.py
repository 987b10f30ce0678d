"""The values passed between modules.

Shape letters, used in every signature of the package:

    B  examples in a batch          N  sources in a mixture (and queries, one per source)
    M  noise masks                  S  targets of a loss (see `Mixture`)
    L  audio samples                T  spectrogram frames
    F  linear frequency bins (513)  K  log-frequency bins (256)
    Q  size of a query embedding    C  channels
    R  video frames of one clip around its centre
    V  queries for one source, such as its frames and its text
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int16, UInt8

AnyArray = Array | np.ndarray  # a batch is made on the host and used on the device


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What the input pipeline feeds to a step.

    Attributes:
        sources: 16-bit mono audio of every source, at the sample rate of the spectrogram's config.
        gain: factor of each source; the source is clip(sources / 32768 * gain, -1, 1).
        query: embedding of each source's query, or of several [V Q], or its label's number, or None where the system
            takes no query or encodes `frames` inside the step.
        frames: RGB pictures of each source, only with `query.source = "frames"`.
        examples: audio from elsewhere in each source's clip, only with `query.kind = "audio"`.
    """

    sources: Int16[AnyArray, "B N L"]
    gain: Float[AnyArray, "B N"]
    query: Float[AnyArray, "B N *V Q"] | Int[AnyArray, "B N"] | None = None
    frames: UInt8[AnyArray, "B N R H W 3"] | None = None
    examples: Int16[AnyArray, "B N L"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture:
    """A mixture on the log-frequency grid, with what a loss needs.

    Attributes:
        magnitude: warped magnitude of the mixture, above zero.
        targets: masks in [0, 1] that the loss compares with, one per source or for several sources together.
        weight: weight of each bin in the loss.
        target_weight: weight of each target, 1 on average over those of an example; None for equal ones.
        sounds: whether each target is in the mixture; None where all are.
    """

    magnitude: Float[Array, "B K T"]
    targets: Float[Array, "B S K T"]
    weight: Float[Array, "B K T"]
    target_weight: Float[Array, "B S"] | None = None
    sounds: Bool[Array, "B S"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskLogits:
    """Masks before the sigmoid: one per query, and the noise masks if the model has them."""

    query: Float[Array, "*B N K T"]
    noise: Float[Array, "*B M K T"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Loss:
    """A scalar to minimise, its part per example (without batch-wide terms), and named scalars to log."""

    value: Float[Array, ""]
    per_example: Float[Array, " B"]
    metrics: dict[str, Float[Array, ""]]
