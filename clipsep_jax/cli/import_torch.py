"""`clipsep import-torch`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.terminal import say

DESCRIPTION = """  clipsep import-torch best_model.pt models/nit --clip openai/clip-vit-base-patch32
  clipsep import-torch best_model.pt models/nit --clip openai/clip-vit-base-patch32 --records data/vggsound"""


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT.pt", help="state dict of the official code")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="model directory to write")
    parser.add_argument("--system", metavar="NAME", help="which official model (default: recognised by its tensors)")
    parser.add_argument(
        "--clip", metavar="MODEL", help="query encoder: CLIP folder or hub id; resnet18-clip:PATH for sop"
    )
    parser.add_argument(
        "--train-args", type=Path, metavar="train-args.json", help="the run's settings, labels and table"
    )
    parser.add_argument(
        "--records", type=Path, metavar="DIR", help="records to calibrate on, so that the model tells absent sounds"
    )


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Writes a model directory."""
    from clipsep_jax.official.checkpoint import import_torch

    out = import_torch(options.checkpoint, options.out, options.system, options.clip, options.train_args)
    say(f"The model is in {out}; see `clipsep info {out}`.")
    if options.records:
        from clipsep_jax.evaluation.calibration import calibrate_model

        calibrate_model(out, options.records)
