"""The command line: imports the module of the command that is asked for, and turns errors into exit codes."""

import argparse
import errno
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from clipsep_jax.errors import EXIT_FAILURE, EXIT_INPUT, EXIT_INTERRUPTED, InputError, InputWarning
from clipsep_jax.terminal import printable, say

# The module of each command has DESCRIPTION, describe(parser) and run(options, overrides).
COMMANDS = {
    "prepare": ("prepare", "Turn videos or recordings into records for training."),
    "train": ("train", "Train a model; run the same command again to resume."),
    "sweep-gamma": ("sweep", "Train a model for each gamma, all at once, and plot the effect."),
    "evaluate": ("evaluate", "Score a model, or estimates of another system, on held-out mixtures."),
    "compare": ("compare", "Say which of several evaluated systems is better, mixture by mixture."),
    "calibrate": ("calibrate", "Let a model tell whether a sound is there; training does it by itself."),
    "separate": ("separate", "Pull a sound out of a recording by a sentence."),
    "serve": ("serve", "Open a page and an HTTP door for separation."),
    "import-torch": ("import_torch", "Turn a checkpoint of the official PyTorch code into a model directory."),
    "export-torch": ("export_torch", "Turn a model into a checkpoint of the official PyTorch code."),
    "push": ("push", "Publish a model on the Hugging Face Hub, with a card."),
    "info": ("info", "Show what a model directory holds."),
    "demo": ("demo", "Run the whole job on made-up data, or on your own videos, and write a report."),
}
_WRONG_PATH = {errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR}  # the machine is well
_WITH_OVERRIDES = ("train", "sweep-gamma")  # any option of the config may follow


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        Its exit code: 0 done; 1 the machine failed; 2 the input cannot be used; 75 training was stopped by SIGTERM and
        is saved; 130 interrupted by Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(arguments)
    options, overrides = parser.parse_known_args(arguments)
    if overrides and arguments[0] not in _WITH_OVERRIDES:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}; see `clipsep {arguments[0]} --help`")
    from clipsep_jax.cli.compile_cache import keep_compiled_programs

    try:
        _quiet_libraries()
        with _plain_warnings():
            keep_compiled_programs()
            return options.run(options, overrides) or 0
    except InputError as error:
        _complain(error)
        return EXIT_INPUT
    except OSError as error:
        _complain(_os_error(error))
        return EXIT_INPUT if error.errno in _WRONG_PATH else EXIT_FAILURE
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _complain("This takes more memory than there is; give shorter input, smaller batches or a larger machine.")
        return EXIT_FAILURE
    except KeyboardInterrupt as stop:
        _complain(f"{str(stop) or 'interrupted'}.")
        return getattr(stop, "exit_code", EXIT_INTERRUPTED)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="clipsep", description=_DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in arguments[:1]:
            module = importlib.import_module(f"clipsep_jax.cli.{module_name}")
            command.description = "\n\n".join(filter(None, [summary, module.DESCRIPTION]))
            command.set_defaults(run=module.run)
            module.describe(command)
    return parser


_DESCRIPTION = "Text-queried sound separation, learned from noisy unlabeled videos (CLIPSep) in JAX."


@cache
def _quiet_libraries() -> None:
    """Silences Orbax's log of saves and second report of errors."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    show = sys.unraisablehook

    def show_others(event: Any) -> None:
        # After a failed write TensorStore reports once more for each other write that was under way.
        if str(event.exc_value) != "Event loop is closed":
            show(event)

    sys.unraisablehook = show_others


def _complain(problem: object) -> None:
    say(f"clipsep: {printable(str(problem))}", error=True)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    todo = "; make room and run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{where}{error.strerror or error}{todo}."


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Shows our own warnings as one sentence each, without the line of code; other warnings as always."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, InputWarning):
                _complain(message)
            else:
                others(message, category, *where, **more)

        warnings.simplefilter("always", InputWarning)
        warnings.showwarning = show
        yield


if __name__ == "__main__":
    sys.exit(main())
