"""How good a separation is.

To add a metric: its function here and its entry in `METRICS`. Every table and report shows it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clipsep_jax.structures import AnyArray


def sdr(reference: Float[AnyArray, "*b L"], estimate: Float[AnyArray, "*b L"]) -> Float[Array, " *b"]:
    """Signal-to-distortion ratio in dB: 10 log10(|s|^2 / |s - s_hat|^2).

    This is museval's SDR with one infinite window; mir_eval's (BSS Eval v3) allows a filter and differs by decibels.
    A silent reference gives -inf or nan, a perfect estimate inf: choose mixtures without them.
    """
    signal = jnp.sum(jnp.square(reference), axis=-1)
    distortion = jnp.sum(jnp.square(reference - estimate), axis=-1)
    return 10 * (jnp.log10(signal) - jnp.log10(distortion))


@dataclass(frozen=True)
class Metric:
    """A number that is higher the more an estimate is like the true sound.

    Attributes:
        title: its usual name.
        unit: of the number.
        score: from a reference and an estimate, both [*b L], to [*b].
    """

    title: str
    unit: str
    score: Callable[..., Array]


# By name: the keys of scores.json, the columns of sweep.csv and the figures' files begin with it.
METRICS = {"sdr": Metric("SDR", "dB", sdr)}
CHIEF = "sdr"  # in rows of mixtures its columns are named by the estimate only


def summarise(values: Mapping[str, Float[np.ndarray, " n"]]) -> dict[str, float | int]:
    """Mean, median and standard error of the mean of each metric's values, and their number."""
    summary: dict[str, float | int] = {}
    for name, numbers in values.items():
        error = numbers.std(ddof=1) / np.sqrt(len(numbers)) if len(numbers) > 1 else 0.0
        summary |= {
            f"{name}_mean": float(numbers.mean()),
            f"{name}_median": float(np.median(numbers)),
            f"{name}_sem": float(error),
        }
    return summary | {"num": len(numbers)}
