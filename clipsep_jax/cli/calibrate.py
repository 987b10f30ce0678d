"""`clipsep calibrate`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.errors import InputError
from clipsep_jax.terminal import say

DESCRIPTION = """  clipsep calibrate models/nit --records runs/videos

Writes presence.safetensors into the model directory: spectrograms of 16 mixtures of the split, and what turns the share
of a sound that a mask lets through into a probability. Training does the same at its end, and
`clipsep import-torch --records`."""


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="model directory or training workdir")
    parser.add_argument("--records", type=Path, required=True, metavar="DIR", help="records to calibrate on")
    parser.add_argument("--split", default="validation", help="which split of them (default: validation)")
    parser.add_argument(
        "--test", default="", metavar="SPLIT", help="a split that says how well it tells, such as test (default: none)"
    )
    parser.add_argument(
        "--download", action="store_true", help="fetch the query encoder from the Hugging Face Hub, if it is not here"
    )


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Calibrates a model, and says how well presence can be told."""
    from clipsep_jax.data.record_set import RecordSet
    from clipsep_jax.evaluation.calibration import calibrate_model, roc_auc, targets_of
    from clipsep_jax.separation.separator import Separator

    if not calibrate_model(options.model, options.records, options.split, download=options.download):
        raise InputError(f"{options.model} separates without queries; there is nothing to calibrate.")
    if options.test:
        separator = Separator.load(options.model, download=options.download)
        targets = targets_of(separator, RecordSet(options.records), options.test)
        auc, by_energy = roc_auc(targets.z, targets.are_there), roc_auc(targets.energy, targets.are_there)
        say(f"On {options.test}, ROC AUC {auc:.3f}; by the energy of the stems {by_energy:.3f}.")
