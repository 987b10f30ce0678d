"""`clipsep serve`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.cli.options import add_model_option, positive
from clipsep_jax.errors import InputError
from clipsep_jax.serving.limits import DEFAULT_LIMITS, Limits
from clipsep_jax.terminal import say

DESCRIPTION = """  clipsep serve --model runs/nit
  clipsep serve --model runs/nit --host 0.0.0.0 --token-file token.txt

Opens a page for people, and POST /separate for programs (GET /openapi.json describes it). One recording is separated
at a time; others wait in line. Everything lies in a temporary folder, which goes when the server ends (Ctrl-C)."""

_LIMITS = {
    "upload_megabytes": "the largest request",
    "upload_seconds": "how long a request may take to come",
    "recording_minutes": "the longest recording",
    "waiting": "how many recordings may wait",
    "keep_minutes": "how long results are kept",
    "keep_gigabytes": "how much is kept at most; the oldest goes first",
}


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_model_option(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0 for any free one")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the secret that clients must give; needed for other hosts"
    )
    parser.add_argument(
        "--examples", type=Path, metavar="CSV", help="recordings that the page offers (file,query), as the demo writes"
    )
    for name, words in _LIMITS.items():
        option, default = f"--{name.replace('_', '-')}", getattr(DEFAULT_LIMITS, name)
        metavar = name.rpartition("_")[2].upper() if "_" in name else "N"
        parser.add_argument(
            option, type=positive, default=default, metavar=metavar, help=f"{words} (default: {default})"
        )


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Serves until it is stopped."""
    from clipsep_jax.separation.separator import Separator
    from clipsep_jax.serving.examples import read_examples

    try:
        from clipsep_jax.serving.server import read_token, serve
    except ModuleNotFoundError as error:
        raise InputError(f'{error.name} is not installed; run: pip install "clipsep-jax[serve]"') from error
    token = read_token(options.token_file) if options.token_file else None
    limits = Limits(**{name: getattr(options, name) for name in _LIMITS})
    examples = read_examples(options.examples) if options.examples else ()
    place = options.model.resolve() if options.model.is_dir() else options.model  # for messages to replace whole
    separator = Separator.load(place, download=options.download)
    serve(separator, limits, examples, host=options.host, port=options.port, token=token, tell=say)
