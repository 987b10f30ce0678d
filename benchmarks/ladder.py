"""Where decibels are lost on the way from an ideal mask to a query by an unseen photo; `docs/results.md` shows it.

    python -m benchmarks.ladder FOLDER --work runs/real

The folder holds videos of still photos, as for `benchmarks.real_sounds photos`, whose runs are taken where they are
there. The same clips' labels are scored twice, by held-out clips and by those that were trained on; and after four
times as many steps.
"""

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.__main__ import DOCS, replaced
from benchmarks.machine import machine
from benchmarks.real_sounds import (
    PHOTO_OF_TRAINING,
    add_photos_of_training,
    begin_of,
    folder_of,
    pairs_of_seen_labels,
    prepare,
    run_one,
)
from clipsep_jax.config import Config
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.evaluation.compare import read_scored
from clipsep_jax.evaluation.estimates import Ways
from clipsep_jax.evaluation.mixtures import MixtureReader
from clipsep_jax.evaluation.scores import Evaluation
from clipsep_jax.evaluation.tables import write_scores
from clipsep_jax.metrics import sdr
from clipsep_jax.queries.prompts import DEFAULT_TEMPLATE, prompt_for
from clipsep_jax.separation.separator import Separator

# Each rung with the run and the way of estimation that it is read from, best first.
RUNGS = {
    "ideal ratio mask": ("labelsep", "ideal_ratio_mask"),
    "label": ("labelsep", "label"),
    "text": ("clipsep", "text"),
    "photo of the training clip": ("clipsep", PHOTO_OF_TRAINING),
    "photo of the clip itself": ("clipsep", "image"),
    "wrong text": ("clipsep", "wrong_query"),
    "mixture": ("labelsep", "mixture"),
}
HALF = "half of the mixture"  # a mask of a half everywhere
SPLITS = ("test", "train")
TIMES_AS_LONG = 4


def scores_of(records: RecordSet, system: str, split: str, work: Path, steps: int, seed: int) -> Path:
    """Where the scores of a run on a split's pairs are; made unless they are there."""
    run_one("photos", system, seed, records, work, steps)
    run = folder_of("photos", system, seed, work, steps)
    if split == "test":
        return run / "scores"
    scores = run / "scores_of_training"
    if not scores.is_dir():
        protocol = pairs_of_seen_labels(records, split, work / "photos")
        prompts = (DEFAULT_TEMPLATE,) if system == "clipsep" else ()
        evaluation = Evaluation(Separator.load(run), protocol, Ways(prompts=prompts))
        summary, rows = evaluation.run()
        if system == "clipsep":
            add_photos_of_training(evaluation, records, rows)
        write_scores(scores, summary, rows)
    return scores


def score_of_half(records: RecordSet, split: str, work: Path) -> float:
    """Mean SDR of half of each mixture, which nothing need be learned for."""
    protocol = pairs_of_seen_labels(records, split, work / "photos")
    reader = MixtureReader(Config(), protocol, None)
    read = reader.read(protocol.mixtures)
    length = reader.num_scored
    return float(sdr(read.sources[:, 0, :length], read.mixture[:, :length] / 2).mean())


def share_of_photos_named(records: RecordSet, encoder: Path, split: str) -> float:
    """How often the text nearest to a photo, among those of the labels that are scored, is the photo's own."""
    labels = sorted(
        {e.label for e in records.split("train").entries} & {e.label for e in records.split("test").entries}
    )
    texts = np.asarray(load_clip(str(encoder)).embed_text([prompt_for(label, DEFAULT_TEMPLATE) for label in labels]))
    texts /= np.linalg.norm(texts, axis=-1, keepdims=True)
    chosen = records.split(split, with_frames=False)
    photos = [(n, entry.label) for n, entry in enumerate(chosen.entries) if entry.label in labels]
    embedded = [np.asarray(chosen.clip(n).frame_embeddings[:]).mean(axis=0) for n, _ in photos]
    named = [labels[int((texts @ embedding).argmax())] for embedding in embedded]
    return statistics.mean(name == label for name, (_, label) in zip(named, photos, strict=True))


def report(means: Mapping[tuple[str, str, int], float], named: Mapping[str, float], steps: int, seeds: int) -> str:
    place = machine()
    columns = [(split, number) for number in (steps, TIMES_AS_LONG * steps) for split in SPLITS]
    words = {"test": "held-out clips", "train": "clips trained on"}
    lines = [
        f"{place['cpu']}, {place['cores']} cores; mean SDR in dB, seeds: {seeds}.",
        "",
        "| query | " + " | ".join(f"{words[split]}, {number:,} steps" for split, number in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for rung in (*RUNGS, HALF):
        lines.append(f"| {rung} | " + " | ".join(f"{means[rung, *column]:.2f}" for column in columns) + " |")
    lines += [
        "",
        f"The encoder names {named['test']:.0%} of the held-out photos and {named['train']:.0%} of those trained on.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the data")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keep records and runs there")
    parser.add_argument("--steps", type=int, default=1200, help="of the shorter runs (default: 1200)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each system and length (default: 1)")
    parser.add_argument("--write", action="store_true", help="put the result into docs/results.md")
    options = parser.parse_args()
    work = options.work.absolute()
    records = prepare("photos", options.folder.absolute(), work)
    means: dict[tuple[str, str, int], float] = {}
    for steps in (options.steps, TIMES_AS_LONG * options.steps):
        for split in SPLITS:
            means[HALF, split, steps] = score_of_half(records, split, work)
            for rung, (system, way) in RUNGS.items():
                paths = [scores_of(records, system, split, work, steps, seed) for seed in range(options.seeds)]
                means[rung, split, steps] = statistics.mean(
                    value for path in paths for value in read_scored(path, way).scores.values()
                )
    named = {split: share_of_photos_named(records, work / "photos" / "encoder", split) for split in SPLITS}
    text = report(means, named, options.steps, options.seeds)
    if options.write:
        path = DOCS / "results.md"
        path.write_text(replaced(path.read_text("utf-8"), text, begin_of("ladder")), "utf-8")
    print(text)


if __name__ == "__main__":
    main()
