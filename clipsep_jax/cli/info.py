"""`clipsep info`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.terminal import say

DESCRIPTION = ""


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="model directory or training workdir")


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Prints what a model directory holds."""
    from clipsep_jax.model_dir import describe, open_model_dir

    say(describe(open_model_dir(options.model)))
