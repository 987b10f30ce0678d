"""The sub-commands of `clipsep prepare`. Heavy modules are imported by the command that needs them."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from clipsep_jax.cli.options import positive
from clipsep_jax.errors import InputError
from clipsep_jax.terminal import printable, say

if TYPE_CHECKING:
    from clipsep_jax.data_prep.pool import Reader
    from clipsep_jax.data_prep.sources.inputs import Input
    from clipsep_jax.data_prep.writer import Runner

RUNNERS = ("DirectRunner", "DaskRunner", "FlinkRunner", "SparkRunner", "DataflowRunner")

DESCRIPTION = ""

# Options, of one value each, that do not change the records: the manifest does not remember them.
_WITHOUT_TRACE = ("--out", "--workers", "--time-limit", "--max-rejected", "--runner", "--beam-option")


def describe(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of `clipsep prepare`."""
    commands = parser.add_subparsers(metavar="SOURCE", required=True)
    for name, (text, add_options, function) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text.split("\n")[0].rstrip("."),
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(command)
        command.set_defaults(run=function)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Never called: each sub-command runs its own function."""
    raise AssertionError("a sub-command is required")


def _add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="RECORDS", help="folder to write")
    parser.add_argument("--audio", choices=("pcm16", "flac"), default="pcm16", help="pcm16 (fast) or flac (small)")
    parser.add_argument(
        "--max-rejected", type=_share, default=0.25, metavar="X", help="fail above this share of clips (default: 0.25)"
    )
    parser.add_argument("--time-limit", type=_seconds, default=600.0, metavar="SECONDS", help="per file (default: 600)")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--runner", choices=RUNNERS, help="run on a cluster with Apache Beam instead")
    parser.add_argument("--beam-option", action="append", default=[], metavar="OPTION", help="for Beam; repeatable")


def _add_picture_options(parser: argparse.ArgumentParser) -> None:
    _add_common_options(parser)
    parser.add_argument("--clip", metavar="MODEL", help="Hugging Face CLIP folder or hub id: stores its embeddings")
    parser.add_argument("--reject-still", action="store_true", help="reject videos in which nothing moves")


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


def _add_videos_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of videos")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="columns video,label and maybe split and group")
    _add_picture_options(parser)


def _videos(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.data_prep.sources.videos import find_videos

    _prepare_videos(options, find_videos(options.folder, options.labels))


def _add_audio_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of recordings")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="columns audio,label and maybe split and group")
    _add_common_options(parser)


def _audio(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.data_prep.sources.audio import find_audio, read_audio

    _prepare(options, find_audio(options.folder, options.labels), read_audio, "audio")


def _add_vggsound_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", type=Path, required=True, help="its list: YouTube id, start second, label, split")
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder of its videos")
    parser.add_argument(
        "--validation-share",
        type=_share,
        default=0.02,
        metavar="X",
        help="share of the training videos to validate with (default: 0.02)",
    )
    _add_picture_options(parser)


def _vggsound(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.data_prep.sources.vggsound import find_vggsound

    _prepare_videos(options, find_vggsound(options.csv, options.videos, options.validation_share))


def _add_music_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", type=Path, required=True, action="append", metavar="JSON", help="its list; repeatable"
    )
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder of its videos, ID.mp4")
    _add_picture_options(parser)


def _music(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.data_prep.sources.music import find_music

    _prepare_videos(options, find_music(options.json, options.videos))


def _add_official_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("lists", type=Path, nargs="+", metavar="LIST.csv", help="lists in the official format")
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="base folder of their paths")
    parser.add_argument("--prefix", default="", metavar="PATH", help="start of their paths to drop")
    parser.add_argument("--split", choices=("train", "validation", "test"), help="default: read from each list's name")
    _add_common_options(parser)
    parser.add_argument("--clip", metavar="MODEL", help="Hugging Face CLIP folder or hub id: stores its embeddings")


def _official(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.data_prep.sources.official import find_official, read_official

    inputs = find_official(options.lists, options.root, options.prefix, options.split)
    _prepare(options, inputs, read_official, "official")


def _add_download_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("list", type=Path, metavar="LIST", help="vggsound.csv, a list of MUSIC, or one id per line")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--pause", type=_seconds, default=5.0, metavar="SECONDS", help="between videos (default: 5)")
    parser.add_argument("--url", metavar="URL", help="of a video, {} for its id (default: YouTube's)")
    parser.add_argument("--retry-gone", action="store_true", help="ask again for videos that were gone")


def _download(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.data_prep.download import DOWNLOAD_LEDGER_NAME, URL, download, read_ids

    lines = download(
        read_ids(options.list),
        options.out,
        url=options.url or URL,
        pause_seconds=options.pause,
        retry_gone=options.retry_gone,
    )
    num_there = sum(line.status == "downloaded" for line in lines)
    say(f"{num_there} of {len(lines)} videos are in {options.out}; see {options.out / DOWNLOAD_LEDGER_NAME}.")


def _add_embed_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", type=Path, metavar="RECORDS", help="folder of records")
    parser.add_argument("--encoder", required=True, metavar="KIND:MODEL", help="clip:MODEL or resnet18:MODEL")
    parser.add_argument("--drop-frames", action="store_true", help="keep only the embeddings, not the pictures")
    parser.add_argument(
        "--leave-out-damaged", action="store_true", help="go on without records that cannot be read (default: stop)"
    )


def _embed(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.data_prep.embed_set import embed_record_set
    from clipsep_jax.encoders.registry import load_encoder

    manifest = embed_record_set(
        options.records,
        load_encoder(options.encoder),
        drop_frames=options.drop_frames,
        leave_out_damaged=options.leave_out_damaged,
    )
    assert manifest.encoder is not None
    say(f"{options.records} holds embeddings of size {manifest.encoder.query_size} by {manifest.encoder.name}.")


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", type=Path, metavar="RECORDS", help="folder that `clipsep prepare` has written")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where coverage.csv and loudness.png go (default: RECORDS)"
    )


def _report(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.data_prep.coverage import (
        COVERAGE_NAME,
        LOUDNESS_NAME,
        coverage,
        coverage_table,
        plot_loudness,
        summary,
        write_coverage,
    )
    from clipsep_jax.data_prep.ledger import LEDGER_NAME, read_ledger

    ledger = read_ledger(options.records / LEDGER_NAME)
    rows, out = coverage(ledger), options.out or options.records
    out.mkdir(parents=True, exist_ok=True)
    say(f"{summary(ledger)}\n\n{coverage_table(rows)}\n")
    write_coverage(out / COVERAGE_NAME, rows)
    plot_loudness(out / LOUDNESS_NAME, ledger)
    say(f"The coverage is in {out / COVERAGE_NAME}, the loudness in {out / LOUDNESS_NAME}.")


def _add_verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", type=Path, metavar="RECORDS", help="folder of records")


def _verify(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.data_prep.verify import verify

    num_problems = 0
    for problem in verify(options.records):
        say(printable(problem))
        num_problems += 1
    if num_problems:
        raise InputError(f"{options.records} is damaged: {num_problems} problems, listed above.")
    say(f"{options.records} is intact.")


def _add_table_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labels", type=Path, metavar="LABELS.txt", help="one label per line")
    parser.add_argument("vectors", type=Path, metavar="VECTORS.npy", help="float32 array [labels, width]")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="file to write")


def _table(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.queries.table import read_table

    table = read_table(options.labels, options.vectors)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.save(options.out)
    say(f"{options.out} holds {len(table.labels)} embeddings of size {table.vectors.shape[1]}.")


def _prepare_videos(options: argparse.Namespace, inputs: "list[Input]") -> None:
    from clipsep_jax.data_prep.sources.videos import read_video

    read = partial(read_video, reject_still=options.reject_still)
    _prepare(options, inputs, read, f"videos, reject_still={options.reject_still}")


def _prepare(options: argparse.Namespace, inputs: "list[Input]", read: "Reader", reading: str) -> None:
    """What all sources have in common."""
    from clipsep_jax.data_prep.coverage import summary
    from clipsep_jax.data_prep.embed_set import embed_record_set
    from clipsep_jax.data_prep.ledger import LEDGER_NAME, read_ledger
    from clipsep_jax.data_prep.writer import write_records

    encoder = None
    if getattr(options, "clip", None):
        from clipsep_jax.encoders.registry import load_encoder

        encoder = load_encoder(options.clip)  # before the long work
    try:
        manifest = write_records(
            inputs,
            read,
            options.out,
            run=_runner(options),
            reading=reading,
            audio_encoding=options.audio,
            max_rejected=options.max_rejected,
            command=("clipsep", *_remembered(sys.argv[1:])),
        )
        if encoder:
            embed_record_set(options.out, encoder)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; run the same command again to resume") from None
    say(summary(read_ledger(options.out / LEDGER_NAME)))
    say(f"{manifest.counts['accepted']} records are in {options.out}.")


def _runner(options: argparse.Namespace) -> "Runner":
    from clipsep_jax.data_prep.writer import PoolRunner

    if options.runner is None:
        if options.beam_option:
            raise InputError("--beam-option needs --runner.")
        return PoolRunner(options.workers or os.cpu_count() or 1, options.time_limit)
    try:
        from clipsep_jax.data_prep.beam import BeamRunner
    except ImportError as error:
        raise InputError(f"Apache Beam is missing ({error}); run: pip install 'clipsep-jax[beam]'") from error
    return BeamRunner(options.runner, tuple(options.beam_option), options.time_limit)


def _remembered(arguments: Sequence[str]) -> list[str]:
    """The command line without options that do not change the records: equal records have equal manifests."""
    kept, is_value = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if not is_value and name not in _WITHOUT_TRACE:
            kept.append(argument)
        is_value = not is_value and name in _WITHOUT_TRACE and not equals
    return kept


# By name: what its help says, its options, and what it does.
_COMMANDS: dict[str, tuple[str, Callable, Callable]] = {
    "videos": (
        "A folder of videos.\n\n"
        "Reads every video below DIR and writes records, a manifest and ledger.jsonl (a line per file).\n"
        "Run it again to resume.\n\n"
        "  clipsep prepare videos VIDEOS --labels labels.csv --out runs/videos --clip openai/clip-vit-base-patch32",
        _add_videos_options,
        _videos,
    ),
    "audio": (
        "A folder of recordings, for systems that need no pictures.\n\n"
        "  clipsep prepare audio RECORDINGS --labels labels.csv --out runs/recordings",
        _add_audio_options,
        _audio,
    ),
    "vggsound": (
        "VGGSound: 10 s from the start second of each row.\n\n"
        "The videos may lie anywhere below DIR, whole (ID.mp4) or cut (ID_000030.mp4).\n\n"
        "  clipsep prepare vggsound --csv vggsound.csv --videos VIDEOS --out runs/vggsound",
        _add_vggsound_options,
        _vggsound,
    ),
    "music": (
        "MUSIC or MUSIC-21, solos or duets.\n\n"
        "  clipsep prepare music --json MUSIC_solo_videos.json --videos VIDEOS --out runs/music",
        _add_music_options,
        _music,
    ),
    "official": (
        "A data set that the official code has extracted.\n\n"
        "Its lists have the columns audio file, folder of frames, their number, and maybe label.\n\n"
        "  clipsep prepare official train.csv val.csv test.csv --root . --out runs/official",
        _add_official_options,
        _official,
    ),
    "download": (
        "Fetch the videos of a list with yt-dlp.\n\n"
        "One after the other, with pauses; run it again to resume. DIR/download.jsonl records the outcome of each.\n"
        "Make sure that you are allowed to: the videos belong to others.\n\n"
        "  clipsep prepare download vggsound.csv --out VIDEOS",
        _add_download_options,
        _download,
    ),
    "embed": (
        "Embeddings of the pictures in finished records.\n\n"
        "Embeds the stored pictures again with another encoder; rerun to resume.\n\n"
        "  clipsep prepare embed data/music --encoder clip:openai/clip-vit-base-patch32\n"
        "  clipsep prepare embed data/music --encoder resnet18:microsoft/resnet-18",
        _add_embed_options,
        _embed,
    ),
    "report": (
        "What a preparation gave: reasons, hours, coverage, and a plot of the loudness.",
        _add_report_options,
        _report,
    ),
    "verify": (
        "Check every byte of finished records.",
        _add_verify_options,
        _verify,
    ),
    "table": (
        "Embeddings of labels by any sentence encoder, for BERTSep.",
        _add_table_options,
        _table,
    ),
}
