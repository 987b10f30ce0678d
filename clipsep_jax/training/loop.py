"""The training loop: batches in, checkpoints, curves and a model directory out; resumed by running it again.

A workdir holds

    metrics.jsonl   a line each `log_every` steps
    tensorboard/    the same as curves, and masks and sounds of a few mixtures
    checkpoints/    Orbax: the latest steps and the best one
    best/           the best model so far, as a model directory

Several members (see `JointTrainer`) are trained together by the same loop; each has a workdir of its own.
"""

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import jax
from jaxtyping import Array
from tqdm import tqdm

from clipsep_jax.config import Config
from clipsep_jax.errors import EXIT_INTERRUPTED, InputError
from clipsep_jax.model_dir import BEST_FOLDER
from clipsep_jax.training.devices import first_process_alone, put_ahead, told_by_first
from clipsep_jax.training.previews import Samples
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import TrainState
from clipsep_jax.training.stopping import Interrupted, StopRequest, Watchdog, stop_on_signal
from clipsep_jax.training.timing import Goodput, StepTrace
from clipsep_jax.training.workdir import Member


def train(config: Config, workdir: Path, *, allow_changes: Sequence[str] = (), trace: StepTrace | None = None) -> Path:
    """Trains to `config.train.steps`, going on from the latest whole checkpoint of `workdir` if there is one.

    Args:
        allow_changes: options that may differ from those of the checkpoint, such as "train.steps".
        trace: records what the steps of a window take.

    Returns:
        The model directory of the best model (without a validation split: the latest).

    Raises:
        InputError: the config, the records or the workdir cannot be used, or too many steps were not finite.
        Interrupted: a signal asked to stop; the state is saved.
    """
    train_together([config], [workdir], allow_changes=allow_changes, trace=trace)
    return workdir / BEST_FOLDER


def train_together(
    configs: Sequence[Config],
    workdirs: Sequence[Path],
    *,
    allow_changes: Sequence[str] = (),
    trace: StepTrace | None = None,
) -> None:
    """Trains several members at once, each in a workdir as `train` leaves it; arguments and errors as there.

    Where the loss of a member is no number any more, the others go on without it; its given_up.json says so.
    """
    if len(configs) > 1 and configs[0].checkpoint.keep_latest < 2:
        raise InputError("config.checkpoint.keep_latest is 1; members need 2, so that they always share a step.")
    run = Run(*configs)
    with ExitStack() as stack:
        members = [stack.enter_context(Member(run, number, workdir)) for number, workdir in enumerate(workdirs)]
        stop = stack.enter_context(stop_on_signal())
        state, start = run.trainer.init(), _step_to_go_on_from(members)
        if start:
            state = run.trainer.stack(*[member.restore(start, state, allow_changes) for member in members])
        for member in members:
            member.checkpoints.forget_after(start)
            member.begin(start, state, [other for other in members if other is not member])
        if not run.validation_batches:
            tqdm.write(
                f"{run.records.folder} has no split {run.config.data.validation_split!r} with enough clips for a "
                "mixture: the latest model is kept as the best."
            )
        _loop(run, state, start, members, stop, stack.enter_context(trace or StepTrace()))


def _step_to_go_on_from(members: Sequence[Member]) -> int:
    """What `_latest_common_step` finds in the first process; views of a shared disk may differ."""
    found = []
    first_process_alone(lambda: found.append(_latest_common_step(members)))
    return told_by_first(found[0] if found else 0)


def _latest_common_step(members: Sequence[Member]) -> int:
    """The last step of which all members have a whole checkpoint; 0 where no member has one, or some the first alone.

    Raises:
        InputError: there are checkpoints, but no step is common, which no interruption leads to.
    """
    stored = {member.workdir.name: member.checkpoints.steps for member in members}
    common = set.intersection(*map(set, stored.values()))
    if common:
        return max(common)
    saved = {step for steps in stored.values() for step in steps}
    told = ", ".join(f"{name} has {steps or 'none'}" for name, steps in stored.items())
    folders = [member.checkpoints.damaged_folder for member in members]
    damaged = ", ".join(str(folder) for folder in folders if folder.is_dir())
    if damaged:
        raise InputError(
            f"There is no whole checkpoint to go on from ({told}); nothing was deleted. Restore what is missing from a "
            f"backup (damaged ones lie in {damaged}), or use another --workdir."
        )
    if len(saved) > 1:
        raise InputError(
            f"The members share no checkpoint to go on from ({told}); nothing was deleted. Restore what is missing, "
            "or use another --workdir."
        )
    if saved:
        members[0].tell(f"The first save was interrupted ({told}); all members begin anew.")
    return 0


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
    run: Run, state: TrainState, start: int, members: Sequence[Member], stop: StopRequest, trace: StepTrace
) -> None:
    config, steps = run.config, run.config.train.steps
    first, on_screen = jax.process_index() == 0, sys.stderr.isatty()
    progress = tqdm(total=steps, initial=start, unit="step", desc="train", disable=not (first and on_screen))
    goodput, speed, samples = Goodput(), Speed(start), Samples(run)
    batches = put_ahead(run.train_batches.iterate(start), run.mesh)
    counts: list[Array] = []  # of skipped steps, not fetched yet
    with progress, Watchdog(config.train.hang_seconds) as watchdog:
        for step in range(start + 1, steps + 1):
            with goodput.during("input"):
                batch = next(batches)
            state, metrics = trace.run(step, run.trainer.train_step, state, batch, run.encoder_state)
            counts.append(metrics["skipped_steps"])
            progress.update()
            watchdog.step()
            last = stop.stops_at(step) or step == steps
            validating = step % config.train.validate_every == 0 or step == steps
            with goodput.during("validation"):
                validation = run.validate(state) if validating else [{} for _ in members]
                if validating:
                    samples.show([member.log.board for member in members], step, state)
            logging = any(validation) or step % config.train.log_every == 0 or step == steps
            saving = last or any(validation) or step % config.checkpoint.save_every == 0
            if logging or saving:
                for member, losses in zip(members, validation, strict=True):
                    member.read(step, metrics, losses, counts)
                counts.clear()
                shown = _shown(members)
                progress.set_postfix(shown)
            if logging:
                steps_per_second = speed.since_last(step)
                for member in members:
                    member.log.write(step, member.scalars, {"steps_per_second": steps_per_second} | goodput.shares())
                if first and not on_screen:  # a file takes no bar
                    told = " ".join(f"{name} {value}" for name, value in shown.items())
                    print(f"step {step}/{steps} {told} {steps_per_second:.2f} steps/s", file=sys.stderr, flush=True)
                with goodput.during("checkpoint"):
                    for member in members:
                        member.checkpoints.seal()
            if saving:
                with goodput.during("checkpoint"):
                    _save(step, state, members)
            if validating and first and (step == steps or not on_screen):
                tqdm.write(str(goodput), file=sys.stderr)
            if last and step < steps:
                raise Interrupted(step, stop.exit_code or EXIT_INTERRUPTED)


def _save(step: int, state: TrainState, members: Sequence[Member]) -> None:
    """Save all members; none begins before the last save of all is finished, so that they always share a step."""
    for member in members:
        member.checkpoints.wait()
    for member in members:
        member.save(step, state)


def _shown(members: Sequence[Member]) -> dict[str, str]:
    """The losses for the console: of several members, the least and the largest."""
    names = {name: None for member in members for name in member.scalars if name == "loss" or "validation" in name}
    values = {name: [member.scalars[name] for member in members if name in member.scalars] for name in names}
    return {
        name: f"{least:.4f}" if (least := min(of)) == (most := max(of)) else f"{least:.4f}..{most:.4f}"
        for name, of in values.items()
    }
