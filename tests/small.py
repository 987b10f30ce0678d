"""Small records and configs that the tests share."""

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from clipsep_jax.config import Config
from clipsep_jax.data.record import Record
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, EncoderInfo, Manifest, write_manifest, write_shard
from clipsep_jax.data_prep.embed import Encoder, embed_records, label_table
from clipsep_jax.queries.table import EmbeddingTable

QUERY_SIZE = 6
LABELS = ("buzz", "hiss", "hum")


def make_record(number: int, *, seconds: float = 2.0, labels: Sequence[str] = LABELS) -> Record:
    """A tone and noise of its own, with plain pictures and random embeddings."""
    rng = np.random.default_rng(number)
    time = np.arange(int(seconds * 16_000)) / 16_000
    sound = 0.3 * np.sin(2 * np.pi * (200 + 150 * (number % 7)) * time) + 0.05 * rng.normal(size=len(time))
    count = max(1, int(seconds))
    return Record(
        id=f"clip{number}.mp4",
        label=labels[number % len(labels)],
        audio=(np.clip(sound, -1, 1) * 32767).astype(np.int16),
        frames=tuple(plain_jpeg(number, i) for i in range(count)),
        frame_embeddings=rng.normal(size=(count, QUERY_SIZE)).astype(np.float32),
    )


def plain_jpeg(number: int, second: int) -> bytes:
    buffer = BytesIO()
    colour = (37 * number % 256, 91 * second % 256, 128)
    Image.new("RGB", (224, 224), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def make_records(
    folder: Path,
    counts: dict[str, int] | None = None,
    encoder: Encoder | None = None,
    labels: Sequence[str] = LABELS,
) -> Path:
    """A folder of records with this many clips per split, with random embeddings or those of an encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    splits, start = {}, 0
    for name, count in (counts or {"train": 9, "validation": 6, "test": 6}).items():
        records = [make_record(start + i, labels=labels) for i in range(count)]
        if encoder:
            records = embed_records(records, encoder)
        splits[name] = (write_shard(folder / f"{name}-00000.tfrecord", records),)
        start += count
    vectors = np.random.default_rng(1).normal(size=(len(labels), QUERY_SIZE)).astype(np.float32)
    table = label_table(labels, encoder) if encoder else EmbeddingTable(tuple(labels), vectors)
    table.save(folder / LABEL_EMBEDDINGS_NAME)
    info = EncoderInfo(encoder.name, encoder.sha256, encoder.query_size) if encoder else None
    manifest = Manifest(
        counts={"inputs": start, "accepted": start, "rejected": 0},
        labels=dict.fromkeys(labels, 1),
        splits=splits,
        encoder=info or EncoderInfo("owner/unknown", "0" * 64, QUERY_SIZE),
        inputs_sha256="",
    )
    write_manifest(folder, manifest)
    return folder


def small_config(records: Path, **train: int) -> Config:
    """The least network on the least spectrogram; 4 steps and nothing for TensorBoard unless told otherwise."""
    config = Config()
    train = {"steps": 4, "log_every": 1, "validate_every": 2, "validation_batches": 1, "board_mixtures": 0} | train
    return replace(
        config,
        spectrogram=replace(config.spectrogram, num_samples=2047),
        model=replace(config.model, num_levels=1, width=2, num_noise_heads=2, query_size=QUERY_SIZE, init_std=0.1),
        objective=replace(config.objective, name="noise_invariant"),
        data=replace(config.data, records=str(records), batch_size=2, read_workers=0),
        optimizer=replace(config.optimizer, warmup_steps=2),
        train=replace(config.train, **train),
        checkpoint=replace(config.checkpoint, save_every=2),
    )
