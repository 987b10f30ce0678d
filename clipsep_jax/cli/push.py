"""`clipsep push`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.terminal import say

DESCRIPTION = """  clipsep push runs/nit owner/name --license cc-by-4.0 --records runs/videos --scores runs/nit/scores

Writes a card of what the model was trained on, what it scores and how to use it, and uploads config, weights and query
encoder as safetensors. Log in first, by `hf auth login`. Others load it by --model owner/name --download."""


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="model directory or training workdir")
    parser.add_argument("name", metavar="OWNER/NAME", help="on the Hugging Face Hub; made if it is not there")
    parser.add_argument("--license", required=True, metavar="ID", help="of the weights, such as cc-by-4.0")
    parser.add_argument("--private", action="store_true", help="make it a private one")
    parser.add_argument("--records", type=Path, metavar="RECORDS", help="that it was trained on, for the card")
    parser.add_argument(
        "--scores", type=Path, nargs="+", default=[], metavar="DIR", help="that evaluate wrote, for the card"
    )


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Publishes a model and says where."""
    from clipsep_jax.model_dir import open_model_dir
    from clipsep_jax.publishing import push

    model = open_model_dir(options.model)
    address = push(
        model, options.name, options.license, records=options.records, scores=options.scores, private=options.private
    )
    say(f"The model is at {address}")
