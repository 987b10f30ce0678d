"""Writes folders of records of every kind, and what they hold as arrays, for `read_records.py` in another environment.

python -m tests.tfds.write_records FOLDER
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipsep_jax.data.record import Record, decode_frame
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep.embed_set import embed_record_set
from clipsep_jax.data_prep.ledger import Rejection
from clipsep_jax.data_prep.sources.inputs import Input
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from tests.data_prep.fakes import FakeEncoder, make_inputs, read_fake, read_sound_alone


def read_flagged(source: Input) -> Record | Rejection:
    outcome = read_fake(source)
    return replace(outcome, still_picture=len(outcome.frames) == 2) if isinstance(outcome, Record) else outcome


def write_sets(folder: Path) -> None:
    run = PoolRunner(num_workers=0)
    for encoding in ("pcm16", "flac"):
        bare, embedded, dropped = (folder / f"{encoding}-{kind}" for kind in ("bare", "embedded", "dropped"))
        write_records(make_inputs(14), read_flagged, bare, run=run, block_size=4, audio_encoding=encoding)
        embed_record_set(Path(shutil.copytree(bare, embedded)), FakeEncoder())
        embed_record_set(Path(shutil.copytree(bare, dropped)), FakeEncoder(), drop_frames=True)
    sound = folder / "sound"
    write_records(make_inputs(6), read_sound_alone, sound, run=run, block_size=4)
    embed_record_set(Path(shutil.copytree(sound, folder / "sound-embedded")), FakeEncoder())


def write_contents(folder: Path) -> None:
    """What our own reader finds, one file a split."""
    for records in map(RecordSet, sorted(folder.iterdir())):
        for name in records.splits:
            arrays = {}
            for number, record in enumerate(records.split(name)):
                fields = {
                    "id": record.id.encode(),
                    "label": record.label.encode(),
                    "audio": record.audio,
                    "still_picture": int(record.still_picture),
                    "frames": np.array([decode_frame(jpeg) for jpeg in record.frames]),
                    "frame_embeddings": record.frame_embeddings,
                }
                arrays |= {f"{number}/{key}": value for key, value in fields.items() if value is not None}
            np.savez_compressed(records.folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write_sets(target)
    write_contents(target)
