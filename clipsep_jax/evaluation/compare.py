"""Which of several systems is better, by paired statistics on the mixtures that all of them were scored on.

With some 50 to 100 mixtures the standard error of a mean score is near 1 dB, while systems differ by less; differences
on the same mixture spread far less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import scipy.stats
from jaxtyping import Float

from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.scores import column
from clipsep_jax.evaluation.tables import ROWS_NAME
from clipsep_jax.files import MOST_LIST_BYTES, check_is_file, read_json_lines
from clipsep_jax.metrics import CHIEF, METRICS

RESAMPLES = 10_000
CONFIDENCE = 0.95
_FEWEST_GROUPS = 5  # fewer say nothing of how they spread
_ROUNDING = 1e-9
_WANTED_DIFFERENCE_DB = 0.3
_POWER = 0.8  # with which it should be found


@dataclass(frozen=True)
class Scored:
    """One way of estimation in one file of scores.

    Attributes:
        name: for tables.
        scores: by mixture, of those that are counted; a mixture is the ids of its clips, the target first, and where
            they are cut if its list says so.
        labels: of the targets.
    """

    name: str
    scores: Mapping[tuple[str, ...], float]
    labels: Mapping[tuple[str, ...], str]


@dataclass(frozen=True)
class Difference:
    """How much better one system is than another, on the mixtures that both have.

    Attributes:
        first, second: names.
        num: mixtures.
        mean: of the differences, first less second, in dB.
        low, high: the bootstrap's interval of the mean.
        wins: mixtures on which the first is better; `losses` likewise.
        sign_p: probability of so uneven wins and losses if none were better (two-sided sign test).
        needed: mixtures to find a difference of 0.3 dB of systems that differ so much from mixture to mixture.
    """

    first: str
    second: str
    num: int
    mean: float
    low: float
    high: float
    wins: int
    losses: int
    sign_p: float
    needed: int

    @property
    def is_real(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    @property
    def sentence(self) -> str:
        """What the figures say."""
        sign, better, worse = (1, self.first, self.second) if self.mean >= 0 else (-1, self.second, self.first)
        low, high = sorted((sign * self.low, sign * self.high))
        figures = f"{abs(self.mean):.2f} dB (95% interval {low:+.2f} to {high:+.2f}, {self.num} mixtures"
        if not self.is_real:
            return f"{self.first} and {self.second} cannot be told apart: {better} leads by {figures})."
        return f"{better} is better than {worse}: {figures}; sign test p = {self.sign_p:.2g})."


def read_scored(path: Path, way: str | None, metric: str = CHIEF) -> Scored:
    """The scores of one way of estimation.

    Args:
        path: mixtures.jsonl, or the folder that `clipsep evaluate --out` wrote.
        way: of estimation; None for the first that is neither a floor nor a ceiling.

    Raises:
        InputError: the file is missing or of something else, or lacks the way or the metric.
    """
    file = path / ROWS_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"There is no {file}; give what `clipsep evaluate --out` wrote.")
    check_is_file(file, MOST_LIST_BYTES)
    rows = read_json_lines(file, "is not a file of scores; give what `clipsep evaluate --out` wrote.", dict)
    ways = list(dict.fromkeys(way for row in rows for way in _texts(row.get("ways"))))
    if not ways:
        raise InputError(f"{file} has no scores of mixtures; give what `clipsep evaluate --out` wrote.")
    way = way or next((each for each in ways if not each.startswith(("mixture", "ideal_"))), ways[0])
    if way not in ways:
        raise InputError(f"{file} has no scores by {way!r}; it has {', '.join(ways)}.")
    name = column(way, metric)
    if not any(name in row for row in rows):
        raise InputError(f"{file} has no {METRICS[metric].title} of {way}; evaluate with --metrics {metric}.")
    counted = {_key(row, file): row for row in rows if row.get(name) is not None}
    return Scored(
        f"{_system(file)}:{way}",
        {key: _number(row[name], file) for key, row in counted.items()},
        {key: str(row.get("target_label", "")) for key, row in counted.items()},
    )


def _texts(value: object) -> list[str]:
    """A list of texts; empty where it is something else."""
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else []


def _system(file: Path) -> str:
    """A name for tables: the folder, but not one that is just called scores."""
    folder = file.resolve().parent
    return folder.parent.name if folder.name == "scores" else folder.name


def _key(row: Mapping, file: Path) -> tuple[str, ...]:
    """The ids of a mixture's clips, and where they are cut if a list says so."""
    ids = _texts([row.get("target"), row["interferer"]] if "interferer" in row else None)
    ids = ids or _texts([row.get("target"), *_texts(row.get("interferers"))])
    if len(ids) < 2:
        raise InputError(f"{file} has a line without the ids of its clips; give what `clipsep evaluate --out` wrote.")
    return (*ids, str(row["cut_by"])) if "cut_by" in row else tuple(ids)


def _number(value: object, file: Path) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else np.nan
    except OverflowError:
        number = np.inf
    if not np.isfinite(number):
        raise InputError(f"{file} has a score that is no finite number ({str(value)[:40]}); evaluate again.")
    return number


def common_mixtures(systems: Sequence[Scored]) -> list[tuple[str, ...]]:
    """The mixtures that all systems were scored on, in the first one's order.

    Raises:
        InputError: there are none.
    """
    common = [key for key in systems[0].scores if all(key in system.scores for system in systems[1:])]
    if not common:
        names = " and ".join(system.name for system in systems)
        raise InputError(f"No mixture is scored in {names} alike; evaluate them on the same protocol.")
    return common


def compare(systems: Sequence[Scored], *, by_label: bool = False, seed: int = 0) -> list[Difference]:
    """Every two systems, on the mixtures that all of them have.

    Args:
        by_label: resample labels of targets with all their mixtures, for what holds beyond these labels.
    """
    common = common_mixtures(systems)
    labels = [systems[0].labels[key] for key in common] if by_label else None
    values = {system.name: np.array([system.scores[key] for key in common]) for system in systems}
    return [
        _difference(first.name, second.name, values[first.name] - values[second.name], labels, seed)
        for first, second in combinations(systems, 2)
    ]


def _difference(
    first: str, second: str, differences: Float[np.ndarray, " n"], labels: Sequence[str] | None, seed: int
) -> Difference:
    low, high = bootstrap_interval(differences, labels, seed=seed)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    sign_p = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return Difference(
        first,
        second,
        len(differences),
        float(differences.mean()),
        low,
        high,
        wins,
        losses,
        float(sign_p),
        mixtures_needed(differences),
    )


def bootstrap_interval(
    differences: Float[np.ndarray, " n"],
    labels: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95% interval of the mean, by resampling mixtures, or labels with all their mixtures; studentised.

    Infinite where there are fewer than five of them. The bootstrap-t (Efron and Tibshirani, 1993, section 12.5): plain
    quantiles of resampled means are too narrow for few mixtures.
    """
    groups = np.arange(len(differences)) if labels is None else np.unique(list(labels), return_inverse=True)[1]
    sums = np.bincount(groups, differences)
    counts = np.bincount(groups)
    if len(sums) < _FEWEST_GROUPS:
        return -np.inf, np.inf
    rng = np.random.default_rng(seed)
    mean, error = _mean_and_error(sums[None], counts[None])
    if error[0] <= _ROUNDING * np.abs(differences).max():  # all alike
        return float(mean[0]), float(mean[0])
    statistics = []
    for _ in range(0, resamples, 1000):  # bounds the memory
        drawn = rng.integers(0, len(sums), (min(1000, resamples), len(sums)))
        means, errors = _mean_and_error(sums[drawn], counts[drawn])
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (means - mean) / errors
        # One group, drawn again and again, has no spread: its mean is infinitely far off, unless it is the mean itself.
        far = np.where(np.abs(means - mean) > _ROUNDING * error, np.copysign(np.inf, means - mean), 0.0)
        statistics.append(np.where(errors > _ROUNDING * error, found, far))
    ends = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(np.concatenate(statistics), ends, method="nearest")
    return float(mean[0] - high * error[0]), float(mean[0] - low * error[0])


def _mean_and_error(
    sums: Float[np.ndarray, "r g"], counts: np.ndarray
) -> tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]]:
    """The mean over all mixtures, and its standard error with groups as what is drawn (a ratio estimator)."""
    mean = sums.sum(axis=1) / counts.sum(axis=1)
    residuals = sums - mean[:, None] * counts
    number = sums.shape[1]
    return mean, np.sqrt(number / (number - 1) * np.square(residuals).sum(axis=1)) / counts.sum(axis=1)


def mixtures_needed(differences: Float[np.ndarray, " n"]) -> int:
    """Mixtures to find a mean difference of 0.3 dB four times in five, if differences spread as these do."""
    if len(differences) < 2:
        return 0
    quantiles = scipy.stats.norm.ppf([(1 + CONFIDENCE) / 2, _POWER]).sum()
    return int(np.ceil((quantiles * differences.std(ddof=1) / _WANTED_DIFFERENCE_DB) ** 2))
