"""The command line: one function a command. Heavy modules are imported by the command that needs them."""

import argparse
import errno
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from clipsep_jax.command_options import add_mixture_options, positive
from clipsep_jax.compile_cache import keep_compiled_programs
from clipsep_jax.stopping import EXIT_INTERRUPTED
from clipsep_jax.structures import InputError, InputWarning
from clipsep_jax.training_commands import describe_sweep, describe_train, sweep_gamma_command, train_command

EXIT_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        Its exit code: 0 done, 1 a failure of the machine, 2 input that cannot be used, 130 interrupted by Ctrl-C, 75
        training stopped and saved after SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command not in (train_command, sweep_gamma_command):
        _parser().error(f"unrecognized arguments: {' '.join(rest)}; see `clipsep {arguments[0]} --help`")
    try:
        _quiet_orbax()
        with _plain_warnings():
            keep_compiled_programs()
            return options.command(options, rest) or 0
    except InputError as error:
        print(f"clipsep: {error}", file=sys.stderr)
        return EXIT_INPUT
    except OSError as error:
        print(f"clipsep: {_os_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"clipsep: {str(stop) or 'interrupted'}.", file=sys.stderr)
        return getattr(stop, "exit_code", EXIT_INTERRUPTED)


@cache
def _quiet_orbax() -> None:
    """Keeps off the screen what Orbax tells of every save, and of the errors that it raises besides."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def show_others(event: Any) -> None:
        # Once a write has failed, its event loop is closed, and TensorStore tells of every other write that ends later.
        if str(event.exc_value) != "Event loop is closed":
            show(event)

    sys.unraisablehook = show_others


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    todo = "; make room and run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{where}{error.strerror or error}{todo}."


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows our own warnings as one sentence each, the others as always."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, InputWarning):
                print(f"clipsep: {message}", file=sys.stderr)
            else:
                others(message, category, *where, **more)

        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = show
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clipsep", description=_DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (function, describe, text) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text.split("\n")[0],
            description=text,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(command=function)
        describe(command)
    return parser


_DESCRIPTION = "Text-queried sound separation, learned from noisy unlabeled videos (CLIPSep) in JAX."


def _describe_prepare(parser: argparse.ArgumentParser) -> None:
    from data_prep.commands import describe

    describe(parser)


def _describe_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model directory or training workdir")


def _describe_evaluate(parser: argparse.ArgumentParser) -> None:
    _describe_model(parser)
    parser.add_argument("--records", type=Path, required=True, metavar="RECORDS", help="folder of records")
    add_mixture_options(parser, least=1)
    parser.add_argument("--seed", type=int, default=0, help="of the draw of mixtures (default: 0)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write scores.json and mixtures.jsonl there")


def _evaluate(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.evaluate import Evaluation, table, write_scores
    from clipsep_jax.record_sets import RecordSet
    from clipsep_jax.separate import Separator

    separator = Separator.load(options.model)
    evaluation = Evaluation(separator, RecordSet(options.records), options.split, options.num_mixtures, options.seed)
    summary, rows = evaluation.run()
    print(table(summary))
    if options.out:
        print(f"Scores are in {write_scores(options.out, summary, rows)}.")


def _describe_separate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=Path, metavar="INPUT", help="wav, flac, mp3, ogg, or a video such as mp4")
    _describe_model(parser)
    parser.add_argument(
        "--query", action="append", default=[], metavar="TEXT", help="what to pull out; repeatable (PIT takes none)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the wav files")


def _separate(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.audio_files import write_sound
    from clipsep_jax.separate import Separator

    separator = Separator.load(options.model)
    waveform = read_recording(options.input, separator.sample_rate_hz)
    names = options.query or [f"source {n + 1}" for n in range(separator.config.model.num_learned_queries)]
    separator.embed(options.query)
    options.out.mkdir(parents=True, exist_ok=True)
    paths = output_paths(options.out, options.input.stem, names)
    separation = separator.separate(waveform, options.query, progress=True)
    for path, sound in zip(paths, [*separation.stems, separation.residual], strict=True):
        write_sound(path, sound, separator.sample_rate_hz)
        print(path)


def read_recording(path: Path, sample_rate_hz: int) -> Any:
    """The mono sound of a sound or video file."""
    from clipsep_jax.audio_files import SOUND_SUFFIXES, read_sound

    if path.suffix.lower() in SOUND_SUFFIXES or not path.is_file():
        return read_sound(path, sample_rate_hz)
    from data_prep.media import read_sound_of

    return read_sound_of(path)


def output_paths(folder: Path, name: str, queries: Sequence[str]) -> list[Path]:
    """NAME_QUERY.wav for every query and NAME_residual.wav, all different."""
    endings = [*map(_file_name, queries), "residual"]
    endings = [e if endings.count(e) == 1 or i == len(queries) else f"{e}_{i + 1}" for i, e in enumerate(endings)]
    return [folder / f"{name}_{ending}.wav" for ending in endings]


def _file_name(query: str) -> str:
    letters = "".join(c if c.isalnum() else "-" for c in query.lower())
    short = "-".join(filter(None, letters.split("-"))).encode()[:80].decode(errors="ignore")
    return short or "query"


def _describe_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT.pt", help="state dict of the official code")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="model directory to write")
    parser.add_argument("--system", metavar="NAME", help="which official model (default: told by its tensors)")
    parser.add_argument(
        "--clip", metavar="MODEL", help="query encoder: CLIP folder or hub id; resnet18-clip:PATH for sop"
    )
    parser.add_argument(
        "--train-args", type=Path, metavar="train-args.json", help="the run's settings, labels and table"
    )


def _import_torch(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.convert import import_torch

    out = import_torch(options.checkpoint, options.out, options.system, options.clip, options.train_args)
    print(f"The model is in {out}; see `clipsep info {out}`.")


def _describe_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="model directory or training workdir")
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT.pt", help="file to write")
    parser.add_argument("--safetensors", action="store_true", help="write OUT as safetensors, without pickle")
    parser.add_argument("--official-layout", type=Path, metavar="DIR", help="a folder for the official infer.py")


def _export_torch(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.convert import export_official_layout, export_torch

    if not options.out and not options.official_layout:
        raise InputError("There is nothing to write; give OUT.pt or --official-layout DIR.")
    if options.out:
        print(f"The state dict is in {export_torch(options.model, options.out, safetensors=options.safetensors)}.")
    if options.official_layout:
        print(f"The official layout is in {export_official_layout(options.model, options.official_layout)}.")


def _describe_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="model directory or training workdir")


def _info(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.model_dir import describe, open_model_dir

    print(describe(open_model_dir(options.model)))


def _describe_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    parser.add_argument("--videos", type=Path, metavar="DIR", help="your own videos in place of the toy set")
    parser.add_argument("--labels", type=Path, metavar="CSV", help="their labels (video,label), for text queries")
    parser.add_argument("--clip", metavar="MODEL", help="with --videos: CLIP folder or hub id, in place of a miniature")
    parser.add_argument("--steps", type=positive, metavar="N", help="training steps of the separator")


def _demo(options: argparse.Namespace, _: Sequence[str]) -> None:
    from clipsep_jax.demo.run import run_demo

    report = run_demo(options.out, videos=options.videos, labels=options.labels, clip=options.clip, steps=options.steps)
    print(f"The report is in {report}.")


_COMMANDS: dict[str, tuple[Callable, Callable[[argparse.ArgumentParser], None], str]] = {
    "prepare": (lambda *_: None, _describe_prepare, "Turn videos or recordings into records for training."),
    "train": (
        train_command,
        describe_train,
        "Train a model; run the same command again to go on.\n\n"
        "  clipsep train --config=configs/toy_smoke.py --workdir=runs/smoke\n"
        "  clipsep train --config=configs/clipsep_nit.py:vggsound --workdir=runs/nit --config.train.steps=100000",
    ),
    "sweep-gamma": (
        sweep_gamma_command,
        describe_sweep,
        "Train a model for each gamma, all at once, and plot what gamma does.\n\n"
        "  clipsep sweep-gamma --config=configs/clipsep_nit.py:toy --workdir=runs/gamma\n"
        "  clipsep sweep-gamma --config=configs/clipsep_nit.py:vggsound --workdir=runs/rates "
        "--vary optimizer.learning_rate=0.0003,0.001,0.003",
    ),
    "evaluate": (_evaluate, _describe_evaluate, "Score a model on held-out mixtures by text and image queries (SDR)."),
    "separate": (
        _separate,
        _describe_separate,
        "Pull a sound out of a recording by a sentence.\n\n"
        '  clipsep separate street.wav --model runs/nit --query "a photo of accordion" --out separated',
    ),
    "import-torch": (
        _import_torch,
        _describe_import,
        "Turn a checkpoint of the official PyTorch code into a model directory.\n\n"
        "  clipsep import-torch best_model.pt models/nit --clip openai/clip-vit-base-patch32",
    ),
    "export-torch": (
        _export_torch,
        _describe_export,
        "Turn a model into a checkpoint of the official PyTorch code.\n\n"
        "  clipsep export-torch runs/nit nit.pt\n"
        "  clipsep export-torch runs/nit --official-layout exported",
    ),
    "info": (_info, _describe_info, "Say what a model directory holds."),
    "demo": (
        _demo,
        _describe_demo,
        "Run the whole job on made-up data, or on your own videos, and write a report.\n\n"
        "  clipsep demo\n"
        "  clipsep demo --videos DIR --labels CSV",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
