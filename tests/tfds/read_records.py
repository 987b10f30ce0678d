"""Reads what `write_records.py` wrote by TensorFlow Datasets alone, and compares every field.

python tests/tfds/read_records.py FOLDER
"""

import io
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

SAMPLE_RATE_HZ = 16_000


def compare(folder: Path) -> int:
    """Compare one folder of records; return their number."""
    encoding = "flac" if folder.name.startswith("flac") else "pcm16"
    builder = tfds.builder_from_directory(str(folder))
    splits = {path.stem: np.load(path) for path in sorted(folder.glob("*.npz"))}
    check(set(builder.info.splits) == set(splits), folder, "splits")
    total = 0
    for name, wanted in splits.items():
        numbers = {key.split("/")[0] for key in wanted}
        check(builder.info.splits[name].num_examples == len(numbers), folder, name)
        dataset = tfds.as_numpy(builder.as_dataset(split=name, shuffle_files=False))
        for number, example in enumerate(dataset):
            compare_record(
                folder, example, {k.split("/")[1]: v for k, v in wanted.items() if k.startswith(f"{number}/")}
            )
            check(example["encoding"] == encoding.encode(), folder, "encoding")
            total += 1
        check(number + 1 == len(numbers), folder, name)
    return total


def compare_record(folder: Path, example: dict, wanted: dict) -> None:
    where = f"{folder.name}: {example['id']!r}"
    check(example["id"] == wanted["id"].item(), where, "id")
    check(example["label"] == wanted["label"].item(), where, "label")
    check(example["sample_rate_hz"] == SAMPLE_RATE_HZ, where, "sample_rate_hz")
    check(example["still_picture"] == wanted["still_picture"], where, "still_picture")
    check(np.array_equal(sound(example["audio"]), wanted["audio"]), where, "audio")
    check(len(example["frames"]) == len(wanted["frames"]), where, "number of pictures")
    for found, picture in zip(example["frames"], wanted["frames"], strict=True):
        check(np.abs(found.astype(int) - picture).max() <= 4, where, "pictures")  # two decoders of JPEG
    check(("frame_embeddings" in example) == ("frame_embeddings" in wanted), where, "presence of embeddings")
    if "frame_embeddings" in wanted:
        check(np.array_equal(example["frame_embeddings"], wanted["frame_embeddings"]), where, "embeddings")
        check(example["query_size"] == wanted["frame_embeddings"].shape[1], where, "query_size")


def sound(stored: np.ndarray | bytes) -> np.ndarray:
    """FLAC audio is given as bytes."""
    if isinstance(stored, bytes):
        import soundfile

        return soundfile.read(io.BytesIO(stored), dtype="int16")[0]
    return stored


def check(holds: bool, where: object, what: str) -> None:
    if not holds:
        raise SystemExit(f"{where}: TensorFlow Datasets reads another value of {what}")


if __name__ == "__main__":
    folders = [path for path in sorted(Path(sys.argv[1]).iterdir()) if path.is_dir()]
    counts = [compare(folder) for folder in folders]
    if not counts or not all(counts):
        raise SystemExit("there was nothing to compare")
    print(f"TensorFlow Datasets reads every field of {sum(counts)} records in {len(folders)} folders as written.")
