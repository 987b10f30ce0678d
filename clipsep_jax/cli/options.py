"""Options that several commands have, and types of values."""

import argparse
from pathlib import Path


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def not_negative(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def seed(text: str) -> int:
    """A whole number of at most 63 bits."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is below 0 or too large")
    return number


def add_mixture_options(parser: argparse.ArgumentParser) -> None:
    """Adds the choice of mixtures to score on, which may be none."""
    parser.add_argument("--split", default="test", help="which split of the records to score on (default: test)")
    parser.add_argument(
        "--num-mixtures",
        type=not_negative,
        default=256,
        metavar="N",
        help="how many mixtures (default: 256; 0 for no scores)",
    )


def add_model_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the choice of the model."""
    parser.add_argument(
        "--model",
        type=Path,
        required=required,
        metavar="DIR",
        help="model directory or training workdir; with --download also owner/name or owner/name@revision of the Hub",
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch the model, and the query encoder that it names, from the Hugging Face Hub, if not on this machine",
    )
