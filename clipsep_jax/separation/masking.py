"""From chunks of a sound to masks, and from masks to stems: what a stream does on the device."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, PyTree
from scipy.optimize import linear_sum_assignment

from clipsep_jax.config import SpectrogramConfig
from clipsep_jax.separation.presence import Presence
from clipsep_jax.spectrogram import log_warped_magnitude, overlap_added, stft_of_frames, unwarp
from clipsep_jax.structures import MaskLogits

MaskForm = Literal["soft", "binary", "wiener"]

_LEAST_SHARE = 1e-6
_REFERENCES_AT_ONCE = 4
_HIGH_SHARE = 2  # gains above the model's band follow the bins above this part of it


@dataclass(frozen=True)
class Recipe:
    """How the masks of N targets are made of those of A atoms: sums of some, without others.

    What is left out takes its share in power: p^2 / (p^2 + m^2 + r^2) with p the sum of the masks of a target, m that
    of those left out, each at most one, and r what both leave of one. On ESC-10 that does as much as the arithmetic of
    embeddings, which not all models have (`benchmarks.query_arithmetic`).

    Attributes:
        plus: which atoms a target sums, 1 or 0.
        minus: which atoms it leaves out, 1 or 0.
        form: "soft"; "binary", where a soft mask is above a half; or "wiener", shares in power of the targets and the
            rest, which add up to at most one.
    """

    plus: Float32[np.ndarray, "N A"]
    minus: Float32[np.ndarray, "N A"]
    form: MaskForm = "soft"


class Masking:
    """A model that was told what is asked for. Targets are made of the masks of A atoms."""

    def __init__(
        self,
        network: tuple[nnx.GraphDef, PyTree],
        queries: Any,
        config: SpectrogramConfig,
        recipe: Recipe,
        ordered: bool,
        presence: Presence | None = None,
        silences: bool = True,
    ):
        """Prepare.

        Args:
            network: of the model, split.
            queries: one for each atom that is no noise mask, as the model takes them, or None.
            config: of the model's spectrogram.
            recipe: with the noise masks after the queries' masks, if it has atoms for them.
            ordered: whether the masks of a chunk come in an order that means something.
            presence: how likely sounds are there is told by it; without it all are taken to be.
            silences: whether a target is silent where its sound is not likely to be there.
        """
        self._network, self._config, self._recipe, self._ordered = network, config, recipe, ordered
        self._queries = None if queries is None else jnp.asarray(queries)
        self._presence, self._silences = presence, silences
        if presence and queries is not None:
            self._reference_odds = self._odds_of(presence.references)

    def masks(self, chunks: Float32[np.ndarray, "B C L"]) -> Float32[np.ndarray, "B A J T"]:
        """The masks of chunks, of each of which the samples of all frames are given.

        A row below each, J = K + 1, is the probability that its sound is there, which is cross-faded too.
        """
        found, odds = _masks(*self._network, jnp.asarray(chunks), self._queries, self._config)
        num_atoms = self._recipe.plus.shape[1]
        masks = np.ones((len(found), num_atoms, found.shape[2] + 1, found.shape[3]), np.float32)
        masks[:, :, :-1] = np.asarray(found)[:, :num_atoms]
        if self._presence and self._queries is not None:
            probability = self._presence.probability(np.asarray(odds), self._reference_odds)
            masks[:, : probability.shape[1], -1] = probability[..., None]
        return masks

    def _odds_of(self, references: Float32[np.ndarray, "R K T"]) -> Float32[np.ndarray, "R A"]:
        """The log odds of the queries' shares in references, in parts of one size."""
        starts = range(0, len(references), _REFERENCES_AT_ONCE)
        parts = [references[np.arange(start, start + _REFERENCES_AT_ONCE) % len(references)] for start in starts]
        odds = [_reference_odds(*self._network, jnp.asarray(part), self._queries) for part in parts]
        return np.concatenate([np.asarray(part) for part in odds])[: len(references)]

    def order(self, before: Float32[np.ndarray, "A J T"], masks: Float32[np.ndarray, "A J T"]) -> Sequence[int]:
        """The order in which a chunk's masks go on with the chunk's before it, from frames that both cover."""
        if self._ordered:
            return range(len(masks))
        likeness = np.einsum("akt,bkt->ab", before - before.mean(axis=0), masks - masks.mean(axis=0))
        return linear_sum_assignment(likeness, maximize=True)[1].tolist()

    def through(
        self,
        masks: Float32[np.ndarray, "A J T"],
        samples: Float32[np.ndarray, "C L"],
        gates: Float32[np.ndarray, "N T"],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """What targets let through [N C L], as in `spectrogram.overlap_added`; their gains, gates and presence [N T].

        Gains are those in the highest bins; gates are zero too where a sound is not likely to be there.

        The presence of a target is that of the likeliest of the sounds that it sums.
        """
        recipe = self._recipe
        present = (recipe.plus[:, :, None] * masks[None, :, -1]).max(axis=1)
        if self._presence and self._silences:
            gates = gates * (present >= self._presence.fit.threshold).astype(np.float32)
        minus = jnp.asarray(recipe.minus) if recipe.minus.any() else None
        values = map(jnp.asarray, (masks[:, :-1], samples, gates, recipe.plus))
        sounds, gains = _through(*values, minus, recipe.form, self._config)
        return np.asarray(sounds), np.asarray(gains), gates, present


# The network comes as arguments: all models of one config share the compiled programs, which keep none of them alive.


@partial(jax.jit, static_argnames="config")
def _masks(
    graphdef: nnx.GraphDef, state: PyTree, chunks: Float[Array, "B C L"], queries: Any, config: SpectrogramConfig
) -> tuple[Float[Array, "B A K T"], Float[Array, "B N"]]:
    """The masks of queries, then those of noise; and `share_odds` of the first.

    Channels count by their power, as no phase makes it vanish.
    """
    magnitude = jnp.sqrt(jnp.mean(jnp.abs(stft_of_frames(chunks, config)) ** 2, axis=1))
    inputs = log_warped_magnitude(magnitude, config)
    logits = _logits(graphdef, state, inputs, queries)
    all_logits = [logits.query] if logits.noise is None else [logits.query, logits.noise]
    return jax.nn.sigmoid(jnp.concatenate(all_logits, axis=1)), share_odds(jax.nn.sigmoid(logits.query), inputs)


@jax.jit
def _reference_odds(graphdef: nnx.GraphDef, state: PyTree, inputs: Float[Array, "B K T"], queries: Any) -> Any:
    return share_odds(jax.nn.sigmoid(_logits(graphdef, state, inputs, queries).query), inputs)


def _logits(graphdef: nnx.GraphDef, state: PyTree, inputs: Float[Array, "B K T"], queries: Any) -> MaskLogits:
    if queries is not None:
        queries = jnp.broadcast_to(queries, (len(inputs), *queries.shape))
    return nnx.merge(graphdef, state)(inputs, queries)


def share_odds(masks: Float[Array, "B N K T"], inputs: Float[Array, "B K T"]) -> Float[Array, "B N"]:
    """The log odds of the share of a sound's energy that masks let through.

    Args:
        masks: in [0, 1].
        inputs: `log_warped_magnitude` of the sound.
    """
    power = jnp.exp(2 * (inputs - inputs.max(axis=(1, 2), keepdims=True)))[:, None]
    share = jnp.sum(masks**2 * power, axis=(2, 3)) / jnp.sum(power, axis=(2, 3))
    return jnp.log(share + _LEAST_SHARE) - jnp.log(1 - share + _LEAST_SHARE)


@partial(jax.jit, static_argnames=("form", "config"))
def _through(
    masks: Float[Array, "A K T"],
    samples: Float[Array, "C L"],
    gates: Float[Array, "N T"],
    plus: Float[Array, "N A"],
    minus: Float[Array, "N A"] | None,
    form: MaskForm,
    config: SpectrogramConfig,
) -> tuple[Float[Array, "N C L"], Float[Array, "N T"]]:
    spectrum = stft_of_frames(samples, config)
    power = jnp.sum(jnp.abs(spectrum) ** 2, axis=0)[config.num_bins // _HIGH_SHARE :]
    total = jnp.maximum(jnp.sum(power, axis=0), np.finfo(np.float32).tiny)

    def one(mask: Float[Array, "K T"]) -> tuple[Float[Array, "C L"], Float[Array, " T"]]:
        linear = unwarp(mask, config)
        gain = jnp.sum(linear[config.num_bins // _HIGH_SHARE :] * power, axis=0) / total
        return overlap_added(linear[None].astype(spectrum.dtype) * spectrum, config), gain

    # One after the other: the spectra of many stems at once do not fit into a CPU's caches.
    return jax.lax.map(one, _of_targets(masks, plus, minus, form) * gates[:, None])


def _of_targets(
    masks: Float[Array, "A K T"], plus: Float[Array, "N A"], minus: Float[Array, "N A"] | None, form: MaskForm
) -> Float[Array, "N K T"]:
    """See `Recipe`."""
    targets = _summed(plus, masks)
    if minus is not None:
        left_out = _summed(minus, masks)
        shares = _shares(targets, targets**2 + left_out**2, jnp.maximum(0, 1 - targets - left_out))
        targets = jnp.where(minus.any(axis=1)[:, None, None], shares, targets)
    if form == "binary":
        return (targets > 0.5).astype(targets.dtype)
    if form == "wiener":
        power = (targets**2).sum(axis=0, keepdims=True)
        return _shares(targets, power, jnp.maximum(0, 1 - targets.sum(axis=0, keepdims=True)))
    return targets


def _summed(which: Float[Array, "N A"], masks: Float[Array, "A K T"]) -> Float[Array, "N K T"]:
    """Sums of some masks, at most one."""
    return jnp.minimum(1, jnp.einsum("na,akt->nkt", which, masks, precision=jax.lax.Precision.HIGHEST))


def _shares(
    masks: Float[Array, "N K T"], power: Float[Array, "#N K T"], rest: Float[Array, "#N K T"]
) -> Float[Array, "N K T"]:
    """Shares of masks in the power of all, and of the rest."""
    total = jnp.maximum(power + rest**2, np.finfo(np.float32).tiny)
    return masks**2 / jnp.broadcast_to(total, masks.shape)
