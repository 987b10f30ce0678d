"""Scores on held-out mixtures: how much of the target comes through for its query, and for the wrong one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from clipsep_jax.config import Config
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.estimates import DEFAULT_WAYS, ModelWays, Ways, ceilings, is_oracle
from clipsep_jax.evaluation.mixtures import MixtureReader, Mixtures, needs_pictures
from clipsep_jax.evaluation.others import OtherSystem
from clipsep_jax.evaluation.protocols import HeldOutMixture, Protocol, drawn_protocol, num_sources_of
from clipsep_jax.evaluation.retrieval import Retrieval
from clipsep_jax.metrics import CHIEF, METRICS, score, summarise
from clipsep_jax.queries.kinds import KINDS
from clipsep_jax.separation.separator import Separator

BATCH = 8
SILENCE = 1e-5  # sum of |x| up to which the official evaluation leaves a mixture out

# Beside the ways of estimation.
_KEYS_OF_SUMMARY = ("skipped", "by_label", "protocol", "ways", "retrieval")
_KEYS_OF_ROWS = ("target", "interferer", "interferers", "target_label", "ways", "cut_by", "not_counted")
_TAKEN_BEGINNINGS = ("prompt_", "wrong_", *(f"{name}_" for name in METRICS))

Scores = dict[str, dict[str, float]]  # of one mixture, by way of estimation and metric
Row = dict[str, Any]


class Evaluation:
    """One model, or none, on the mixtures of a protocol, and estimates of other systems beside it.

    Attributes:
        kinds: of queries that are scored: "text" (where every clip has a label) and "image" for models of CLIP
            embeddings, "label" or "sentence" for models of those, "best_mask" for models without queries: the mask
            that fits the target best, an oracle.
        protocol: the mixtures that `run` scores.
    """

    def __init__(
        self,
        separator: Separator | None,
        protocol: Protocol,
        ways: Ways = DEFAULT_WAYS,
        others: Sequence[OtherSystem] = (),
    ):
        """Prepare to score.

        Raises:
            InputError: the clips lack the labels or pictures that the model needs, or the model what `ways` asks for.
        """
        self.protocol, self.ways, self.others = protocol, ways, tuple(others)
        self.config = separator.config if separator else Config()
        self.reader = MixtureReader(self.config, protocol, separator)
        self.model = ModelWays(separator, self.reader, ways) if separator else None
        self.kinds = self.model.kinds if self.model else ()
        self.retrieval = Retrieval(self.config.spectrogram)
        taken = {
            *_KEYS_OF_SUMMARY,
            *_KEYS_OF_ROWS,
            "mixture",
            "text_and_image",
            *(kind.score_name for kind in KINDS.values()),
        }
        for other in self.others:
            if other.name in taken or is_oracle(other.name) or other.name.startswith(_TAKEN_BEGINNINGS):
                raise InputError(f"{other.folder} has a name that scores use already; rename it.")
            taken.add(other.name)

    def scores(self, mixtures: Mixtures) -> list[tuple[Scores, dict[str, str]]]:
        """Of each mixture: every metric of each way to estimate the target, and why some ways are not counted."""
        estimates = {"mixture": mixtures.mixture[:, None], **ceilings(mixtures, self.config.spectrogram)}
        if self.model:
            estimates |= self.model.estimates(mixtures, self.retrieval)
        for other in self.others:
            estimates[other.name] = other.read(mixtures.held_out, self.reader.num_samples)[:, None]
        length = self.reader.num_scored
        return [
            self._scores({name: sounds[i, :, :length] for name, sounds in estimates.items()}, sources[:, :length])
            for i, sources in enumerate(mixtures.sources)
        ]

    def _scores(
        self, estimates: Mapping[str, Float[np.ndarray, "A L"]], sources: Float[np.ndarray, "N L"]
    ) -> tuple[Scores, dict[str, str]]:
        """The scores of one mixture."""
        faults = {name: fault for name, sounds in estimates.items() if (fault := _fault(sounds, sources))}
        by_model = estimates.keys() - {"mixture", *(other.name for other in self.others)} - faults.keys()
        complete = [
            name for name in by_model if not is_oracle(name) and _has_silent_complement(estimates[name], sources)
        ]
        faults |= dict.fromkeys(complete, "silent complement")
        if (np.abs(sources).sum(axis=-1) <= SILENCE).any():
            return {}, dict.fromkeys(estimates, "silent source")
        counted = [name for name in estimates if name not in faults]
        values = score(self.ways.metrics, sources, np.concatenate([estimates[name] for name in counted]))
        ends = np.cumsum([len(estimates[name]) for name in counted])
        found = {
            name: {
                metric: float(numbers[end - len(estimates[name]) : end].mean()) for metric, numbers in values.items()
            }
            for name, end in zip(counted, ends, strict=True)
        }
        broken = [name for name, by_metric in found.items() if not np.isfinite(list(by_metric.values())).all()]
        return found, faults | dict.fromkeys(broken, "no finite score")

    def run(self, *, progress: bool = True) -> tuple[dict[str, dict], list[Row]]:
        """Summaries by way of estimation, and a row per mixture.

        What has no score is not averaged: a mixture cut where a source is silent (`skipped`), and an estimate that is
        silent, perfect or not finite (`not_counted`, by reason).

        Raises:
            InputError: nothing can be scored, or the model gives values that are not finite.
        """
        rows: list[Row] = []
        mixtures = self.protocol.mixtures
        batches = [mixtures[i : i + BATCH] for i in range(0, len(mixtures), BATCH)]
        for batch in tqdm(batches, desc="evaluate", unit="batch", disable=not progress):
            read = self.reader.read([*batch, *[batch[-1]] * (BATCH - len(batch))], num_real=len(batch))
            found = self.scores(read)[: len(batch)]
            rows += [_row(mixture, *each) for mixture, each in zip(batch, found, strict=True)]
        return self._summary(rows), rows

    def _summary(self, rows: Sequence[Row]) -> dict[str, dict]:
        silent = sum("silent source" in row.get("not_counted", {}).values() for row in rows)
        if silent == len(rows):
            raise InputError("Every mixture has a silent source where it is cut; there is nothing to score.")
        ways = list(dict.fromkeys(name for row in rows for name in row["ways"]))
        by_way = {name: _summary_of(name, rows, self.ways.metrics) for name in ways}
        broken = [name for name, row in by_way.items() if not row["num"] and "not finite" in row["not_counted"]]
        if broken:
            raise InputError(f"The estimates by {', '.join(broken)} hold values that are not finite; train again.")
        by_label = _by_label(rows, ways, self.ways.metrics[0])
        found = {
            "skipped": {"num": silent},
            "by_label": by_label,
            "protocol": self._described(),
            "ways": self._described_ways(),
        }
        return by_way | found | ({"retrieval": retrieval} if (retrieval := self.retrieval.summary()) else {})

    def _described_ways(self) -> dict[str, Any]:
        values = asdict(self.ways)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def _described(self) -> dict[str, Any]:
        protocol = self.protocol
        return {
            "name": protocol.name,
            "listed": protocol.num_listed,
            "found": len(protocol.mixtures),
            "missing": list(protocol.missing),
            "sha256": protocol.sha256,
        }


def evaluation_of(
    separator: Separator,
    records: RecordSet,
    split: str,
    num_mixtures: int,
    *,
    num_sources: int | None = None,
    seed: int = 0,
    ways: Ways = DEFAULT_WAYS,
) -> Evaluation:
    """A model on mixtures drawn from a split, by default of as many sources as it was trained with.

    Raises:
        InputError: the split is missing, too small, or without the labels that the model needs.
    """
    frames = needs_pictures(separator, [records])
    num_sources = num_sources or num_sources_of(separator.config)
    protocol = drawn_protocol(records, split, num_mixtures, num_sources, seed=seed, frames=frames)
    return Evaluation(separator, protocol, ways)


def _fault(estimates: Float[np.ndarray, "A L"], sources: Float[np.ndarray, "N L"]) -> str:
    """Why a way to estimate the target of a mixture has no score; empty where it has one."""
    if not np.isfinite(estimates).all():
        return "not finite"
    if (np.abs(estimates).sum(axis=-1) <= SILENCE).any():
        return "silent estimate"
    if (estimates == sources[0]).all(axis=-1).any():
        return "identical to the target"
    return ""


def _has_silent_complement(estimates: Float[np.ndarray, "A L"], sources: Float[np.ndarray, "N L"]) -> bool:
    """Whether a mask of ones let all through, but for rounding; the official evaluation then has no score."""
    mixture = sources.sum(axis=0)
    return bool((np.abs(mixture - estimates).sum(axis=-1) <= SILENCE + 1e-6 * np.abs(mixture).sum()).any())


def _row(mixture: HeldOutMixture, scores: Scores, faults: Mapping[str, str]) -> Row:
    """The clips of a mixture by their ids, and its scores; null where a way is not counted."""
    target, *interferers = mixture.ids
    others = {"interferer": interferers[0]} if len(interferers) == 1 else {"interferers": interferers}
    ways = list(dict.fromkeys([*scores, *faults]))
    values = {
        column(way, metric): None if way in faults else scores[way][metric]
        for metric in next(iter(scores.values()), dict.fromkeys([CHIEF]))
        for way in ways
    }
    reasons = {"not_counted": dict(faults)} if faults else {}
    cuts = [clip.num_frames for clip in mixture.clips]
    places = {"cut_by": cuts} if any(cuts) else {}
    return {
        "target": target,
        **others,
        "target_label": mixture.clips[0].label,
        **places,
        "ways": ways,
        **values,
        **reasons,
    }


def column(way: str, metric: str) -> str:
    """The name in a row of the score of an estimate."""
    return way if metric == CHIEF else f"{metric}_{way}"


def _by_label(rows: Sequence[Row], ways: Sequence[str], metric: str) -> dict[str, Any]:
    """The mean of a metric by label of the target and way, and the number of its mixtures."""
    found: dict[str, Any] = {}
    for label in sorted({row["target_label"] for row in rows}):
        of_label = [row for row in rows if row["target_label"] == label]
        values = {way: [row.get(column(way, metric)) for row in of_label] for way in ways}
        counted = {way: [value for value in some if value is not None] for way, some in values.items()}
        means = {way: float(np.mean(some)) for way, some in counted.items() if some}
        found[label] = {"mixtures": len(of_label), f"{metric}_means": means}
    return found


def _summary_of(way: str, rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, Any]:
    """Each metric's figures of one way, and of its improvement over the mixture, pair by pair."""
    counted = [row for row in rows if row.get(column(way, metrics[0])) is not None]
    reasons = Counter(row["not_counted"][way] for row in rows if way in row.get("not_counted", {}))
    del reasons["silent source"]
    values = {metric: np.array([row[column(way, metric)] for row in counted]) for metric in metrics}
    if not counted:
        return {"num": 0, "not_counted": dict(reasons)}
    summary: dict[str, Any] = summarise(values)
    for metric in metrics if way != "mixture" else ():
        pairs = [(row[column(way, metric)], row.get(column("mixture", metric))) for row in counted]
        gains = np.array([value - mixture for value, mixture in pairs if mixture is not None])
        if len(gains):
            of_gain = summarise({f"{metric}_gain": gains})
            summary |= {name: of_gain[name] for name in of_gain if name != "num"}
    return summary | ({"not_counted": dict(reasons)} if reasons else {})
