"""Speed of the input with stored embeddings: records in the page cache to batches, on one core.

`clips_per_second_per_core` counts 10 s clips as `clipsep prepare --clip` stores them, pictures and embeddings included;
`ratio_to_plain_read` is how many times longer that takes than reading the same files from end to end.
"""

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.machine import machine, one_core
from benchmarks.random_records import write_random_records
from benchmarks.train_step import nit_config, seconds_of
from clipsep_jax.queries.kinds import IMAGE

TURNS = 5
CHUNK_BYTES = 1 << 20


def read_plainly(paths: list[Path]) -> int:
    """Reads files from end to end; returns the number of bytes."""
    buffer, total = bytearray(CHUNK_BYTES), 0
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def measure(num_clips: int, batch_size: int) -> dict[str, Any]:
    """Medians over TURNS passes over all clips, each with a plain read; the first pass warms up."""
    config = nit_config(batch_size=batch_size)
    with TemporaryDirectory() as temporary, one_core():
        records = write_random_records(Path(temporary) / "records", config, num_clips, split="train")
        batches = IMAGE.batches(config, records, "train", training=True, batch_size=batch_size)
        num_batches = num_clips // (batch_size * config.data.num_sources)
        paths = sorted((Path(temporary) / "records").glob("*.tfrecord"))
        turns = []
        for turn in range(1 + TURNS):
            # By number, so that nothing is read ahead while the plain read is timed.
            numbers = range(turn * num_batches, (turn + 1) * num_batches)
            batching = seconds_of(lambda numbers=numbers: [batches[number] for number in numbers])
            turns.append((batching, seconds_of(lambda: read_plainly(paths))))
        num_bytes = read_plainly(paths)
    turns = turns[1:]
    clips = num_batches * batch_size * config.data.num_sources
    return {
        "clips_per_second_per_core": round(clips / statistics.median(turn[0] for turn in turns), 1),
        "ratio_to_plain_read": round(statistics.median(turn[0] / turn[1] for turn in turns) * num_clips / clips, 2),
        "plain_read_gigabytes_per_second": round(num_bytes / statistics.median(turn[1] for turn in turns) / 1e9, 2),
        "clips": num_clips,
        "batch": batch_size,
        "bytes_of_a_clip": num_bytes // num_clips,
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=512, help="number of clips")
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    print(json.dumps(measure(options.clips, options.batch)))


if __name__ == "__main__":
    main()
