"""Which mixtures are scored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clipsep_jax.config import Config
from clipsep_jax.data.index import IndexEntry
from clipsep_jax.errors import InputError


@dataclass(frozen=True)
class DrawnMixture:
    """A held-out mixture: the numbers of its clips in their split, the target first."""

    clips: tuple[int, ...]

    @property
    def target(self) -> int:
        return self.clips[0]

    @property
    def interferers(self) -> tuple[int, ...]:
        return self.clips[1:]


def num_sources_of(config: Config) -> int:
    """Sources in the mixtures that a model is scored on: as many as it was trained with, and at least two."""
    return max(2, config.data.num_sources)


def draw_mixtures(
    entries: Sequence[IndexEntry], num_mixtures: int, num_sources: int, *, seed: int
) -> list[DrawnMixture]:
    """Targets cycle through the clips in a seeded order; interferers are drawn one by one, so that all labels differ.

    Clips without a label count as different from all others.

    Raises:
        InputError: there are not enough clips of different labels.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(entries))
    labels = [entry.label for entry in entries]
    drawn: list[DrawnMixture] = []
    for turn in range(num_mixtures):
        clips = [int(order[turn % len(order)])]
        while len(clips) < num_sources:
            clips.append(int(rng.choice(_clips_of_other_labels(labels, clips, num_sources))))
        drawn.append(DrawnMixture(tuple(clips)))
    return drawn


def _clips_of_other_labels(labels: Sequence[str], clips: Sequence[int], num_sources: int) -> list[int]:
    taken = {labels[clip] for clip in clips}
    others = [i for i, label in enumerate(labels) if i not in clips and (not label or label not in taken)]
    if not others:
        only = ", ".join(map(repr, sorted(taken)))
        raise InputError(f"A mixture of {num_sources} needs clips of as many labels, but the split has only {only}.")
    return others


@dataclass(frozen=True)
class Mixtures:
    """A batch of held-out mixtures; the target comes first of the sources."""

    sources: Float[np.ndarray, "B N L"]  # divided by N, so that they add up to the mixture
    labels: list[list[str]]
    images: Float[np.ndarray, "B N Q"] | None  # embeddings of the pictures, for models that take them

    @property
    def mixture(self) -> Float[np.ndarray, "B L"]:
        return self.sources.sum(axis=1)
