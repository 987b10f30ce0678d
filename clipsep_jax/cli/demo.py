"""`clipsep demo`."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.cli.options import positive
from clipsep_jax.terminal import say

DESCRIPTION = "  clipsep demo\n  clipsep demo --videos DIR --labels CSV"


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="your own videos in place of the toy set")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="their labels (video,label), for text queries")
    parser.add_argument("--clip", metavar="MODEL", help="with --videos: CLIP folder or hub id, in place of a miniature")
    parser.add_argument("--steps", type=positive, metavar="N", help="training steps of the separator")


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Runs the demo and says where its report is."""
    from clipsep_jax.demo.demo import run_demo

    report = run_demo(options.out, videos=options.videos, labels=options.labels, clip=options.clip, steps=options.steps)
    say(f"To ask the model for sounds on a page, with the extra serve: {_serve(options.out)}")
    say(f"The report is in {report}.")


def _serve(out: Path) -> str:
    model, examples = shlex.quote(str(out / "run")), shlex.quote(str(out / "audio" / "examples.csv"))
    return f"clipsep serve --model {model} --examples {examples}"
