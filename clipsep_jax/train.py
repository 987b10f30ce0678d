"""The training loop: batches in, checkpoints, curves and a model directory out; resumed by running it again.

A workdir holds

    metrics.jsonl   a line each `log_every` steps
    tensorboard/    the same as curves
    checkpoints/    Orbax: the latest steps and the best one
    best/           the best model so far, as a model directory
"""

import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array
from tqdm import tqdm

from clipsep_jax.checkpoint import Checkpoints
from clipsep_jax.config import Config
from clipsep_jax.distributed import local_batch_size, make_mesh, put_ahead, put_batch, replicated
from clipsep_jax.encoders.clip import ClipEncoder
from clipsep_jax.encoders.loading import load_encoder, split_name
from clipsep_jax.encoders.resnet import ResnetEncoder
from clipsep_jax.goodput import Goodput
from clipsep_jax.input import Batches, build_batches
from clipsep_jax.metrics_log import MetricsLog
from clipsep_jax.model_dir import BEST_FOLDER, WEIGHTS_FILE, start_model_dir, write_weights
from clipsep_jax.records import LABEL_EMBEDDINGS_NAME, EncoderInfo, RecordSet
from clipsep_jax.stopping import EXIT_INTERRUPTED, Interrupted, StopRequest, Watchdog, stop_on_signal
from clipsep_jax.structures import InputError, InputWarning
from clipsep_jax.train_step import Trainer, TrainState


class Run:
    """The parts of one training run, built once and checked before anything is written."""

    def __init__(self, config: Config, workdir: Path):
        self.records = RecordSet(Path(config.data.records))
        self.config = config = fit_to_records(config, self.records)
        self.workdir = workdir
        self.encoder = find_encoder(config, self.records)
        self.mesh = make_mesh()
        encoder = self._load_encoder()
        self.encoder_state = jax.device_put(encoder.state, replicated(self.mesh)) if encoder else None
        self.trainer = Trainer(config, encoder.encode_images if encoder else None, self.mesh)
        self.gather = jax.jit(lambda tree: tree, out_shardings=replicated(self.mesh))
        self.train_batches = self._batches(config.data.train_split, config.query.kind, training=True)
        self.validation_batches = {
            kind: self._batches(config.data.validation_split, kind, training=False) for kind in self._validated_kinds()
        }

    def _load_encoder(self) -> ClipEncoder | ResnetEncoder | None:
        if self.config.query.source != "frames":
            return None
        assert self.encoder is not None
        encoder = load_encoder(self.encoder.name)
        if encoder.query_size != self.config.model.query_size:
            raise InputError(
                f"{self.encoder.name} makes embeddings of size {encoder.query_size}; "
                f"set --config.model.query_size={encoder.query_size}."
            )
        return encoder

    def _batches(self, split: str, kind: str, *, training: bool) -> Batches:
        spare = max(0, self.config.data.drop_closest) if training else 0
        return build_batches(
            self.config,
            self.records,
            split,
            kind,
            training=training,
            batch_size=local_batch_size(self.config.data.batch_size + spare, self.mesh),
            process_index=jax.process_index(),
            num_processes=jax.process_count(),
        )

    def _validated_kinds(self) -> list[str]:
        """The kind that models are chosen by; beside image, text too where every clip has a label with an embedding."""
        if self.config.data.validation_split not in self.records.splits:
            return []
        entries = self.records.split(self.config.data.validation_split).entries
        if len(entries) < self.config.data.num_sources:
            return []
        has_texts = all(entry.label for entry in entries) and (self.records.folder / LABEL_EMBEDDINGS_NAME).is_file()
        same_encoder = self.encoder and self.records.encoder and self.encoder.sha256 == self.records.encoder.sha256
        return (
            [self.chosen_by, "text"] if self.chosen_by == "image" and has_texts and same_encoder else [self.chosen_by]
        )

    @property
    def chosen_by(self) -> str:
        """The kind of query whose validation loss chooses the best model."""
        return "image" if self.config.query.kind == "hybrid" else self.config.query.kind

    def validate(self, state: TrainState) -> dict[str, float]:
        """Mean loss over the first validation batches, for each kind of query."""
        losses = {}
        for kind, batches in self.validation_batches.items():
            parts = [
                self.trainer.validation_step(state, put_batch(batches[i], self.mesh), self.encoder_state)
                for i in range(self.config.train.validation_batches)
            ]
            losses[f"validation_loss_{kind}"] = float(np.mean([np.asarray(part) for part in parts]))
        return losses


def fit_to_records(config: Config, records: RecordSet) -> Config:
    """The config with the sizes that its kind of query takes from the data: labels, or sources to tell apart."""
    if config.query.kind == "label":
        return replace(config, model=replace(config.model, num_labels=len(records.labels)))
    if config.query.kind == "none":
        return replace(config, model=replace(config.model, num_learned_queries=config.data.num_sources))
    return config


def find_encoder(config: Config, records: RecordSet) -> EncoderInfo | None:
    """The query encoder of a run: the config's, or else the one that prepared the records.

    Raises:
        InputError: it is not there any more, or is not the one that made the stored embeddings.
    """
    if config.query.kind in ("label", "sentence", "none"):
        return None
    name = config.query.encoder or (records.encoder.name if records.encoder else "")
    if not name:
        if config.query.source == "frames":
            raise InputError(f"{records.folder} names no encoder; give one with --config.query.encoder=FOLDER_OR_ID.")
        return None
    place = Path(split_name(name)[1])
    if not place.exists() and (place.is_absolute() or place.parts[:1] in ((".",), ("..",))):
        raise InputError(f"The query encoder {name} is not there any more; give it with --config.query.encoder=FOLDER.")
    if not config.query.encoder and records.encoder:
        return records.encoder
    encoder = load_encoder(name)
    if config.query.source == "embeddings" and records.encoder and encoder.sha256 != records.encoder.sha256:
        raise InputError(f"The embeddings in {records.folder} were made by {records.encoder.name}, not by {name}.")
    return EncoderInfo(encoder.name, encoder.sha256, encoder.query_size)


def train(config: Config, workdir: Path, *, allow_changes: Sequence[str] = ()) -> Path:
    """Trains to `config.train.steps`, going on from the latest whole checkpoint of `workdir` if there is one.

    Args:
        allow_changes: options that may differ from those of the checkpoint, such as "train.steps".

    Returns:
        The model directory of the best model (without a validation split: the latest).

    Raises:
        InputError: the config, the records or the workdir cannot be used, or too many steps were not finite.
        Interrupted: a signal asked to stop; the state is saved.
    """
    run = Run(config, workdir)
    best = workdir / BEST_FOLDER
    with Checkpoints(workdir / "checkpoints", run.config) as checkpoints, stop_on_signal() as stop:
        state = run.trainer.init()
        start = checkpoints.latest_whole_step() or 0
        if start:
            checkpoints.check_config(start, allow_changes)
            state = checkpoints.restore(start, state)
        if jax.process_index() == 0:
            labels = run.records.labels if run.config.query.kind == "label" else ()
            table = Path(config.query.table) if config.query.table else None
            start_model_dir(best, run.config, run.encoder, labels, table)
        if not run.validation_batches:
            tqdm.write(
                f"{run.records.folder} has no split {config.data.validation_split!r} with enough clips for a mixture: "
                "the latest model is kept as the best."
            )
        with MetricsLog(workdir, start, writing=jax.process_index() == 0) as log:
            _loop(run, state, start, checkpoints, log, stop)
    return best


@dataclass
class SkippedSteps:
    """Notices steps that changed nothing, because their loss or a gradient was not finite.

    The step itself counts them; the counts are fetched only where the last one says that there were new ones.
    """

    run: Run
    counted: float
    in_row: int = 0
    counts: list[Array] = field(default_factory=list)  # after each step since the last look

    def look(self, step: int, total: float) -> None:
        """Warn of those up to `step`, naming the clips; `total` is the last count.

        Raises:
            InputError: there were too many in a row.
        """
        counts, self.counts = self.counts, []
        if total == self.counted:
            self.in_row = 0
            return
        before = [self.counted, *map(float, counts)]
        self.counted = total
        for number, (old, new) in enumerate(pairwise(before)):
            self.in_row = self.in_row + 1 if new > old else 0
            if self.in_row:
                self._warn(step - len(counts) + 1 + number)

    def _warn(self, step: int) -> None:
        clips = ", ".join(self.run.train_batches.ids(step - 1))
        if self.in_row >= self.run.config.train.max_skipped_in_row:
            raise InputError(
                f"The loss or a gradient was not finite in {self.in_row} steps in a row, up to step {step} "
                f"(of {clips}); lower --config.optimizer.learning_rate or look at those clips, and run again."
            )
        warnings.warn(
            f"Step {step} changed nothing: its loss or a gradient was not finite. It held {clips}.",
            InputWarning,
            stacklevel=4,
        )


@dataclass
class Speed:
    """Steps a second between two looks."""

    step: int
    time: float = field(default_factory=time.perf_counter)

    def since_last(self, step: int) -> float:
        now = time.perf_counter()
        steps, seconds = step - self.step, now - self.time
        self.step, self.time = step, now
        return steps / max(seconds, 1e-9)


def _loop(
    run: Run, state: TrainState, start: int, checkpoints: Checkpoints, log: MetricsLog, stop: StopRequest
) -> None:
    config, steps = run.config, run.config.train.steps
    best_loss = checkpoints.best_loss
    first, on_screen = jax.process_index() == 0, sys.stderr.isatty()
    progress = tqdm(total=steps, initial=start, unit="step", desc="train", disable=not (first and on_screen))
    goodput, speed = Goodput(), Speed(start)
    batches = put_ahead(run.train_batches.iterate(start), run.mesh)
    skipped = SkippedSteps(run, float(state.skipped))
    with progress, Watchdog(config.train.hang_seconds) as watchdog:
        for step in range(start + 1, steps + 1):
            with goodput.during("input"):
                batch = next(batches)
            state, metrics = run.trainer.train_step(state, batch, run.encoder_state)
            skipped.counts.append(metrics["skipped_steps"])
            progress.update()
            watchdog.step()
            last = stop.stops_at(step) or step == steps
            validation = {}
            if step % config.train.validate_every == 0 or step == steps:
                with goodput.during("validation"):
                    validation = run.validate(state)
            saving = last or bool(validation) or step % config.checkpoint.save_every == 0
            if saving or step % config.train.log_every == 0:
                scalars = {name: float(value) for name, value in metrics.items()}
                skipped.look(step, scalars["skipped_steps"])
                _check_finite(validation, step)
                scalars = {name: value for name, value in (scalars | validation).items() if math.isfinite(value)}
                shown = {name: f"{scalars[name]:.4f}" for name in ("loss", *validation) if name in scalars}
                progress.set_postfix(shown)
            if validation or step % config.train.log_every == 0 or step == steps:
                log.write(step, scalars)
                if first and not on_screen:  # a file takes no bar
                    told = " ".join(f"{name} {value}" for name, value in shown.items())
                    print(
                        f"step {step}/{steps} {told} {speed.since_last(step):.2f} steps/s", file=sys.stderr, flush=True
                    )
                with goodput.during("checkpoint"):
                    checkpoints.seal()
            if saving:
                _check_finite({"norm of the parameters": float(optax.tree.norm(state.params))}, step)
                selected = validation.get(f"validation_loss_{run.chosen_by}")
                with goodput.during("checkpoint"):
                    if selected is not None and selected < best_loss:
                        best_loss = selected
                        _write_best(run, state, step, selected)
                    elif not run.validation_batches or not (run.workdir / BEST_FOLDER / WEIGHTS_FILE).is_file():
                        _write_best(run, state, step, None)
                    checkpoints.save(step, state, selected)
            if last and step < steps:
                raise Interrupted(step, stop.exit_code or EXIT_INTERRUPTED)
    if first and start < steps:
        tqdm.write(str(goodput), file=sys.stderr)


def _check_finite(scalars: dict[str, float], step: int) -> None:
    for name, value in scalars.items():
        if not math.isfinite(value):
            raise InputError(
                f"The {name} of step {step} is {value}; lower --config.optimizer.learning_rate and run again, "
                "which starts from the checkpoint before."
            )


def _write_best(run: Run, state: TrainState, step: int, validation_loss: float | None) -> None:
    params, batch_stats = run.gather((state.params, state.batch_stats))  # every process takes part
    if jax.process_index() == 0:
        model = nnx.merge(run.trainer.graphdef, params, batch_stats, copy=True)
        write_weights(run.workdir / BEST_FOLDER, model, step, validation_loss)
