"""From records to batches. The batch of a step is a pure function of the config and the step.

A clip is cut as the official code does: a centre picture, audio around its time, a few pictures around it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16

from clipsep_jax.config import Config, DataConfig
from clipsep_jax.queries import EmbeddingTable
from clipsep_jax.records import FRAMES_PER_SECOND, LABEL_EMBEDDINGS_NAME, Record, RecordSet, decode_frame
from clipsep_jax.structures import Batch, InputError


def centre_range(num_frames: int, margin: int) -> tuple[int, int]:
    """First and last picture (counted from 1) that may be a clip's centre.

    The margin on both sides shrinks for clips too short for it.
    """
    margin = min(margin, (num_frames - 1) // 2)
    return margin + 1, num_frames - margin


def crop_audio(audio: Int16[np.ndarray, "L"], centre_samples: int, num_samples: int) -> Int16[np.ndarray, "n"]:
    """`num_samples` around a centre: short audio is tiled, outside is silence, the last sample is always 0."""
    if len(audio) < num_samples:
        audio = np.tile(audio, num_samples // len(audio) + 1)
    half = num_samples // 2
    start, end = max(0, centre_samples - half), min(len(audio), centre_samples + half)
    crop = np.zeros(num_samples, np.int16)
    crop[half - (centre_samples - start) : half + (end - centre_samples)] = audio[start:end]
    return crop


def centre_samples(centre: int, sample_rate_hz: int) -> int:
    """Time of the middle of a picture (counted from 1), in samples."""
    return int((centre - 0.5) / FRAMES_PER_SECOND * sample_rate_hz)


def pictures_around(centre: int, num_frames: int, count: int) -> Int16[np.ndarray, "R"]:
    """Indices (from 0) of the `count` pictures around a centre (from 1), the outermost repeated at the ends."""
    indices = centre - 1 + np.arange(count) - count // 2
    return np.clip(indices, 0, num_frames - 1).astype(np.int16)


@dataclass(frozen=True)
class ClipReader:
    """Record -> one source of a mixture, as a dict of arrays with the names of `Batch`.

    `query` is "image", "text" or None; `frames` asks for pictures in place of their embeddings.
    """

    data: DataConfig
    num_samples: int
    sample_rate_hz: int
    query: str | None
    frames: bool = False
    table: EmbeddingTable | None = None

    def __call__(self, record: Record, rng: np.random.Generator | None) -> dict[str, Any]:
        """Cuts a clip: at a random centre and gain from `rng`, or without it in the middle and as loud as it is."""
        num_frames = self._num_frames(record)
        low, high = centre_range(num_frames, self.data.frame_margin)
        centre = max(1, num_frames // 2) if rng is None else int(rng.integers(low, high, endpoint=True))
        gain = 1.0 if rng is None else rng.uniform(self.data.gain_min, self.data.gain_max)
        middle = centre_samples(centre, self.sample_rate_hz)
        clip: dict[str, Any] = {"sources": crop_audio(record.audio, middle, self.num_samples), "gain": np.float32(gain)}
        nearby = pictures_around(centre, num_frames, self.data.frames_per_clip)
        if self.frames:
            return clip | {"frames": np.stack([decode_frame(record.frames[i]) for i in nearby])}
        return clip if self.query is None else clip | {"query": self._embedding(record, nearby)}

    def _num_frames(self, record: Record) -> int:
        seconds = max(1, len(record.audio) * FRAMES_PER_SECOND // self.sample_rate_hz)
        if record.frame_embeddings is not None:
            return len(record.frame_embeddings)
        return len(record.frames) or seconds

    def _embedding(self, record: Record, nearby: np.ndarray) -> Float32[np.ndarray, "Q"]:
        if self.query == "text":
            assert self.table is not None
            return self.table.lookup(record.label)
        assert record.frame_embeddings is not None
        return record.frame_embeddings[nearby].mean(axis=0)


def build_reader(config: Config, records: RecordSet, query: str | None = None, source: str | None = None) -> ClipReader:
    """The reader that a config asks for, its query's kind and source replaced where given.

    Raises:
        InputError: the records cannot give what is asked for.
    """
    query, source = query or config.query.kind, source or config.query.source
    frames = query == "image" and source == "frames"
    if not frames:
        _check_query_size(config, records)
    table = EmbeddingTable.load(records.folder / LABEL_EMBEDDINGS_NAME) if query == "text" else None
    spectrogram = config.spectrogram
    return ClipReader(config.data, spectrogram.num_samples, spectrogram.sample_rate_hz, query, frames, table)


def _check_query_size(config: Config, records: RecordSet) -> None:
    if records.query_size is None:
        raise InputError(
            f"{records.folder} holds no embeddings; prepare it with --clip, or train with --config.query.source=frames."
        )
    if records.query_size != config.model.query_size:
        raise InputError(
            f"{records.folder} holds embeddings of size {records.query_size}, the config expects "
            f"{config.model.query_size}; set --config.model.query_size={records.query_size}."
        )


@dataclass(frozen=True)
class Batches:
    """Batches by their number: `batches[step]`, or iterated from a step on with reading ahead."""

    dataset: Any  # grain.MapDataset
    read_threads: int

    def __getitem__(self, step: int) -> Batch:
        return Batch(**self.dataset[step])

    def iterate(self, start: int = 0) -> Iterator[Batch]:
        import grain

        options = grain.ReadOptions(num_threads=self.read_threads, prefetch_buffer_size=2 * max(1, self.read_threads))
        for arrays in self.dataset[start:].to_iter_dataset(options):
            yield Batch(**arrays)


def build_batches(
    config: Config,
    records: RecordSet,
    reader: ClipReader,
    split: str,
    *,
    training: bool,
    batch_size: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> Batches:
    """Endless batches of mixtures from one split.

    Clips are shuffled anew every pass and paired in that order, so a mixture holds different clips. In training the
    cuts are random. The process's share is cut from the finished sequence, so the global batch does not depend on
    the number of processes.

    Raises:
        InputError: the split is missing or too small.
    """
    import grain

    source = records.split(split, with_frames=reader.frames)
    num_sources = config.data.num_sources
    if len(source) < num_sources:
        raise InputError(
            f"The split {split!r} of {records.folder} has {len(source)} clips, too few for mixtures of {num_sources}."
        )
    dataset = grain.MapDataset.source(source).seed(config.train.seed).shuffle().repeat()
    read: Callable = reader
    dataset = dataset.random_map(read) if training else dataset.map(lambda record: reader(record, None))
    dataset = dataset.batch(num_sources).batch(batch_size)
    return Batches(dataset[process_index::num_processes], config.data.read_threads)


def build_input(
    config: Config, records: RecordSet, batch_size: int, *, process_index: int = 0, num_processes: int = 1
) -> Batches:
    """The training batches of a config."""
    reader = build_reader(config, records)
    return build_batches(
        config,
        records,
        reader,
        config.data.train_split,
        training=True,
        batch_size=batch_size,
        process_index=process_index,
        num_processes=num_processes,
    )
