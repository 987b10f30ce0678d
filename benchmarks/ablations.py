"""What each method beyond the paper brings, on made-up and on real sounds; `docs/results.md` shows it.

    python -m benchmarks.ablations --esc10 FOLDER --photos FOLDER --work runs/ablations

Each method is trained alone, three seeds each, beside a baseline that differs in nothing else: on the toy set; on
ESC-10, folds 1 to 3 against fold 4; and on videos of still photos (the folders are as for `benchmarks.real_sounds`).
Runs that are finished are not done again. `--full` trains at the official size, for GPUs.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.__main__ import DOCS, replaced
from benchmarks.machine import machine, num_cores
from benchmarks.real_sounds import averaged, begin_of, pairs_of_seen_labels, prepare
from clipsep_jax.cli.compile_cache import keep_compiled_programs
from clipsep_jax.config import Config
from clipsep_jax.config_files import read_config
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, RecordSet
from clipsep_jax.data_prep.embed_set import embed_record_set
from clipsep_jax.demo.toy.records import make_toy_records
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.evaluation.calibration import calibrate_model, roc_auc, targets_of
from clipsep_jax.evaluation.compare import compare, read_scored
from clipsep_jax.evaluation.estimates import Ways
from clipsep_jax.evaluation.protocols import Protocol, drawn_protocol
from clipsep_jax.evaluation.scores import Evaluation
from clipsep_jax.evaluation.tables import write_scores
from clipsep_jax.queries.centre import measure_centre
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.queries.prompts import DEFAULT_TEMPLATE
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.separation.separator import Separator
from clipsep_jax.tensors import WEIGHTS_FILE, read_tensors, write_tensors
from clipsep_jax.training.initial import Init
from clipsep_jax.training.loop import train

NUM_MIXTURES = 128
NUM_CLIPS, ENCODER_STEPS = 400, 600  # of the toy set
GAP = 2.0  # between pictures and texts, in lengths of a text
TITLES = {
    "toy": "The demo's toy set",
    "gap": "The toy set, its pictures shifted away from the texts",
    "esc10": "ESC-10",
    "photos": "Sounding photos",
}
BASELINE = "baseline"
BASES = {"toy": "clipsep", "gap": "clipsep", "esc10": "clipsep_text", "photos": "clipsep"}


@dataclass(frozen=True)
class Method:
    """What is changed of the baseline.

    Attributes:
        changes: options of the config.
        sets: the data sets that it can be tried on.
        first: options of a stage before, whose weights the run starts from.
        tuned: whether it starts from the baseline of the toy set.
        config: in place of the baseline's.
        without_pictures: changed too where clips have none.
    """

    changes: dict[str, Any]
    sets: tuple[str, ...] = ("toy", "esc10", "photos")
    first: dict[str, Any] = field(default_factory=dict)
    tuned: bool = False
    config: str = ""
    without_pictures: dict[str, Any] = field(default_factory=dict)


PICTURES = ("toy", "photos")
WITH_GAP = ("toy", "gap", "photos")
HEADS = ("learned_queries.*", "query_head.*", "inner_product.*")
MIXTURE_INVARIANT = {"query.kind": "none", "objective.name": "mixture_invariant", "model.num_masks": 4}
METHODS = {
    BASELINE: Method({}, tuple(BASES)),
    "fine-tuning of the toy set's model": Method({}, ("esc10", "photos"), tuned=True),
    "centred queries": Method({"query.centre": True}, WITH_GAP),
    "noise on queries": Method({"query.noise": 0.5}, WITH_GAP),
    "mix-up of pictures and text": Method({"query.kind": "hybrid", "query.combine": "mix_up"}, WITH_GAP),
    "pictures and text compete": Method({"query.kind": "hybrid", "query.combine": "compete"}, PICTURES),
    "absent targets": Method({"data.num_sources": 3, "mixing.most_sounding": 2, "data.distinct_labels": True}),
    "wider mixing": Method({
        "data.num_sources": 3, "mixing.fewest_sounding": 2, "mixing.most_sounding": 3, "mixing.absent_weight": 0.0,
        "data.distinct_labels": True, "data.gain_min": 0.25, "data.gain_law": "decibels",
    }),
    "TDF U-Net": Method({"model.network": "tdf_unet"}),
    "FiLM": Method({"model.fusion": "film"}),
    "negative queries": Method({"model.negative_query": True}),
    "mixture invariant": Method(MIXTURE_INVARIANT),
    "mixture invariant, then queries": Method({}, first=MIXTURE_INVARIANT),
    "L1 on ratio masks": Method({"mixing.targets": "ratio", "objective.criterion": "l1"}),
    "sounds as queries": Method({"query.kind": "audio", "model.query_size": 64}),
    "best combination": Method(
        {}, config="clipsep_plus", without_pictures={"query.kind": "text", "query.combine": "mean"}
    ),
}  # fmt: skip


def config_of(
    name: str, how: Method, changes: dict[str, Any], seed: int, records: Path, *, full: bool, steps: int
) -> Config:
    """The baseline of a data set with some changes."""
    changes = changes | (how.without_pictures if name == "esc10" else {})
    size = {} if full else {"spectrogram.num_samples": 16_383, "train.steps": steps, "optimizer.decay_end_step": steps,
                            "train.validate_every": steps // 2, "train.board_mixtures": 0}  # fmt: skip
    values = {"data.records": records, "toy.num_clips": 0, "train.seed": seed} | size | changes
    overrides = [f"--config.{option}={value}" for option, value in values.items()]
    return read_config(f"{how.config or BASES[name]}:{'vggsound' if full else 'toy'}", overrides)


def records_of(name: str, folder: Path | None, work: Path) -> RecordSet:
    if name in ("esc10", "photos"):
        assert folder is not None
        return prepare(name, folder, work)
    toy = work / "toy" / "records"
    make_toy_records(toy, NUM_CLIPS, ENCODER_STEPS)
    if name == "toy":
        return RecordSet(toy)
    records = work / name / "records"
    if not records.is_dir():
        encoder = _shifted_encoder(toy / "encoder", work / name / "encoder", RecordSet(toy))
        copy = shutil.copytree(toy, work / name / "unfinished", dirs_exist_ok=True)
        embed_record_set(copy, load_clip(str(encoder)))
        copy.rename(records)
    return RecordSet(records)


def _shifted_encoder(folder: Path, out: Path, records: RecordSet) -> Path:
    """A CLIP whose pictures lie GAP lengths of a text away from where they did, all in one direction."""
    shutil.copytree(folder, out, dirs_exist_ok=True)
    tensors = read_tensors(out)
    texts = EmbeddingTable.load(records.folder / LABEL_EMBEDDINGS_NAME).vectors
    direction = np.random.default_rng(0).normal(size=texts.shape[1])
    shift = GAP * np.linalg.norm(texts, axis=1).mean() * direction / np.linalg.norm(direction)
    bias = np.linalg.lstsq(tensors["visual_projection.weight"], shift.astype(np.float32), rcond=None)[0]
    name = "vision_model.post_layernorm.bias"
    write_tensors(out / WEIGHTS_FILE, tensors | {name: tensors[name] + bias}, {"format": "pt"})
    return out


def gap_of(records: RecordSet, *, centred: bool) -> float:
    """The distance between the means of held-out pictures and of their texts, as a share of an embedding's length."""
    clips = records.split("test", with_frames=False)
    table = EmbeddingTable.load(records.folder / LABEL_EMBEDDINGS_NAME)
    pictures = np.stack([np.asarray(clips.clip(n).frame_embeddings[:]).mean(axis=0) for n in range(len(clips))])
    texts = np.stack([table.lookup(entry.label) for entry in clips.entries])
    if centred:
        centre = measure_centre(records, "train", lambda texts: texts)
        pictures, texts = pictures - centre.image, texts - centre.text
    length = np.linalg.norm(np.concatenate([pictures, texts]), axis=1).mean()
    return float(np.linalg.norm(pictures.mean(axis=0) - texts.mean(axis=0)) / length)


def protocol_of(name: str, records: RecordSet, work: Path) -> Protocol:
    if name == "photos":
        return pairs_of_seen_labels(records, "test", work / name)
    return drawn_protocol(records, "test", NUM_MIXTURES, 2, seed=0)


def folder_of(name: str, method: str, seed: int, work: Path, steps: int) -> Path:
    return work / name / f"{method.replace(' ', '-')}-{steps}-{seed}"


def run_all(
    name: str, methods: Sequence[str], records: RecordSet, options: argparse.Namespace
) -> dict[str, list[dict[str, Any]]]:
    """The facts of each method, several runs at a time: small networks leave cores idle."""
    runs = [(method, seed) for method in methods for seed in range(options.seeds)]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        waiting = [pool.submit(run_one, name, *run, records.folder, options) for run in runs]
        for done in tqdm(as_completed(waiting), name, len(runs), unit="run"):
            done.result()
    facts: dict[str, list[dict[str, Any]]] = {}
    for (method, _), run in zip(runs, waiting, strict=True):
        facts.setdefault(method, []).append(run.result())
    return facts


def run_one(name: str, method: str, seed: int, records_folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one run, unless that is done."""
    folder = folder_of(name, method, seed, options.work, options.steps)
    done = folder / "done.json"
    if done.is_file():
        return json.loads(done.read_text())
    keep_compiled_programs()
    records, start, how = RecordSet(records_folder), time.perf_counter(), METHODS[method]
    steps, init = options.steps, None
    if how.first:
        steps //= 2
        first = config_of(name, how, how.first, seed, records.folder, full=options.full, steps=steps)
        init = Init(str(train(first, folder / "first")), HEADS)
    if how.tuned:
        toy = folder_of("toy", BASELINE, seed, options.work, options.steps)
        init = Init(str(toy), ("query_head.*",))  # of another encoder
    train(config_of(name, how, how.changes, seed, records.folder, full=options.full, steps=steps), folder, init=init)
    minutes = (time.perf_counter() - start) / 60
    separator = Separator.load(folder)
    ways = Ways(prompts=(DEFAULT_TEMPLATE,) if kind_of(separator.config).has_encoder else ())
    summary, rows = Evaluation(separator, protocol_of(name, records, options.work), ways).run()
    write_scores(folder / "scores", summary, rows)
    facts = {"minutes": round(minutes, 2), "presence": presence_of(separator, records), "summary": summary}
    done.write_text(json.dumps(facts))
    return facts


def presence_of(separator: Separator, records: RecordSet) -> dict[str, float]:
    """How well absent targets are told, and how loud stems are beside the mixture; empty without queries."""
    if calibrate_model(separator.model_dir.folder, records.folder) is None:
        return {}
    targets = targets_of(Separator.load(separator.model_dir.folder), records, "test")
    return {
        "auc": roc_auc(targets.z, targets.are_there),
        "energy_auc": roc_auc(targets.energy, targets.are_there),
        "absent_db": float(targets.share_db[~targets.are_there].mean()),
        "present_db": float(targets.share_db[targets.are_there].mean()),
    }


def report(name: str, facts: dict[str, list[dict[str, Any]]], folders: dict[str, list[Path]]) -> list[str]:
    """The table of a data set, as lines of Markdown."""
    found = [one for runs in facts.values() for one in runs]
    minutes, num = [one["minutes"] for one in found], found[0]["summary"]["mixture"]["num"]
    ceiling, floor = (found[0]["summary"][way]["sdr_mean"] for way in ("ideal_ratio_mask", "mixture"))
    lines = [
        f"**{TITLES[name]}**: {num} mixtures; the mixture {floor:.2f} dB, the ideal ratio mask {ceiling:.2f} dB; "
        f"{min(minutes):.1f} to {max(minutes):.1f} minutes a run.",
        "",
        "| method | text | its median | image | example | best mask | absent (dB) | present (dB) | AUC | by energy |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method, runs in facts.items():
        cells = [_score(folders, method, way, runs) for way in ("text", "image", "audio", "best_mask")]
        medians = [one["summary"]["text"]["sdr_median"] for one in runs if "text" in one["summary"]]
        cells.insert(1, f"{statistics.mean(medians):.2f}" if medians else "")
        for figure, form in (("absent_db", ".1f"), ("present_db", ".1f"), ("auc", ".3f"), ("energy_auc", ".3f")):
            values = [one["presence"][figure] for one in runs if one["presence"]]
            cells.append(format(statistics.mean(values), form) if values else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return [*lines, ""]


def _score(folders: dict[str, list[Path]], method: str, way: str, runs: Sequence[dict[str, Any]]) -> str:
    """The mean SDR over mixtures and seeds, and what it differs from the baseline's by, with a 95% interval."""
    if any(way not in one["summary"] for one in runs):
        return ""
    own = averaged([read_scored(folder / "scores", way) for folder in folders[method]], method)
    text = f"{statistics.mean(own.scores.values()):.2f}"
    if method == BASELINE or way in ("audio", "best_mask"):
        return text
    baseline = averaged([read_scored(folder / "scores", way) for folder in folders[BASELINE]], BASELINE)
    (difference,) = compare([own, baseline])
    return f"{text} ({difference.mean:+.2f}: {difference.low:+.2f} to {difference.high:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", type=Path, metavar="FOLDER", help="leave it out without this data")
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help="leave it out without this data")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keep records and runs there")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these, beside the baseline")
    parser.add_argument("--sets", nargs="+", choices=tuple(BASES), default=tuple(BASES), help="default: all")
    parser.add_argument("--steps", type=int, default=400, help="of each run (default: 400)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (default: 3)")
    parser.add_argument("--jobs", type=int, default=num_cores(), help="runs at a time (default: one a core)")
    parser.add_argument("--write", action="store_true", help="put the result into docs/results.md")
    parser.add_argument("--full", action="store_true", help="the official size")
    options = parser.parse_args()
    options.work = options.work.absolute()
    lines, start = [_introduction(options)], time.perf_counter()
    for name in options.sets:
        if name in ("esc10", "photos") and getattr(options, name) is None:
            continue
        records = records_of(name, getattr(options, name, None), options.work)
        methods = [m for m in METHODS if name in METHODS[m].sets and (not options.methods or m in options.methods)]
        facts = run_all(name, list(dict.fromkeys([BASELINE, *methods])), records, options)
        tqdm.write(f"{name}: {(time.perf_counter() - start) / 60:.1f} min", file=sys.stderr)
        folders = {
            method: [folder_of(name, method, seed, options.work, options.steps) for seed in range(options.seeds)]
            for method in facts
        }
        lines += report(name, facts, folders)
        if records.query_size and name in WITH_GAP:
            before, after = (gap_of(records, centred=centred) for centred in (False, True))
            lines += [
                f"Held-out pictures and texts lie {before:.2f} of an embedding's length apart, centred {after:.2f}.",
                "",
            ]
    text = "\n".join(lines)
    if options.write:
        path = DOCS / "results.md"
        path.write_text(replaced(path.read_text("utf-8"), text, begin_of("ablations")), "utf-8")
    print(text)


def _introduction(options: argparse.Namespace) -> str:
    place = machine()
    size = "the official size" if options.full else f"clips of 1 s, {options.steps} steps of 8 mixtures"
    return f"{place['cpu']}, {place['cores']} cores; {size}; seeds: {options.seeds}; {options.jobs} runs at a time.\n"


if __name__ == "__main__":
    main()
