"""Records of made-up clips with random embeddings, so that no encoder is needed."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from clipsep_jax.config import SAMPLE_RATE_HZ, Config
from clipsep_jax.data.record import FRAME_SIZE, Record
from clipsep_jax.data.record_set import EncoderInfo, Manifest, RecordSet, write_manifest, write_shard

SECONDS = 10
CLIPS_OF_A_SHARD = 64
ENCODER = "benchmarks/random"


def encoder_info(config: Config) -> EncoderInfo:
    return EncoderInfo(ENCODER, "0" * 64, config.model.query_size)


def random_record(config: Config, number: int) -> Record:
    """Noise and a tone, without a label; one picture a second."""
    rng = np.random.default_rng(number)
    time = np.arange(SECONDS * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    sound = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 2000) * time) + 0.05 * rng.normal(size=len(time))
    embeddings = rng.normal(size=(SECONDS, config.model.query_size)).astype(np.float32)
    return Record(f"clip{number}.mp4", "", np.rint(sound * 32767).astype(np.int16), _pictures(rng), embeddings)


def _pictures(rng: np.random.Generator) -> tuple[bytes, ...]:
    """The same smooth picture in a little noise every second: JPEGs of about 20 kB."""
    smooth = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8)).resize((FRAME_SIZE, FRAME_SIZE))
    noisy = np.asarray(smooth) + rng.integers(-4, 5, (FRAME_SIZE, FRAME_SIZE, 3))
    buffer = BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return (buffer.getvalue(),) * SECONDS


def write_random_records(folder: Path, config: Config, num_clips: int, split: str) -> RecordSet:
    """Writes a folder of records with one split."""
    folder.mkdir()
    shards = []
    for first in range(0, num_clips, CLIPS_OF_A_SHARD):
        numbers = range(first, min(num_clips, first + CLIPS_OF_A_SHARD))
        path = folder / f"{split}-{first // CLIPS_OF_A_SHARD:05d}.tfrecord"
        shards.append(write_shard(path, (random_record(config, number) for number in numbers)))
    counts = {"inputs": num_clips, "accepted": num_clips, "rejected": 0}
    write_manifest(folder, Manifest(counts, {}, {split: tuple(shards)}, encoder_info(config), ""))
    return RecordSet(folder)
