"""`clipsep separate`."""

import argparse
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipsep_jax.cli.options import add_model_option, positive
from clipsep_jax.errors import EXIT_FAILURE, InputError
from clipsep_jax.terminal import printable, say

if TYPE_CHECKING:
    from clipsep_jax.separation.files import Recording
    from clipsep_jax.separation.job import Job, Separated
    from clipsep_jax.separation.separator import Separator

DESCRIPTION = """  clipsep separate street.wav --model runs/nit --query accordion --out separated
  clipsep separate RECORDINGS/ --model runs/nit --query "guitar + singing" --without rain --residual --out separated
  clipsep separate concert.mp4 --model runs/nit --image violin.jpg --span 60-90 --query applause --out separated

A bare word is put into a prompt, as in "a photo of accordion". --without and --span hold for the --query or --image
before them, or for all, where they come first. Recordings keep their rate, their channels and their length."""

_BAR = "{desc} {percentage:3.0f}%|{bar}| {remaining} left, {postfix}"


class _Asked(argparse.Action):
    """Gathers options whose order counts."""

    def __call__(self, parser: Any, options: argparse.Namespace, value: Any, option: str | None = None) -> None:
        asked = getattr(options, self.dest) or []
        setattr(options, self.dest, [*asked, ((option or "").removeprefix("--"), value)])


def describe(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="recordings, videos, folders of them, or patterns")
    parser.add_argument("--list", type=Path, metavar="FILE", help="a text file with more inputs, a line each")
    add_model_option(parser)
    for option, metavar, words in (
        ("query", "TEXT", "what to pull out; repeatable; ' + ' between several sums them (PIT takes none)"),
        ("image", "FILE", "the same by a picture"),
        ("example", "FILE", 'the same by a recording of such a sound, for models of --config.query.kind="audio"'),
        ("without", "TEXT", "what to leave out; repeatable"),
        ("span", "FROM-TO", "the seconds between which it may be heard, such as 3.5-7"),
    ):
        parser.add_argument(f"--{option}", dest="asked", action=_Asked, default=[], metavar=metavar, help=words)
    parser.add_argument("--raw", action="store_true", help="put no bare word into a prompt")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    _describe_sound(parser)
    _describe_files(parser)


def _describe_sound(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--masks",
        choices=("soft", "binary", "wiener"),
        default="soft",
        help="soft; binary, above a half; or wiener, where the stems share the mixture's power (default: soft)",
    )
    parser.add_argument("--noise", action="store_true", help="write what each noise mask lets through too")
    parser.add_argument(
        "--always", action="store_true", help="let stems sound too where their sound is not likely there"
    )
    parser.add_argument("--residual", action="store_true", help="write what the stems leave of the recording too")
    parser.add_argument(
        "--above",
        choices=("keep", "mute", "scale"),
        default="scale",
        help="what stems get above 8 kHz, which the model does not hear: all, nothing, or as much as of the band below "
        "(default: scale)",
    )
    parser.add_argument(
        "--rate",
        type=_rate,
        default="native",
        metavar="HZ",
        help="of the files (default: native, each recording's own)",
    )


def _describe_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("wav", "flac", "mp3", "ogg", "m4a"), default="wav", help="default: wav")
    parser.add_argument("--bits", choices=("16", "24", "float"), default="16", help="of wav and flac (default: 16)")
    parser.add_argument(
        "--clip",
        choices=("scale", "float"),
        default="scale",
        help="above full scale: make all stems of a recording quieter together, or write floats (default: scale)",
    )
    parser.add_argument(
        "--remux", action="store_true", help="write the stems of videos as videos, under their pictures"
    )
    parser.add_argument("--spectrogram", action="store_true", help="draw mixture, masks and results into a PNG file")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--skip-existing", action="store_true", help="leave out recordings whose files are all there")
    again.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--max-hours", type=positive, default=12, metavar="HOURS", help="refuse longer recordings (default: 12)"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each recording, instead of paths")


def _rate(text: str) -> int | None:
    if text == "native":
        return None
    number = int(text)
    if not 1_000 <= number <= 768_000:
        raise argparse.ArgumentTypeError(f"{text} Hz is not from 1000 to 768000")
    return number


def run(options: argparse.Namespace, _: Sequence[str]) -> int:
    """Separates recordings, one after the other, and prints the paths of what it writes."""
    from clipsep_jax.separation.files import find_recordings
    from clipsep_jax.separation.separator import Separator

    recordings = find_recordings(options.inputs, options.list, options.out)
    separator = Separator.load(options.model, download=options.download)
    job = _job(options, separator)
    todo = _to_do(options, separator, job, recordings)
    num_done = 0
    for number, recording in enumerate(todo, 1):
        try:
            title = f"{number}/{len(todo)} {printable(recording.path.name)[:40]}"
            _report(_separate(separator, recording, job, title), as_json=options.json)
            num_done += 1
        except InputError as error:
            if len(recordings) == 1:
                raise
            say(f"clipsep: {error}", error=True)
    if len(recordings) > 1:
        say(f"Separated {num_done} of {len(todo)} recordings into {options.out}.", error=True)
    return EXIT_FAILURE if num_done < len(todo) else 0


def _job(options: argparse.Namespace, separator: "Separator") -> "Job":
    from clipsep_jax.separation.job import Job
    from clipsep_jax.separation.options import Options
    from clipsep_jax.separation.stem_files import StemFormat
    from clipsep_jax.separation.targets import read_targets

    targets = read_targets(options.asked, str if options.raw else separator.prompt)
    job = Job(
        targets=tuple(targets),
        out=options.out,
        options=Options(masks=options.masks, above=options.above, noise=options.noise, always=options.always),
        form=StemFormat(options.format, options.bits, options.clip),
        rate=options.rate,
        residual=options.residual,
        remux=options.remux,
        spectrogram=options.spectrogram,
        max_seconds=3_600 * options.max_hours,
    )
    separator.open_stream(targets, options=job.options)  # refuses a bad query before anything is written
    return job


def _to_do(
    options: argparse.Namespace, separator: "Separator", job: "Job", recordings: Sequence["Recording"]
) -> list["Recording"]:
    """The recordings to separate, unless files of theirs are in the way.

    Raises:
        InputError: they are.
    """
    paths = {r: [*job.paths(separator, r), *filter(None, [job.picture(r)])] for r in recordings}
    counts = Counter(path for some in paths.values() for path in some)
    if twice := [path for path, count in counts.items() if count > 1]:
        raise InputError(f"Two recordings would give the same file {twice[0]}; rename one of them.")
    if options.skip_existing:
        todo = [recording for recording in recordings if not all(path.exists() for path in paths[recording])]
        if len(todo) < len(recordings):
            say(f"{len(recordings) - len(todo)} recordings are separated already.", error=True)
        return todo
    there = [path for some in paths.values() for path in some if path.exists()]
    if there and not options.overwrite:
        more = f" and {len(there) - 1} more are" if len(there) > 1 else " is"
        raise InputError(f"{there[0]}{more} there already; give --skip-existing, --overwrite or another --out.")
    return list(recordings)


def _report(separated: "Separated", *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(asdict(separated), default=str))
    else:
        for path in filter(None, (*separated.paths, separated.spectrogram)):
            say(path)
    if separated.gain < 1:
        times = f"{separated.gain:.2f} times as loud"
        say(f"Stems of {separated.recording} exceed full scale; all of its files are written {times}.", error=True)
    for path in separated.silent:
        say(f"{path} is silent: its sound is not likely to be there; --always writes it all the same.", error=True)
    for path in separated.as_float:
        say(f"{path} exceeds full scale; it is written in floats.", error=True)


def _separate(separator: "Separator", recording: "Recording", job: "Job", title: str) -> "Separated":
    """Separates one recording under a bar of its seconds."""
    from tqdm import tqdm

    from clipsep_jax.separation.job import separate_file

    start = time.perf_counter()
    with tqdm(desc=title, unit="s", leave=False, bar_format=_BAR) as bar:

        def progress(done: float, total: float | None) -> None:
            bar.total = None if total is None else max(done, total)
            bar.set_postfix_str(f"{done / (time.perf_counter() - start):.1f} times real time", refresh=False)
            bar.update(done - bar.n)

        return separate_file(separator, recording, job, progress)
