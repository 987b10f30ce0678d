"""`clipsep serve`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.cli.options import add_model_option, positive
from clipsep_jax.errors import InputError
from clipsep_jax.terminal import say

DESCRIPTION = """  clipsep serve --model runs/nit
  clipsep serve --model runs/nit --host 0.0.0.0 --token-file token.txt

Opens a page for people, and POST /separate for programs (GET /openapi.json describes it). One recording is separated
at a time; others wait in line. Everything lies in a temporary folder, which goes when the server ends (Ctrl-C)."""


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
    for option, default, words in (
        ("upload-megabytes", 200, "the largest request"),
        ("upload-seconds", 120, "how long a request may take to come"),
        ("recording-minutes", 30, "the longest recording"),
        ("waiting", 32, "how many recordings may wait"),
        ("keep-minutes", 60, "how long results are kept"),
        ("keep-gigabytes", 10, "how much is kept at most; the oldest goes first"),
    ):
        metavar = option.rpartition("-")[2].upper() if "-" in option else "N"
        parser.add_argument(
            f"--{option}", type=positive, default=default, metavar=metavar, help=f"{words} (default: {default})"
        )


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Serves until it is stopped."""
    from clipsep_jax.separation.separator import Separator
    from clipsep_jax.serving.examples import read_examples
    from clipsep_jax.serving.limits import Limits

    try:
        from clipsep_jax.serving.server import read_token, serve
    except ModuleNotFoundError as error:
        raise InputError(f'{error.name} is not installed; run: pip install "clipsep-jax[serve]"') from error
    token = read_token(options.token_file) if options.token_file else None
    limits = Limits(
        upload_megabytes=options.upload_megabytes,
        upload_seconds=options.upload_seconds,
        recording_minutes=options.recording_minutes,
        waiting=options.waiting,
        keep_minutes=options.keep_minutes,
        keep_gigabytes=options.keep_gigabytes,
    )
    examples = read_examples(options.examples) if options.examples else ()
    place = options.model.resolve() if options.model.is_dir() else options.model  # for messages to replace whole
    separator = Separator.load(place, download=options.download)
    serve(separator, limits, examples, host=options.host, port=options.port, token=token, tell=say)
