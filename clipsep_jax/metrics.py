"""How good a separation is."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clipsep_jax.structures import AnyArray


def sdr(reference: Float[AnyArray, "*b L"], estimate: Float[AnyArray, "*b L"]) -> Float[Array, "*b"]:
    """Signal-to-distortion ratio in dB: 10 log10(|s|^2 / |s - s_hat|^2).

    This is museval's SDR with one infinite window; mir_eval's (BSS Eval v3) allows a filter and differs by decibels.
    A silent reference gives -inf or nan, a perfect estimate inf: choose mixtures without them.
    """
    signal = jnp.sum(jnp.square(reference), axis=-1)
    distortion = jnp.sum(jnp.square(reference - estimate), axis=-1)
    return 10 * (jnp.log10(signal) - jnp.log10(distortion))


def summarise(values: Float[np.ndarray, " n"]) -> dict[str, float | int]:
    """Mean, median and standard error of the mean of SDRs in dB, and their number."""
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return {
        "sdr_mean": float(values.mean()),
        "sdr_median": float(np.median(values)),
        "sdr_sem": float(error),
        "num": len(values),
    }
