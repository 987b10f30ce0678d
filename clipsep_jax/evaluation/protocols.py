"""Which mixtures are scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clipsep_jax.data.record_set import IndexEntry
from clipsep_jax.errors import InputError


@dataclass(frozen=True)
class Pair:
    """A held-out mixture: numbers of the target and the interferer in their split."""

    target: int
    interferer: int


def draw_pairs(entries: Sequence[IndexEntry], num_mixtures: int, seed: int) -> list[Pair]:
    """Targets go round the clips in a seeded order; each interferer is drawn among the clips of other labels.

    Clips without a label count as different from all others.

    Raises:
        InputError: no clip has another one of a different label.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(entries))
    pairs: list[Pair] = []
    for turn in range(num_mixtures):
        target = int(order[turn % len(order)])
        label = entries[target].label
        others = [i for i, e in enumerate(entries) if i != target and (not label or e.label != label)]
        if not others:
            raise InputError(f"A mixture needs clips of two labels, but the split has only {label!r}.")
        pairs.append(Pair(target, int(rng.choice(others))))
    return pairs


@dataclass(frozen=True)
class Mixtures:
    """A batch of held-out mixtures; the target comes first of the two sources."""

    sources: Float[np.ndarray, "B N L"]  # divided by N, so that they add up to the mixture
    labels: list[list[str]]
    images: Float[np.ndarray, "B N Q"] | None  # embeddings of the pictures, for models that take them

    @property
    def mixture(self) -> Float[np.ndarray, "B L"]:
        return self.sources.sum(axis=1)
