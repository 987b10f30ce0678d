"""`clipsep export-torch`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.errors import InputError
from clipsep_jax.terminal import say

DESCRIPTION = "  clipsep export-torch runs/nit nit.pt\n  clipsep export-torch runs/nit --official-layout exported"


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="model directory or training workdir")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT.pt", help="file to write")
    parser.add_argument("--safetensors", action="store_true", help="write OUT as safetensors, without pickle")
    parser.add_argument("--official-layout", type=Path, metavar="DIR", help="a folder for the official infer.py")
    parser.add_argument(
        "--modality",
        choices=("text", "image"),
        help="of a model trained with query.centre: the queries that the exported one is asked by",
    )


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Writes a state dict, the official layout, or both."""
    from clipsep_jax.official.checkpoint import export_official_layout, export_torch

    if not options.out and not options.official_layout:
        raise InputError("There is nothing to write; give OUT.pt or --official-layout DIR.")
    if options.out:
        how = {"safetensors": options.safetensors, "modality": options.modality}
        say(f"The state dict is in {export_torch(options.model, options.out, **how)}.")
    if options.official_layout:
        folder = export_official_layout(options.model, options.official_layout, options.modality)
        say(f"The official layout is in {folder}.")
