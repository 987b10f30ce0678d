"""Ways to estimate the target of a mixture: a model's, by query and mask, and the ceilings beside them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from clipsep_jax.config import SpectrogramConfig
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.mixtures import MixtureReader, Mixtures
from clipsep_jax.evaluation.retrieval import Retrieval
from clipsep_jax.metrics import CHIEF, sdr
from clipsep_jax.mixing import binary_masks, ratio_masks
from clipsep_jax.queries.base import Kind
from clipsep_jax.queries.kinds import AUDIO, IMAGE, TEXT
from clipsep_jax.queries.prompts import prompt_for
from clipsep_jax.separation.separator import Separator, masked_clips
from clipsep_jax.spectrogram import apply_masks, stft, warp

Stems = Float[np.ndarray, "B N L"]

_ORACLES = ("ideal_binary_mask", "ideal_ratio_mask", "best_mask")
_ORACLE_NOISE = "_with_best_noise"


def is_oracle(way: str) -> bool:
    """Whether a way of estimation knows the sources, which no user has."""
    return way in _ORACLES or way.endswith(_ORACLE_NOISE)


@dataclass(frozen=True)
class Ways:
    """How a model's estimates are made, and what is measured of them.

    Attributes:
        metrics: by name; the first is compared and plotted.
        prompts: templates of texts, whose embeddings are averaged; none for those of the protocol.
        each_prompt: whether each template is scored alone too.
        masks: "soft" or "binary", at 0.5.
        noise: whether a noise mask is added to a query's: "off"; "first", as the official `--pit` does; or "oracle",
            none or the one that brings the estimate nearest to the target.
    """

    metrics: tuple[str, ...] = (CHIEF,)
    prompts: tuple[str, ...] = ()
    each_prompt: bool = False
    masks: Literal["soft", "binary"] = "soft"
    noise: Literal["off", "first", "oracle"] = "off"


DEFAULT_WAYS = Ways()


def ceilings(mixtures: Mixtures, spectrogram: SpectrogramConfig) -> dict[str, Float[np.ndarray, "B 1 L"]]:
    """The target through masks made of the true sources, as training aims at: no prediction can be much better."""
    mixed = stft(jnp.asarray(mixtures.mixture), spectrogram)
    magnitudes = warp(jnp.abs(stft(jnp.asarray(mixtures.sources), spectrogram)), spectrogram)
    masks = {
        "ideal_binary_mask": binary_masks(magnitudes, warp(jnp.abs(mixed) + 1e-10, spectrogram)),
        "ideal_ratio_mask": ratio_masks(magnitudes),
    }
    length = mixtures.sources.shape[-1]
    return {
        name: np.asarray(apply_masks(mask[:, :1].astype(magnitudes.dtype), mixed, spectrogram, length))
        for name, mask in masks.items()
    }


class ModelWays:
    """The ways of one model.

    Attributes:
        separator: the model.
        kinds: names of the kinds of queries that it is scored by.
    """

    def __init__(self, separator: Separator, reader: MixtureReader, ways: Ways):
        """Check what is asked for.

        Raises:
            InputError: the model has no noise masks, or no texts to be prompted by.
        """
        self.separator, self._ways = separator, ways
        self._kinds = reader.kinds
        self.kinds = tuple(self._kinds)
        if ways.noise != "off" and not separator.config.model.num_noise_heads:
            raise InputError(f"{separator.model_dir.folder} has no noise masks; leave out --noise.")
        if ways.prompts and TEXT not in self._kinds.values():
            raise InputError(f"{separator.model_dir.folder} is not scored by texts here; leave out --prompt.")
        self._prompts = ways.prompts or reader.prompts

    def estimates(self, mixtures: Mixtures, retrieval: Retrieval) -> dict[str, Float[np.ndarray, "B A L"]]:
        """The target by each way, in A versions whose scores are averaged; `retrieval` is told of the masks.

        A wrong query is one for another source of the mixture. Of several the mean counts: unlike the best of them, it
        does not rise with their number.
        """
        found: dict[str, np.ndarray] = {}
        for name, queries in self._queries(mixtures).items():
            stems, masks = self._stems(mixtures, queries)
            if name == "best_mask":
                found[name] = _nearest(mixtures, stems)
                continue
            retrieval.add(name, mixtures, masks)
            found[name] = stems[:, :1]
            if name in self.kinds:
                wrong = "wrong_query" if name == self.kinds[0] else f"wrong_{name}_query"
                found[wrong] = stems[:, 1:]
            if self._ways.noise == "oracle":
                found[name + _ORACLE_NOISE] = self._with_best_noise(mixtures, queries, stems[:, :1])
        return found

    def queries(self, mixtures: Mixtures, kind: str) -> np.ndarray | None:
        """What the model takes as queries for all sources, [B N Q] or [B N], or None."""
        return self._queries_of(self._kinds[kind], mixtures, self._prompts)

    def _queries(self, mixtures: Mixtures) -> dict[str, np.ndarray | None]:
        found = {name: self.queries(mixtures, name) for name in self._kinds}
        text, image = found.get(TEXT.score_name), found.get(IMAGE.score_name)
        if text is not None and image is not None:
            found["text_and_image"] = (text + image) / 2
        if self._ways.each_prompt and TEXT in self._kinds.values():
            for number, prompt in enumerate(dict.fromkeys(self._prompts), 1):
                found[f"prompt_{number}"] = self._queries_of(TEXT, mixtures, (prompt,))
        return found

    def _queries_of(self, kind: Kind, mixtures: Mixtures, prompts: Sequence[str]) -> np.ndarray | None:
        if kind == IMAGE or kind.scores_best_mask:
            return mixtures.images
        if kind == AUDIO:
            return mixtures.examples
        if kind == TEXT:
            return np.mean([self._embedded(mixtures, partial(prompt_for, template=p)) for p in prompts], axis=0)
        return self._embedded(mixtures, kind.query_of_label)

    def _embedded(self, mixtures: Mixtures, query_of_label: Callable[[str], str]) -> np.ndarray:
        rows = [self.separator.embed(list(map(query_of_label, labels))) for labels in mixtures.labels]
        return np.stack([row for row in rows if row is not None])

    def _stems(self, mixtures: Mixtures, queries: np.ndarray | None) -> tuple[Stems, jax.Array]:
        """The estimates of all sources, and their masks."""
        logits = self.separator.logits_of_clips(mixtures.mixture, queries)
        masks = jax.nn.sigmoid(logits.query)
        if self._ways.noise == "first":
            assert logits.noise is not None
            masks = jnp.minimum(1, masks + jax.nn.sigmoid(logits.noise[:, :1]))
        return self._through(mixtures, masks), masks

    def _with_best_noise(self, mixtures: Mixtures, queries: np.ndarray | None, alone: np.ndarray) -> np.ndarray:
        logits = self.separator.logits_of_clips(mixtures.mixture, queries)
        assert logits.noise is not None
        masks = jnp.minimum(1, jax.nn.sigmoid(logits.query[:, :1]) + jax.nn.sigmoid(logits.noise))
        return _nearest(mixtures, np.concatenate([alone, self._through(mixtures, masks)], axis=1))

    def _through(self, mixtures: Mixtures, masks: jax.Array) -> Stems:
        if self._ways.masks == "binary":
            masks = (masks > 0.5).astype(masks.dtype)
        return np.asarray(masked_clips(masks, jnp.asarray(mixtures.mixture), self.separator.config.spectrogram))


def _nearest(mixtures: Mixtures, candidates: Stems) -> Float[np.ndarray, "B 1 L"]:
    """Of several estimates that with the highest plain SDR, which only an oracle could choose."""
    best = sdr(mixtures.sources[:, :1], candidates).argmax(axis=1)
    return candidates[np.arange(len(candidates)), best][:, None]
