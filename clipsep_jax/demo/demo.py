"""The whole job in one command: records, query encoder, training, evaluation, separation, report."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipsep_jax.config import Config
from clipsep_jax.configs import clipsep_nit, clipsep_plus
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.demo.own_videos import prepare_own_videos
from clipsep_jax.demo.page import Example, write_report
from clipsep_jax.demo.toy.records import make_toy_records
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.calibration import calibrate_if_possible, roc_auc, targets_of
from clipsep_jax.evaluation.protocols import draw_mixtures, num_sources_of
from clipsep_jax.evaluation.scores import Evaluation, evaluation_of
from clipsep_jax.evaluation.tables import table, write_scores
from clipsep_jax.files import write_csv, write_json
from clipsep_jax.metrics import score
from clipsep_jax.separation.separator import Separator
from clipsep_jax.sound_files import write_sound
from clipsep_jax.terminal import say
from clipsep_jax.training.curves import read_metrics
from clipsep_jax.training.loop import train

NUM_MIXTURES = 128
EXAMPLES_NAME = "examples.csv"
NUM_EXAMPLES = 4
_NIT, _PLUS = "CLIPSep-NIT", "CLIPSep with what helps beyond the paper"
_PICTURES, _PICTURES_AND_NAMES = "sounds and their pictures alone", "sounds, their pictures and their names"
VIDEO_STEPS = 600
MIN_VIDEO_STEPS = 200  # with fewer, scores say nothing


@dataclass
class Stopwatch:
    """Seconds of each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, announcement: str) -> Iterator[None]:
        """Announces a stage and takes its time."""
        say(f"== {announcement}")
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)

    def report(self) -> dict[str, float]:
        return {"total": round(sum(self.seconds.values()), 2), **self.seconds}


def run_demo(
    out: Path,
    *,
    videos: Path | None = None,
    labels: Path | None = None,
    clip: str | None = None,
    steps: int | None = None,
) -> Path:
    """Runs everything below `out`, on made-up clips or on a folder of videos; finished stages are not done again.

    Args:
        out: gets records/, run/, audio/, figures/, scores/, report.json and report.html.
        videos: folder of videos, in place of the toy set.
        labels: CSV `video,label` of the videos; needed unless `clip` is given.
        clip: CLIP folder or hub id for the videos; without it a miniature one is trained on their pictures and labels.
        steps: training steps of the separator.

    Returns:
        The path of report.html.

    Raises:
        InputError: the videos or the labels cannot be used.
    """
    watch = Stopwatch()
    with watch.stage("data", "Making records and their query encoder"):
        records, config = _own(out, steps, videos, labels, clip) if videos else _toy(out, steps, labels, clip)
    draw_mixtures(records.split("test").entries, NUM_MIXTURES, num_sources_of(config), seed=0)  # fails before training
    system, trained_on = (_NIT, _PICTURES) if videos else (_PLUS, _PICTURES_AND_NAMES)
    with watch.stage("train", f"Training {system} on {trained_on}"):
        train(config, out / "run")
    with watch.stage("evaluate", "Scoring on held-out mixtures"):
        calibrate_if_possible(out / "run", records.folder)
        evaluation = evaluation_of(Separator.load(out / "run"), records, "test", NUM_MIXTURES)
        summary, rows = evaluation.run()
        write_scores(out / "scores", summary, rows)
    with watch.stage("separate", "Separating some of them"):
        examples = separate_examples(evaluation, out / "audio")
    presence = _presence(Separator.load(out / "run"), records)
    report = summary | {"presence": presence, "loss": _fall(read_metrics(out / "run")), "seconds": watch.report()}
    write_json(out / "report.json", report)
    path = write_report(out, report, examples, trained_on)
    _print(summary, report)
    return path


def _presence(separator: Separator, records: RecordSet) -> dict[str, float]:
    """How well the model tells sounds of held-out mixtures from absent ones; empty if it cannot."""
    if separator.presence is None:
        return {}
    try:
        targets = targets_of(separator, records, "test")
    except InputError:  # the held-out clips have too few labels
        return {}
    return {
        "auc": roc_auc(targets.z, targets.are_there),
        "energy_auc": roc_auc(targets.energy, targets.are_there),
        "num_present": int(targets.are_there.sum()),
        "num_absent": int((~targets.are_there).sum()),
    }


def _print(summary: dict[str, Any], report: dict[str, Any]) -> None:
    presence, loss = report["presence"], report["loss"]
    say(table(summary))
    if presence:
        say(
            f"Whether a sound is there: ROC AUC {presence['auc']:.3f} on {presence['num_present']} that are and "
            f"{presence['num_absent']} that are not; by the energy of the stems {presence['energy_auc']:.3f}."
        )
    say(f"Training loss: {loss['first_tenth']:.3f} in the first tenth, {loss['last_tenth']:.3f} in the last.")
    say(f"{report['seconds']['total']:.0f} s in all.")


def _toy(out: Path, steps: int | None, labels: Path | None, clip: str | None) -> tuple[RecordSet, Config]:
    if labels or clip:
        raise InputError("--labels and --clip describe your own videos; give them with --videos.")
    config = clipsep_plus.get_config("toy")
    config.data.records = str(out / "records")
    config.train.steps = steps or config.train.steps
    make_toy_records(out / "records", config.toy.num_clips, config.toy.encoder_steps)
    return RecordSet(out / "records"), Config.from_config_dict(config)


def _own(out: Path, steps: int | None, videos: Path, labels: Path | None, clip: str | None) -> tuple[RecordSet, Config]:
    if steps and steps < MIN_VIDEO_STEPS:
        raise InputError(f"{steps} steps are too few to learn from videos; give --steps {MIN_VIDEO_STEPS} or more.")
    if not labels and not clip:
        raise InputError("Without --clip a miniature one is trained on names: give them with --labels CSV.")
    prepare_own_videos(videos, out / "records", labels, clip)
    records = RecordSet(out / "records")
    config = clipsep_nit.get_config("toy")
    config.toy.num_clips = 0
    config.data.records = str(out / "records")
    config.model.query_size = records.query_size
    config.train.steps = steps or VIDEO_STEPS
    return records, Config.from_config_dict(config)


def _fall(metrics: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean training loss over the first and the last tenth of the run."""
    losses = [line["loss"] for line in metrics]
    tenth = max(1, len(losses) // 10)
    return {"first_tenth": float(np.mean(losses[:tenth])), "last_tenth": float(np.mean(losses[-tenth:]))}


def separate_examples(evaluation: Evaluation, folder: Path) -> list[Example]:
    """Separates the first held-out mixtures of different targets, and writes what goes in and what comes out.

    `examples.csv` tells `clipsep serve` what each mixture is asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first = {mixture.clips[0].label: mixture for mixture in reversed(evaluation.protocol.mixtures)}
    assert evaluation.model is not None
    separator = evaluation.model.separator
    examples = []
    for number, drawn in enumerate(list(first.values())[:NUM_EXAMPLES]):
        mixtures = evaluation.reader.read([drawn])
        mixture, target = mixtures.mixture[0], mixtures.sources[0, 0]
        label, other = mixtures.labels[0]
        queries = evaluation.model.queries(mixtures, evaluation.kinds[0])
        assert queries is not None
        # Through the same path as a user's file.
        stems = separator.separate(mixture, list(queries[0])).stems
        sounds = {"mixture": mixture, "target": target, "estimate": stems[0], "wrong query": stems[1]}
        files = {}
        for name, sound in sounds.items():
            files[name] = folder / f"{number}_{name.replace(' ', '_')}.wav"
            write_sound(files[name], sound.astype(np.float32), separator.sample_rate_hz)
        heard = {name: sound for name, sound in sounds.items() if name != "target"}
        values = score(evaluation.ways.metrics, mixtures.sources[0], np.stack(list(heard.values())))
        scores = {metric: dict(zip(heard, map(float, numbers), strict=True)) for metric, numbers in values.items()}
        examples.append(Example(label, other, sounds, files, scores, evaluation.config.spectrogram))
    rows = [(example.files["mixture"].name, example.label) for example in examples]
    write_csv(folder / EXAMPLES_NAME, ("file", "query"), rows)
    return examples
