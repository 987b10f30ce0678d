"""Separation of recordings of any length by queries."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32, PyTree

from clipsep_jax.config import Config, SpectrogramConfig
from clipsep_jax.encoders.base import Encoder
from clipsep_jax.encoders.registry import load_encoder
from clipsep_jax.errors import InputError
from clipsep_jax.model_dir import TABLE_FILE, ModelDir, open_model_dir
from clipsep_jax.queries.base import Embedder, Query
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.separation.chunks import separate_in_chunks
from clipsep_jax.spectrogram import apply_masks, log_warped_magnitude, stft
from clipsep_jax.structures import AnyArray, MaskLogits

_Queries = Float[Array, "B N Q"] | Int[Array, "B N"] | None


@dataclass(frozen=True)
class Separation:
    """What separation gives, at the model's sample rate and as long as the input.

    Attributes:
        stems: one per query.
        residual: the input without the stems.
    """

    stems: Float32[np.ndarray, "N L"]
    residual: Float32[np.ndarray, " L"]


class Separator:
    """A trained model and its query encoder, ready to separate.

    Long input is cut into chunks of the training length that overlap by half and are cross-faded. Each chunk is
    masked separately, so the result depends a little on where chunks begin.
    """

    def __init__(self, model_dir: ModelDir, *, download: bool = False):
        self.model_dir = model_dir
        self._download = download
        self.config: Config = model_dir.config
        self.sample_rate_hz = self.config.spectrogram.sample_rate_hz
        self._network = jax.device_put(nnx.split(model_dir.load_model()))

    @classmethod
    def load(cls, path: str | Path, *, download: bool = False) -> "Separator":
        """Loads a model directory, or the best model of a training workdir.

        Args:
            download: whether a query encoder that the model names, and that is not on this machine, is fetched.

        Raises:
            InputError: there is no model, or it is damaged.
        """
        return cls(open_model_dir(path), download=download)

    @cached_property
    def encoder(self) -> Encoder:
        """The query encoder; loaded when it is first needed.

        Raises:
            InputError: it cannot be found, or its embeddings have another size than the model takes.
        """
        encoder = load_encoder(self.model_dir.encoder_name, download=self._download)
        size = self.config.model.query_size
        otherwise = (
            f", but {self.model_dir.folder} takes {size}; it is not the encoder that the model was trained with."
        )
        encoder.check_query_size(size, otherwise)
        if self.model_dir.encoder and encoder.sha256 != self.model_dir.encoder.sha256:
            raise InputError(
                f"{encoder.name} has other weights than the encoder that {self.model_dir.folder} was trained with; "
                "restore that one."
            )
        return encoder

    @cached_property
    def table(self) -> EmbeddingTable:
        """The embeddings of labels that a model of sentence queries was trained with."""
        return EmbeddingTable.load(self.model_dir.folder / TABLE_FILE)

    @cached_property
    def _embedder(self) -> Embedder:
        return Embedder(
            str(self.model_dir.folder), lambda: self.encoder, lambda: self.table, tuple(self.model_dir.labels)
        )

    def embed(self, queries: Sequence[Query]) -> Float32[np.ndarray, "N Q"] | Int32[np.ndarray, " N"] | None:
        """What the model takes for queries. A text that was embedded before is not embedded again.

        A query is a text, a picture, an array of pictures [R H W 3] (averaged), or an embedding [Q]; for models of
        labels or sentences, one of their labels. A model without queries takes none.

        Raises:
            InputError: the model does not take such a query.
        """
        return kind_of(self.config).embed_all(queries, self._embedder)

    def separate_clips(
        self, mixtures: Float[np.ndarray, "B L"], queries: Float[np.ndarray, "B N Q"] | Int[np.ndarray, "B N"] | None
    ) -> Float[Array, "B N L"]:
        """Separates clips of the training length, each by its own queries (see `embed`). Noise masks are not used."""
        batch = None if queries is None else jnp.asarray(queries)
        return _separate(*self._network, jnp.asarray(mixtures), batch, self.config.spectrogram)

    def logits_of_clips(
        self, mixtures: Float[np.ndarray, "B L"], queries: Float[np.ndarray, "B N Q"] | Int[np.ndarray, "B N"] | None
    ) -> MaskLogits:
        """Mask logits of clips of the training length, each by its own queries (see `embed`)."""
        batch = None if queries is None else jnp.asarray(queries)
        return _logits(*self._network, jnp.asarray(mixtures), batch, self.config.spectrogram)

    def mask_logits(
        self, magnitude: Float[AnyArray, "F T"], queries: Float[AnyArray, "N Q"] | Int[AnyArray, " N"] | None
    ) -> MaskLogits:
        """Mask logits of one spectrogram, without a batch axis.

        Args:
            magnitude: linear, before 1e-10 is added; T must suit the network (a multiple of 2**num_levels).
            queries: what `embed` gives.
        """
        batch = None if queries is None else jnp.asarray(queries)[None]
        logits = _mask_logits(*self._network, jnp.asarray(magnitude)[None], batch, self.config.spectrogram)
        return jax.tree.map(lambda x: x[0], logits)

    def separate(
        self, waveform: Float[np.ndarray, " L"], queries: Sequence[Query], *, progress: bool = False
    ) -> Separation:
        """Pulls the sound of every query out of a recording.

        Args:
            waveform: mono, at `sample_rate_hz`, within [-1, 1].
            queries: see `embed`.
            progress: show a bar on stderr.

        Raises:
            InputError: the recording is empty or holds values that are not finite, a query does not suit the model, or
                its stems are not finite.
        """
        if not len(waveform) or not np.isfinite(waveform).all():
            raise InputError("The recording is empty or holds values that are not finite; give one with sound.")
        embedded = self.embed(queries)

        def separate(chunks: np.ndarray) -> np.ndarray:
            same = None if embedded is None else np.broadcast_to(embedded, (len(chunks), *embedded.shape))
            return np.asarray(self.separate_clips(chunks, same))

        chunk, num_stems = self.config.spectrogram.num_samples, len(queries) or self.config.model.num_learned_queries
        stems = separate_in_chunks(waveform, chunk, num_stems, separate, progress=progress)
        if not np.isfinite(stems).all():
            raise InputError(f"{self.model_dir.folder} gives sounds that are not finite here; take another model.")
        return Separation(stems, (waveform - stems.sum(axis=0)).astype(np.float32))


# The network comes as arguments: separators of one config share the compiled programs, which keep none of them alive.


@partial(jax.jit, static_argnames="config")
def _mask_logits(
    graphdef: nnx.GraphDef,
    state: PyTree,
    magnitude: Float[Array, "B F T"],
    queries: _Queries,
    config: SpectrogramConfig,
) -> MaskLogits:
    return nnx.merge(graphdef, state)(log_warped_magnitude(magnitude, config), queries)


@partial(jax.jit, static_argnames="config")
def _logits(
    graphdef: nnx.GraphDef, state: PyTree, mixtures: Float[Array, "B L"], queries: _Queries, config: SpectrogramConfig
) -> MaskLogits:
    return _mask_logits(graphdef, state, jnp.abs(stft(mixtures, config)), queries, config)


@partial(jax.jit, static_argnames="config")
def masked_clips(
    masks: Float[Array, "B N K T"], mixtures: Float[Array, "B L"], config: SpectrogramConfig
) -> Float[Array, "B N L"]:
    """What masks let through of clips of the training length, within [-1, 1]."""
    return jnp.clip(apply_masks(masks, stft(mixtures, config), config, mixtures.shape[-1]), -1, 1)


@partial(jax.jit, static_argnames="config")
def _separate(
    graphdef: nnx.GraphDef, state: PyTree, mixtures: Float[Array, "B L"], queries: _Queries, config: SpectrogramConfig
) -> Float[Array, "B N L"]:
    spectrum = stft(mixtures, config)
    logits = _mask_logits(graphdef, state, jnp.abs(spectrum), queries, config)
    return jnp.clip(apply_masks(jax.nn.sigmoid(logits.query), spectrum, config, mixtures.shape[-1]), -1, 1)
