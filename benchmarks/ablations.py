"""What each method beyond the paper brings, on made-up and on real sounds; `docs/results.md` shows it.

    python -m benchmarks.ablations --esc10 FOLDER --photos FOLDER --work runs/ablations

Each method is trained alone, three seeds each, beside a baseline that differs in nothing else: on the toy set; on
ESC-10, folds 1 to 3 against fold 4; and on videos of still photos (the folders are as for `benchmarks.real_sounds`).
Runs that are finished are not done again. `--full` trains at the official size, for GPUs.
"""

import argparse
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.real_sounds import pairs_of_seen_labels, prepare
from clipsep_jax.config import Config
from clipsep_jax.config_files import read_config
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.demo.toy.records import make_toy_records
from clipsep_jax.evaluation.calibration import calibrate_model, roc_auc, targets_of
from clipsep_jax.evaluation.estimates import Ways
from clipsep_jax.evaluation.protocols import Protocol, drawn_protocol
from clipsep_jax.evaluation.scores import Evaluation
from clipsep_jax.evaluation.tables import write_scores
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.queries.prompts import DEFAULT_TEMPLATE
from clipsep_jax.separation.separator import Separator
from clipsep_jax.training.loop import train

NUM_MIXTURES = 128
BASES = {"toy": "clipsep", "esc10": "clipsep_text", "photos": "clipsep"}


@dataclass(frozen=True)
class Method:
    """What is changed of the baseline.

    Attributes:
        changes: options of the config.
        sets: the data sets that it can be tried on.
        first: options of a stage before, whose weights the run starts from.
    """

    changes: dict[str, Any]
    sets: tuple[str, ...] = ("toy", "esc10", "photos")
    first: dict[str, Any] = field(default_factory=dict)


PICTURES = ("toy", "photos")
HEADS = ("learned_queries.*", "query_head.*", "inner_product.*")
METHODS = {
    "baseline": Method({}),
    "centred queries": Method({"query.centre": True}, PICTURES),
    "noise on queries": Method({"query.noise": 0.5}, PICTURES),
    "mix-up of pictures and text": Method({"query.kind": "hybrid", "query.combine": "mix_up"}, PICTURES),
    "pictures and text compete": Method({"query.kind": "hybrid", "query.combine": "compete"}, PICTURES),
    "absent targets": Method({"data.num_sources": 3, "mixing.most_sounding": 2, "data.distinct_labels": True}),
    "wider mixing": Method({
        "data.num_sources": 3, "mixing.fewest_sounding": 2, "mixing.most_sounding": 3, "mixing.absent_weight": 0.0,
        "data.distinct_labels": True, "data.gain_min": 0.25, "data.gain_law": "decibels",
    }),
    "TDF U-Net": Method({"model.network": "tdf_unet"}),
    "FiLM": Method({"model.fusion": "film"}),
    "negative queries": Method({"model.negative_query": True}),
    "mixture invariant, then queries": Method({}, first={
        "query.kind": "none", "objective.name": "mixture_invariant", "objective.num_masks": 4,
    }),
    "sounds as queries": Method({"query.kind": "audio", "model.query_size": 64}),
}  # fmt: skip


def config_of(name: str, changes: dict[str, Any], seed: int, records: Path, *, full: bool, steps: int) -> Config:
    """The baseline of a data set with some changes."""
    size = {} if full else {"spectrogram.num_samples": 16_383, "train.steps": steps, "optimizer.decay_end_step": steps,
                            "train.validate_every": steps // 2, "train.board_mixtures": 0}  # fmt: skip
    values = {"data.records": records, "toy.num_clips": 0, "train.seed": seed} | size | changes
    overrides = [f"--config.{option}={value}" for option, value in values.items()]
    return read_config(f"{BASES[name]}:{'vggsound' if full else 'toy'}", overrides)


def records_of(name: str, folder: Path | None, work: Path) -> RecordSet:
    if name != "toy":
        assert folder is not None
        return prepare(name, folder, work)
    make_toy_records(work / "toy" / "records", 400, 600)
    return RecordSet(work / "toy" / "records")


def protocol_of(name: str, records: RecordSet, work: Path) -> Protocol:
    if name == "photos":
        return pairs_of_seen_labels(records, "test", work / name)
    return drawn_protocol(records, "test", NUM_MIXTURES, 2, seed=0)


def folder_of(name: str, method: str, seed: int, work: Path, steps: int) -> Path:
    return work / name / f"{method.replace(' ', '-')}-{steps}-{seed}"


def run_one(name: str, method: str, seed: int, records: RecordSet, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one run, unless that is done."""
    folder = folder_of(name, method, seed, options.work, options.steps)
    done = folder / "done.json"
    if done.is_file():
        return json.loads(done.read_text())
    start, how = time.perf_counter(), METHODS[method]
    steps, init = options.steps, {}
    if how.first:
        steps //= 2
        first = config_of(name, how.first, seed, records.folder, full=options.full, steps=steps)
        init = {"init": str(train(first, folder / "first")), "init_skip": HEADS}
    train(config_of(name, how.changes, seed, records.folder, full=options.full, steps=steps), folder, **init)
    minutes = (time.perf_counter() - start) / 60
    separator = Separator.load(folder)
    ways = Ways(prompts=(DEFAULT_TEMPLATE,) if kind_of(separator.config).has_encoder else ())
    summary, rows = Evaluation(separator, protocol_of(name, records, options.work), ways).run()
    write_scores(folder / "scores", summary, rows)
    facts = {"minutes": round(minutes, 2), "presence": presence_of(separator, records), "summary": summary}
    done.write_text(json.dumps(facts))
    return facts


def presence_of(separator: Separator, records: RecordSet) -> dict[str, float]:
    """How well absent targets are told, and how loud their stems are, in dB below the mixture."""
    calibrate_model(separator.model_dir.folder, records.folder)
    calibrated = Separator.load(separator.model_dir.folder)
    targets = targets_of(calibrated, records, "test")
    return {
        "auc": roc_auc(targets.z, targets.are_there),
        "energy_auc": roc_auc(targets.energy, targets.are_there),
        "absent_db": float(targets.share_db[~targets.are_there].mean()),
        "present_db": float(targets.share_db[targets.are_there].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", type=Path, metavar="FOLDER", help="leave it out without this data")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="leave it out without this data")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keep records and runs there")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these, beside the baseline")
    parser.add_argument("--sets", nargs="+", choices=tuple(BASES), default=tuple(BASES), help="default: all")
    parser.add_argument("--steps", type=int, default=400, help="of each run (default: 400)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (default: 3)")
    parser.add_argument("--full", action="store_true", help="the official size")
    options = parser.parse_args()
    options.work = options.work.absolute()
    for name in options.sets:
        folder = getattr(options, name, None)
        records = records_of(name, folder, options.work)
        for method in options.methods or METHODS:
            if name not in METHODS[method].sets:
                continue
            for seed in range(options.seeds):
                facts = run_one(name, method, seed, records, options)
                means = {
                    way: round(line["sdr_mean"], 2) for way, line in facts["summary"].items() if "sdr_mean" in line
                }
                tqdm.write(f"{name}, {method}, seed {seed}: {means} {facts['presence']} {facts['minutes']} min")


if __name__ == "__main__":
    main()
