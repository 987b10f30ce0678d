"""Small sets of records without pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipsep_jax.data.record import Record
from clipsep_jax.data.record_set import Manifest, RecordSet, write_manifest, write_shard


def write_clips(
    folder: Path, clips: Sequence[tuple[str, str]], *, seconds: float = 1, split: str = "test"
) -> RecordSet:
    """Records of noise, named and labelled as in `clips`."""
    folder.mkdir(parents=True)
    records = [
        Record(id, label, np.random.default_rng(n).integers(-9000, 9000, int(16000 * seconds), np.int16), frames=())
        for n, (id, label) in enumerate(clips)
    ]
    shard = write_shard(folder / f"{split}-00000-of-00001.tfrecord", records)
    labels = {label: sum(label == other for _, other in clips) for _, label in clips if label}
    counts = {"inputs": len(clips), "accepted": len(clips), "rejected": 0}
    write_manifest(folder, Manifest(counts, labels, {split: (shard,)}, None, "0" * 64))
    return RecordSet(folder)
