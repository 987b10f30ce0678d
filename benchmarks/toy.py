"""Trains configs on the toy set, one after the other, and scores each on held-out mixtures.

The docstrings in configs/ quote its figures. Run again with the same --keep, it resumes.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from benchmarks.machine import machine
from clipsep_jax.config import Config
from clipsep_jax.config_files import read_config
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, RecordSet
from clipsep_jax.demo.toy.records import make_toy_records
from clipsep_jax.evaluation.scores import evaluation_of
from clipsep_jax.separation.separator import Separator
from clipsep_jax.training.loop import train

NAMES = (
    "clipsep",
    "clipsep_nit",
    "clipsep_plus",
    "clipsep_text",
    "clipsep_hybrid",
    "clipsep_middle",
    "clipsep_early",
    "labelsep",
    "bertsep",
    "pit",
)


def toy_config(name: str, records: Path, steps: int) -> Config:
    """A config's toy form; tables of sentence embeddings are those that the records' encoder made of the labels."""
    overrides = [f"--config.data.records={records}", f"--config.train.steps={steps}"]
    if name == "bertsep":
        overrides += [f"--config.query.table={records / LABEL_EMBEDDINGS_NAME}", "--config.model.query_size=64"]
    return read_config(f"{name}:toy", overrides)


def measure(name: str, folder: Path, steps: int, num_mixtures: int) -> dict[str, Any]:
    """Minutes of training, and the mean SDR of each way to estimate the target, in dB, with its standard error."""
    config = toy_config(name, folder / "records", steps)
    make_toy_records(folder / "records", config.toy.num_clips, config.toy.encoder_steps)
    start = time.perf_counter()
    train(config, folder / name)
    minutes = (time.perf_counter() - start) / 60
    evaluation = evaluation_of(Separator.load(folder / name), RecordSet(folder / "records"), "test", num_mixtures)
    summary, _ = evaluation.run()
    scores = {
        estimate: [round(line["sdr_mean"], 2), round(line["sdr_sem"], 2)]
        for estimate, line in summary.items()
        if "sdr_mean" in line
    }
    return {"minutes": round(minutes, 1), "sdr_mean_and_sem": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CONFIG", default=NAMES, help=f"default: {' '.join(NAMES)}")
    parser.add_argument("--steps", type=int, default=1200, help="steps of each run (default: the config's 1200)")
    parser.add_argument("--mixtures", type=int, default=256, help="to score on (default: 256)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work there, and keep the runs")
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        facts = {}
        for name in options.names:
            facts[name] = measure(name, folder, options.steps, options.mixtures)
            tqdm.write(f"{name}: {json.dumps(facts[name])}", file=sys.stderr)
    print(json.dumps(facts | machine()))


if __name__ == "__main__":
    main()
