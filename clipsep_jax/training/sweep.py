"""An ablation as one program: members that differ in scalars of the objective or optimizer, trained together.

The workdir of a sweep holds

    gamma=0.25/ ...        the training workdir of each member, as `train` leaves it, and its scores/
    sweep.json             what is varied
    sweep.csv              a row per member
    noise_activation.png   mean activation of the noise masks over the varied option (CLIPSep, section 4)
    sdr.png                SDR on held-out mixtures over it; likewise for other metrics
    curves.png             loss and activation during training
    sweep.html             all of it on a page
"""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from clipsep_jax.config import Config
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.evaluation.protocols import draw_mixtures, num_sources_of
from clipsep_jax.evaluation.scores import evaluation_of
from clipsep_jax.evaluation.tables import write_scores
from clipsep_jax.files import read_json, write_json
from clipsep_jax.model_dir import BEST_FOLDER
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.separation.separator import Separator
from clipsep_jax.tensors import WEIGHTS_FILE
from clipsep_jax.terminal import say
from clipsep_jax.training.devices import first_process_alone
from clipsep_jax.training.initial import Init
from clipsep_jax.training.members import train_together
from clipsep_jax.training.sweep_report import PAGE_NAME, summarise_member, text_table, write_report
from clipsep_jax.training.timing import StepTrace
from clipsep_jax.training.workdir import DivergedError

GAMMAS = "0,0.1,0.25,0.5,0.75,1.0"  # the paper's
SPEC_NAME = "sweep.json"

_GROUPS = ("objective", "optimizer")
_SHARED = "objective.name"
_OF_NOISE = ("gamma", "regularizer_weight", "regularizer", "noise_warmup_steps")

Value = float | int | str


@dataclass(frozen=True)
class Variation:
    """An option, such as "objective.gamma", and the values that members take."""

    option: str
    values: tuple[Value, ...]

    @property
    def group(self) -> str:
        return self.option.partition(".")[0]

    @property
    def name(self) -> str:
        return self.option.partition(".")[2]


def read_variation(text: str, config: Config) -> Variation:
    """Reads "config.objective.gamma=0,0.25,1"; values get the type of the config's.

    Raises:
        InputError: there is no such option, it cannot be varied, or a value is of another type or given twice.
    """
    option, _, listed = text.removeprefix("--").removeprefix("config.").partition("=")
    known = [f"{group}.{field.name}" for group in _GROUPS for field in fields(getattr(config, group))]
    known.remove(_SHARED)
    if option not in known:
        raise InputError(f"{option!r} cannot be varied; choose one of {', '.join(known)}.")
    group, name = option.split(".")
    if name in _OF_NOISE and config.objective.name != "noise_invariant":
        raise InputError(
            f"config.{option} does nothing with config.objective.name = {config.objective.name!r}; "
            "sweep it with a config such as configs/clipsep_nit.py."
        )
    kind = type(getattr(getattr(config, group), name))
    values = tuple(_read_value(word.strip(), kind, option) for word in listed.split(","))
    if len(set(values)) < len(values):
        raise InputError(f"{listed!r} names a value of {option} twice.")
    return Variation(option, values)


def _read_value(word: str, kind: type, option: str) -> Value:
    try:
        value = kind(word)
    except ValueError:
        value = None
    if not word or value is None or (kind is float and not math.isfinite(value)):
        raise InputError(f"{word!r} is not a value for config.{option}; give {kind.__name__}s with commas between.")
    return value


def members_of(config: Config, variations: Sequence[Variation]) -> dict[str, Config]:
    """The config of each member by the member's name, such as "gamma=0.25": all combinations of the values.

    Raises:
        InputError: an option is varied twice, or a value contradicts the rest of the config.
    """
    if len({variation.option for variation in variations}) < len(variations):
        raise InputError("An option is varied twice; give all of its values at once.")
    members = {}
    for values in itertools.product(*(variation.values for variation in variations)):
        nested = config.to_dict()
        for variation, value in zip(variations, values, strict=True):
            nested[variation.group][variation.name] = value
        names = [f"{variation.name}={value}" for variation, value in zip(variations, values, strict=True)]
        members[",".join(names)] = Config.from_config_dict(nested)
    return members


def sweep(
    config: Config,
    workdir: Path,
    variations: Sequence[Variation],
    *,
    split: str = "test",
    num_mixtures: int = 256,
    init: Init | None = None,
    allow_changes: Sequence[str] = (),
    trace: StepTrace | None = None,
) -> Path:
    """Trains all members together, scores each and writes the report; run again, it resumes.

    Args:
        split, num_mixtures: the held-out mixtures to score on; with 0 mixtures there are no scores.
        init, allow_changes, trace: as for `train`.

    Returns:
        The path of sweep.html.

    Raises:
        InputError: what `train` refuses, or `workdir` holds another sweep, or the split cannot be scored.
        Interrupted: a signal asked to stop; the state is saved.
    """
    variations = sorted(variations, key=lambda variation: variation.option)
    members = members_of(config, variations)
    records = RecordSet(Path(config.data.records))
    if num_mixtures:
        _check_split(config, records, split, num_mixtures)
    first_process_alone(lambda: _claim(workdir, variations))

    report = partial(_report, workdir, members, variations, records, split, num_mixtures)
    workdirs = [workdir / name for name in members]
    try:
        train_together(
            list(members.values()),
            workdirs,
            init=init,
            allow_changes=allow_changes,
            trace=trace,
        )
    except DivergedError:  # of the last one; there may be good models from before
        first_process_alone(report)
        raise
    first_process_alone(report)
    return workdir / PAGE_NAME


def _report(
    workdir: Path,
    members: dict[str, Config],
    variations: Sequence[Variation],
    records: RecordSet,
    split: str,
    num_mixtures: int,
) -> None:
    """Scores the members, and writes and prints their report."""
    rows = []
    for name, member in members.items():
        scores = _score(workdir / name, records, split, num_mixtures) if num_mixtures else {}
        rows.append(summarise_member(workdir / name, _varied(member, variations), scores))
    write_report(workdir, [variation.option for variation in variations], rows)
    say(text_table(rows))


def _varied(config: Config, variations: Sequence[Variation]) -> dict[str, Value]:
    """The values of a member by option."""
    return {variation.option: getattr(getattr(config, variation.group), variation.name) for variation in variations}


def _check_split(config: Config, records: RecordSet, split: str, num_mixtures: int) -> None:
    if split not in records.splits:
        raise InputError(
            f"{records.folder} has no split {split!r} to score on; give --split with one of "
            f"{', '.join(records.splits)}, or --num-mixtures 0 for no scores."
        )
    clips = records.split(split)
    kind_of(config).scored_by(clips.entries)
    draw_mixtures(clips.entries, num_mixtures, num_sources_of(config), seed=0)


def _claim(workdir: Path, variations: Sequence[Variation]) -> None:
    """Records the sweep in its workdir, and refuses a workdir of something else."""
    varied = {variation.option: sorted(variation.values) for variation in variations}
    path = workdir / SPEC_NAME
    if path.is_file():
        stored = read_json(path, "is damaged; restore it, or use another --workdir.", dict)
        if stored != varied:
            raise InputError(f"{workdir} holds a sweep over {stored}, not {varied}; use another --workdir.")
        return
    if workdir.is_dir() and any(path.suffix != ".partial" for path in workdir.iterdir()):
        raise InputError(f"{workdir} holds something other than a sweep; use another --workdir.")
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, varied)


def _score(workdir: Path, records: RecordSet, split: str, num_mixtures: int) -> dict[str, dict]:
    """The summary of a member's scores; empty if it has no model that can be scored."""
    if not (workdir / BEST_FOLDER / WEIGHTS_FILE).is_file():
        return {}
    say(f"Scoring {workdir.name}")
    try:
        summary, rows = evaluation_of(Separator.load(workdir), records, split, num_mixtures).run()
    except InputError as error:  # a diverged member does not cost the others their report
        warnings.warn(f"{workdir.name} has no scores: {error}", InputWarning, stacklevel=2)
        return {}
    write_scores(workdir / "scores", summary, rows)
    return summary
