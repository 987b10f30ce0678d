"""Whether a query finds its source: which source's sound its mask lets through."""

from collections import defaultdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from clipsep_jax.config import SpectrogramConfig
from clipsep_jax.evaluation.mixtures import Mixtures
from clipsep_jax.spectrogram import stft, unwarp


class Retrieval:
    """Counts, by way of estimation, how often a query's mask lets more of its own source through than of any other.

    What is let through is a share of a source's energy, so that loudness does not decide.
    """

    def __init__(self, spectrogram: SpectrogramConfig):
        self._spectrogram = spectrogram
        # By way and by (label asked for, label of the source): the shares let through.
        self._shares: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
        self._right: dict[str, list[bool]] = defaultdict(list)

    def add(self, way: str, mixtures: Mixtures, masks: Float[Array, "B N K T"]) -> None:
        """Count the masks that queries gave, one for each source of each mixture."""
        shares = np.asarray(_shares_let_through(masks, jnp.asarray(mixtures.sources), self._spectrogram))
        for number, labels in enumerate(mixtures.labels[: mixtures.num_real]):
            if not np.isfinite(shares[number]).all():  # a silent source
                continue
            for query, asked in enumerate(labels):
                own, others = shares[number, query, query], np.delete(shares[number, query], query)
                self._right[way].append(bool((own > others).all()))
                for source, heard in enumerate(labels):
                    self._shares[way][asked, heard].append(float(shares[number, query, source]))

    def summary(self) -> dict[str, Any]:
        """By way: the share of queries that found their source, its number, and the mean shares by pair of labels."""
        return {
            way: {
                "right": float(np.mean(right)),
                "num": len(right),
                "let_through": [
                    {"asked": asked, "heard": heard, "share": float(np.mean(values)), "num": len(values)}
                    for (asked, heard), values in sorted(self._shares[way].items())
                ],
            }
            for way, right in self._right.items()
        }


@partial(jax.jit, static_argnames="config")
def _shares_let_through(
    masks: Float[Array, "B N K T"], sources: Float[Array, "B S L"], config: SpectrogramConfig
) -> Float[Array, "B N S"]:
    """The share of each source's energy that each mask lets through."""
    energies = jnp.square(jnp.abs(stft(sources, config)))
    passed = jnp.einsum("bnft,bsft->bns", jnp.square(unwarp(masks, config)), energies)
    return passed / energies.sum(axis=(-2, -1))[:, None]
