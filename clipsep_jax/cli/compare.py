"""`clipsep compare`."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipsep_jax.errors import InputError
from clipsep_jax.terminal import say

DESCRIPTION = (
    "Says which of several systems is better, by the scores that `clipsep evaluate --out` wrote: differences mixture "
    "by mixture, with 95% intervals by the bootstrap and a sign test."
)


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "scores", nargs="+", metavar="SCORES[:WAY]", help="folder of scores, and which way of estimation (text, ...)"
    )
    parser.add_argument("--metric", default="sdr", metavar="NAME", help="sdr (default), si_sdr, sdr_v3, sir or sar")
    parser.add_argument(
        "--by-label",
        action="store_true",
        help="resample labels with all their mixtures, for what holds beyond these labels",
    )
    parser.add_argument(
        "--format", choices=("text", "markdown", "latex", "csv", "json"), default="text", help="default: text"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write all formats and figures there")


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Compares scores and prints what is certain."""
    from clipsep_jax.evaluation.compare import compare, read_scored
    from clipsep_jax.evaluation.compare_report import text_of, write_comparison
    from clipsep_jax.metrics import METRICS

    if options.metric not in METRICS:
        raise InputError(f"There is no metric {options.metric!r}; give one of {', '.join(METRICS)}.")
    if len(options.scores) < 2 or len(set(options.scores)) < len(options.scores):
        raise InputError(f"Give at least two different ones to compare, not {', '.join(options.scores)}.")
    systems = [read_scored(*_path_and_way(text), options.metric) for text in options.scores]
    if len({system.name for system in systems}) < len(systems):
        systems = [replace(system, name=text) for system, text in zip(systems, options.scores, strict=True)]
    differences = compare(systems, by_label=options.by_label)
    say(text_of(options.format, systems, differences, options.metric))
    if options.out:
        say(f"The comparison is in {write_comparison(options.out, systems, differences, options.metric)}.")


def _path_and_way(text: str) -> tuple[Path, str | None]:
    path, colon, way = text.rpartition(":")
    return (Path(path), way) if colon and not Path(text).exists() else (Path(text), None)
