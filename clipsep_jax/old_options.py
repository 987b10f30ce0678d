"""Options of earlier versions: files and command lines that hold them are still understood."""

import re
from collections.abc import Callable
from typing import Any

from clipsep_jax.errors import InputError
from clipsep_jax.schema import shown

_New = dict[tuple[str, str], Any]  # values of today's options by group and name


def _number(old: Any) -> Any:
    """The command line gives old options as text."""
    return int(old) if isinstance(old, str) and re.fullmatch(r"-?[0-9]+", old) else old


def _old_rate(rate: Any, query: dict[str, Any]) -> _New:
    if rate != 16_000:
        raise InputError("config.spectrogram.sample_rate_hz must be 16000, the rate of all records.")
    return {}


def _old_num_labels(count: Any, query: dict[str, Any]) -> _New:
    if count and query.get("kind") != "label":
        raise InputError('config.model.num_labels goes with config.query.kind = "label"; leave it out.')
    return {}


def _old_num_learned_queries(count: Any, query: dict[str, Any]) -> _New:
    if count and query.get("kind") != "none":
        raise InputError('config.model.num_learned_queries goes with config.query.kind = "none"; leave it out.')
    return {("data", "num_sources"): count} if count else {}


def _old_drop_closest(count: Any, query: dict[str, Any]) -> _New:
    if type(count) is not int or count < -1:
        raise InputError(f"config.data.drop_closest is {shown(count)}; give a count, or -1 for weights.")
    how = {-1: "downweight", 0: "keep"}.get(count, "drop")
    return {("data", "similar_pairs"): how, ("data", "num_dropped_pairs"): max(0, count)}


OLD_OPTIONS: dict[str, Callable[[Any, dict[str, Any]], _New]] = {
    "spectrogram.sample_rate_hz": _old_rate,
    "model.num_labels": _old_num_labels,
    "model.num_learned_queries": _old_num_learned_queries,
    "data.drop_closest": _old_drop_closest,
    "data.drop_closest_from_step": lambda step, query: {("data", "similar_pairs_from_step"): step},
    "sharding": lambda sharding, query: {("train", "sharding"): sharding},
}

# Old options that have another name today.
_NAMES_TODAY = {
    "data.drop_closest": ("data.similar_pairs", "data.num_dropped_pairs"),
    "data.drop_closest_from_step": ("data.similar_pairs_from_step",),
    "sharding": ("train.sharding",),
}


def names_today(option: str) -> tuple[str, ...]:
    """The current names of an option, which may be of an earlier version."""
    return _NAMES_TODAY.get(option, (option,))


def replace_old_options(values: dict[str, Any]) -> dict[str, Any]:
    """Nested options, with those of earlier versions converted.

    Raises:
        InputError: an old option has a value that was never allowed.
    """
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for name, put in OLD_OPTIONS.items():
        group, _, option = name.rpartition(".")
        place = values.get(group, {}) if group else values
        old = place.pop(option, None) if isinstance(place, dict) else None
        if old is not None:
            for (new_group, new_option), value in put(_number(old), values.get("query", {})).items():
                values.setdefault(new_group, {})[new_option] = value
    return values
