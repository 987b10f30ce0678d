"""`clipsep separate`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipsep_jax.cli.options import add_model_option, positive
from clipsep_jax.terminal import say

DESCRIPTION = '  clipsep separate street.wav --model runs/nit --query "a photo of accordion" --out separated'


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("input", type=Path, metavar="INPUT", help="wav, flac, mp3, ogg, or a video such as mp4")
    add_model_option(parser)
    parser.add_argument(
        "--query", action="append", default=[], metavar="TEXT", help="what to pull out; repeatable (PIT takes none)"
    )
    parser.add_argument(
        "--max-hours",
        type=positive,
        default=1,
        metavar="HOURS",
        help="refuse longer recordings; one takes 0.25 GB of memory for each hour, query and what remains (default: 1)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the wav files")


def run(options: argparse.Namespace, _: Sequence[str]) -> None:
    """Separates one file and prints the paths of what it writes."""
    from clipsep_jax.separation.files import output_paths
    from clipsep_jax.separation.separator import Separator
    from clipsep_jax.sound_files import read_sound, write_sound

    separator = Separator.load(options.model, download=options.download)
    waveform = read_sound(options.input, 3_600 * options.max_hours)
    names = options.query or [f"source {n + 1}" for n in range(separator.config.model.num_learned_queries)]
    separator.embed(options.query)  # refuses a bad query before anything is written
    options.out.mkdir(parents=True, exist_ok=True)
    paths = output_paths(options.out, options.input.stem, names)
    replaced = [path for path in paths if path.exists()]
    if replaced:
        say(f"{len(replaced)} files of an earlier separation will be replaced in {options.out}.", error=True)
    separation = separator.separate(waveform, options.query, progress=True)
    for path, sound in zip(paths, [*separation.stems, separation.residual], strict=True):
        write_sound(path, sound, separator.sample_rate_hz)
        say(path)
