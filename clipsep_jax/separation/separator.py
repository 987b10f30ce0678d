"""Separation of recordings of any length by queries."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

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
from clipsep_jax.queries.centre import Centre
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.queries.prompts import prompt_for
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.separation.chunks import ChunkPlan
from clipsep_jax.separation.masking import Masking
from clipsep_jax.separation.options import CHUNKS_AT_ONCE, DEFAULT_OPTIONS, Options
from clipsep_jax.separation.presence import Presence
from clipsep_jax.separation.rates import RateStream
from clipsep_jax.separation.separation import Separation, SeparationStream
from clipsep_jax.separation.stream import MaskStream
from clipsep_jax.separation.targets import Atom, Target, gates_of, recipe_for
from clipsep_jax.spectrogram import apply_masks, log_warped_magnitude, stft
from clipsep_jax.structures import AnyArray, MaskLogits

if TYPE_CHECKING:
    from clipsep_jax.separation.job import Separated

_Queries = Float[Array, "B N Q"] | Int[Array, "B N"] | None


BLOCK_SECONDS = 10
MOST_BARE_WORDS = 3  # of a query that is put into a prompt


class Separator:
    """A trained model and its query encoder, ready to separate.

    Long input is masked in chunks of the training length, whose masks are cross-faded where they overlap, so the result
    depends a little on where chunks begin.
    """

    def __init__(self, model_dir: ModelDir, *, download: bool = False):
        self.model_dir = model_dir
        self._download = download
        self.config: Config = model_dir.config
        self.sample_rate_hz = self.config.spectrogram.sample_rate_hz
        self._network = jax.device_put(nnx.split(model_dir.load_model()))

    @classmethod
    def load(cls, path: str | Path, *, download: bool = False) -> "Separator":
        """Loads a model directory, the best model of a training workdir, or `owner/name@revision` of the Hub.

        Args:
            download: whether such a model, or a query encoder that the model names, is fetched if it is not on this
                machine.

        Raises:
            InputError: there is no model, or it is damaged.
        """
        return cls(open_model_dir(path, download=download), download=download)

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
    def presence(self) -> Presence | None:
        """What tells whether a sound is there, if the model is calibrated."""
        config = self.config.spectrogram
        return Presence.load(self.model_dir.folder, (config.num_warped_bins, config.num_frames))

    @cached_property
    def table(self) -> EmbeddingTable:
        """The embeddings of labels that a model of sentence queries was trained with."""
        return EmbeddingTable.load(self.model_dir.folder / TABLE_FILE)

    @cached_property
    def centre(self) -> Centre | None:
        """What is subtracted from the embeddings of pictures and texts, if the model was trained so."""
        return self.model_dir.load_centre()

    @cached_property
    def _embedder(self) -> Embedder:
        name, labels = str(self.model_dir.folder), tuple(self.model_dir.labels)
        return Embedder(name, lambda: self.encoder, lambda: self.table, labels, self.centre, self._hear)

    def _hear(self, waveform: Float[np.ndarray, " L"]) -> Float32[np.ndarray, " Q"]:
        """The mean embedding of an example's segments of the training length; a shorter one is repeated."""
        size = self.config.spectrogram.num_samples
        if not waveform.size or not np.isfinite(waveform).all():
            raise InputError("The example is empty or holds values that are not finite; give one with sound.")
        whole = np.tile(waveform, -(-size // len(waveform))) if len(waveform) < size else waveform
        segments = whole[: len(whole) // size * size].reshape(-1, size).astype(np.float32)
        embedded = [_heard(*self._network, jnp.asarray(part)[None], self.config.spectrogram) for part in segments]
        return np.mean([np.asarray(one[0]) for one in embedded], axis=0)

    def embed(self, queries: Sequence[Query]) -> Float32[np.ndarray, "N Q"] | Int32[np.ndarray, " N"] | None:
        """What the model takes for queries. A text that was embedded before is not embedded again.

        A query is a text, a picture, an array of pictures [R H W 3] (averaged), or an embedding [Q]; for models of
        labels or sentences, one of their labels; for those of examples, an `Example`. A model without queries takes
        none.

        Raises:
            InputError: the model does not take such a query.
        """
        return kind_of(self.config).embed_all(queries, self._embedder)

    def _embed_atoms(self, atoms: Sequence[Atom]) -> np.ndarray | None:
        """The embeddings of queries; followed by the means of what is left out, where something is."""
        embedded = self.embed([atom.query for atom in atoms])
        if embedded is None or not any(atom.negatives for atom in atoms):
            return embedded
        negatives = np.zeros_like(embedded)
        for row, atom in zip(negatives, atoms, strict=True):
            if atom.negatives:
                left_out = self.embed(atom.negatives)
                assert left_out is not None
                row[:] = left_out.mean(axis=0)
        return np.concatenate([embedded, negatives], axis=-1)

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

    def logits_of_inputs(
        self, inputs: Float[np.ndarray, "B K T"], queries: Float[np.ndarray, "B N Q"] | Int[np.ndarray, "B N"] | None
    ) -> MaskLogits:
        """Mask logits of what the network sees of clips (`log_warped_magnitude`), each by its own queries."""
        batch = None if queries is None else jnp.asarray(queries)
        return _input_logits(*self._network, jnp.asarray(inputs), batch)

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

    def prompt(self, text: str) -> str:
        """A bare word, or up to three, in the prompt that queries of labels have; longer texts as they are."""
        is_bare = len(text.split()) <= MOST_BARE_WORDS
        return prompt_for(text) if is_bare and kind_of(self.config).has_encoder else text

    def open_stream(
        self,
        queries: Sequence[Query | Target],
        *,
        rate: int | None = None,
        options: Options = DEFAULT_OPTIONS,
        chunks_at_once: int = 1,
    ) -> SeparationStream:
        """A stream that separates what it is given block by block, as from a microphone.

        Args:
            queries: see `embed`; a `Target` sums several sounds, leaves some out, or lasts for a time.
            rate: of the sound, in Hz; by default the model's.
            chunks_at_once: more are faster, and wait longer.

        Raises:
            InputError: a query does not suit the model.
        """
        targets = [query if isinstance(query, Target) else Target((query,)) for query in queries]
        recipe, atoms = recipe_for(targets, self.config.model, options.masks, noise=options.noise)
        embedded, config = self._embed_atoms(atoms), self.config.spectrogram
        ordered = not self.config.model.num_learned_queries
        presence = self.presence if ordered else None
        masking = Masking(self._network, embedded, config, recipe, ordered, presence, silences=not options.always)
        plan = ChunkPlan(config.num_frames, options.overlap, options.fade)
        gates = gates_of(targets, len(recipe.plus), config)
        stream = MaskStream(masking, config, plan, gates, chunks_at_once)
        rate = rate or self.sample_rate_hz
        at_rate = RateStream(stream, rate, self.sample_rate_hz, config.hop_samples, options.above)
        frames_a_second = config.sample_rate_hz / config.hop_samples
        return SeparationStream(at_rate, rate, frames_a_second, str(self.model_dir.folder))

    def stream(
        self,
        blocks: Iterable[Float[np.ndarray, "*C L"]],
        queries: Sequence[Query | Target],
        *,
        rate: int | None = None,
        options: Options = DEFAULT_OPTIONS,
        chunks_at_once: int = 1,
    ) -> Iterator[Separation]:
        """Separates blocks of one sound as they come; see `open_stream`."""
        stream = self.open_stream(queries, rate=rate, options=options, chunks_at_once=chunks_at_once)
        for block in blocks:
            yield from stream.push(block)
        yield from stream.finish()

    def separate_file(
        self, path: str | Path, queries: Sequence[Query | Target], out: str | Path, **how: Any
    ) -> "Separated":
        """Separates a recording or a video into files in a folder, in memory that does not grow with its length.

        Args:
            path: of the recording.
            queries: see `open_stream`; a text gives its file the name, as does the name of a `Target`.
            out: the folder; files that are there are replaced.
            how: other fields of `job.Job`, such as options, form, rate and residual.

        Raises:
            InputError: the recording cannot be read, or a query does not suit the model.
        """
        from clipsep_jax.separation.files import Recording
        from clipsep_jax.separation.job import Job, separate_file

        targets = [_named(query, number) for number, query in enumerate(queries, 1)]
        path = Path(path)
        job = Job(tuple(targets), Path(out), **how)
        return separate_file(self, Recording(path, PurePath(path.stem)), job)

    def separate(
        self,
        waveform: Float[np.ndarray, "*C L"],
        queries: Sequence[Query | Target],
        *,
        rate: int | None = None,
        options: Options = DEFAULT_OPTIONS,
        progress: Callable[[float], None] | None = None,
    ) -> Separation:
        """Pulls the sound of every query out of a recording.

        Args:
            waveform: of one channel [L] or of several [C L].
            queries: see `open_stream`.
            rate: of the recording, in Hz; by default the model's.
            progress: is told the share that is done, up to 1.

        Raises:
            InputError: the recording is empty or holds values that are not finite, a query does not suit the model, or
                its stems are not finite.
        """
        length = waveform.shape[-1]
        if not waveform.size or not np.isfinite(waveform).all():
            raise InputError("The recording is empty or holds values that are not finite; give one with sound.")
        size = BLOCK_SECONDS * (rate or self.sample_rate_hz)
        blocks = (waveform[..., start : start + size] for start in range(0, length, size))
        found, done = [], 0
        for part in self.stream(blocks, queries, rate=rate, options=options, chunks_at_once=CHUNKS_AT_ONCE):
            found.append(part)
            done += part.residual.shape[-1]
            if progress:
                progress(done / length)
        stems, residual, presence = (
            np.concatenate([getattr(part, name) for part in found], axis=-1)
            for name in ("stems", "residual", "presence")
        )
        return Separation(stems, residual, presence)


def _named(query: Query | Target, number: int) -> Target:
    """A target whose name may stand in that of a file."""
    target = query if isinstance(query, Target) else Target((query,))
    texts = [sound for sound in target.sounds if isinstance(sound, str)]
    return target if target.name else replace(target, name=" + ".join(texts) or f"query {number}")


# The network comes as arguments: separators of one config share the compiled programs, which keep none of them alive.


@partial(jax.jit, static_argnames="config")
def _heard(
    graphdef: nnx.GraphDef, state: PyTree, examples: Float[Array, "B L"], config: SpectrogramConfig
) -> Float[Array, "B Q"]:
    inputs = log_warped_magnitude(jnp.abs(stft(examples, config)), config)
    return nnx.merge(graphdef, state).embed_examples(inputs)


@jax.jit
def _input_logits(
    graphdef: nnx.GraphDef, state: PyTree, inputs: Float[Array, "B K T"], queries: _Queries
) -> MaskLogits:
    return nnx.merge(graphdef, state)(inputs, queries)


@partial(jax.jit, static_argnames="config")
def _mask_logits(
    graphdef: nnx.GraphDef,
    state: PyTree,
    magnitude: Float[Array, "B F T"],
    queries: _Queries,
    config: SpectrogramConfig,
) -> MaskLogits:
    return _input_logits(graphdef, state, log_warped_magnitude(magnitude, config), queries)


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
