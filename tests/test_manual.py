"""Whatever README.md and docs/ have their reader type works, at the least size."""

import io
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import clipsep_jax
from clipsep_jax.cli import main as command_line
from clipsep_jax.config import Config, differences
from clipsep_jax.config_files import read_config
from clipsep_jax.separation.targets import Target
from tests.manual_world import DOCUMENTS, NAMES, ROOT, Typed, copy_things, make_things, shrink, typed_in
from tests.separation.inputs import noise
from tests.serving.conftest import running
from tests.small import small_config

TYPED = [typed for path in DOCUMENTS for typed in typed_in(path)]
COMMANDS = [typed for typed in TYPED if not typed.is_python]

# What is parsed but not run: document, a part of the command, and why.
NOT_RUN = (
    ("README.md", "clipsep serve", "it serves until it is stopped; tests/serving/ does that"),
    ("docs/index.md", "clipsep demo", "tests/demo/ runs it whole"),
    ("docs/index.md", "clipsep serve", "the same"),
    ("docs/serving.md", "clipsep serve", "the same"),
    ("docs/troubleshooting.md", "clipsep serve", "the same"),
    ("docs/paper.md", "prepare download", "it needs a network"),
    ("docs/scaling.md", "data/runs/nit", "it is for the hosts of a TPU pod"),
    ("docs/scaling.md", "srun", "it is for a SLURM cluster"),
    ("docs/scaling.md", "--coordinator", "it is for several hosts"),
    ("docs/records.md", "--runner", "it is for a cluster"),
)

# The names that Python blocks take from what was said before.
ASSUMED = {
    "README.md": ("blocks",),
    "docs/separation.md": ("waveform", "blocks", "separator", "Target", "play"),
}

SERVER = "http://127.0.0.1:7860"
CLIP = "openai/clip-vit-base-patch32"
OF_SYSTEM = ("data.records", "objective.name", "model.num_noise_heads")  # the manual's commands say these


def smallest() -> list[str]:
    """Options of the least network and run, the same for all, which then share their compiled programs."""
    changes = differences(Config().to_dict(), small_config(Path(), steps=2).to_dict())
    return [f"--config.{name}={value}" for name, (_, value) in changes.items() if name not in OF_SYSTEM]


def is_run(typed: Typed) -> bool:
    return not any(typed.document == document and part in typed.whole for document, part, _ in NOT_RUN)


def parsed(words: Sequence[str]) -> tuple[Namespace, list[str]]:
    return command_line._parser(words).parse_known_args(words)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_one(command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)  # whose configs commands name
    words = command.words
    try:
        options, overrides = parsed(words)
    except SystemExit:
        pytest.fail(f"{command}: clipsep {command.text}\n{capsys.readouterr().err}", pytrace=False)
    if words[0] in command_line._WITH_OVERRIDES:
        read_config(options.config, overrides)
    else:
        assert overrides == []


def test_what_the_tables_name_is_in_the_manual():
    for document, part, _ in NOT_RUN:
        assert any(command.document == document and part in command.whole for command in COMMANDS), (document, part)
    for document, names in ASSUMED.items():
        blocks = " ".join(typed.text for typed in TYPED if typed.is_python and typed.document == document)
        assert [name for name in names if name not in blocks] == []


@pytest.fixture(scope="module")
def things(made_once, trained, clip_folder) -> Path:
    return made_once("manual", lambda folder: make_things(folder, trained, clip_folder))


def make_world(typed: Sequence[Typed], things: Path, world: Path) -> None:
    """Fills the folder of a reader, who has all that a document names, but for what its commands make."""
    (world / "configs").symlink_to(ROOT / "configs")
    commands = [parsed(each.words) for each in typed if not each.is_python]
    named = " ".join([*(each.text for each in typed), *(place for some in commands for place in inputs(*some))])
    made = {place for options, _ in commands for place in outputs(options)}
    copy_things(things, world, [name for name in NAMES if name in named and name not in made])


def inputs(options: Namespace, overrides: Sequence[str]) -> list[str]:
    """What a command reads though it does not say so: the data set of a config."""
    return [read_config(options.config, overrides).data.records] if "config" in options else []


def outputs(options: Namespace) -> list[str]:
    return [str(getattr(options, name, "")) for name in ("workdir", "out", "official_layout", "export_mixtures")]


@pytest.fixture
def run_command(monkeypatch, clip_folder) -> Callable[[Typed], None]:
    """Runs a command in this process, and its training at the least size."""
    shrink(monkeypatch)

    def run(command: Typed) -> None:
        words = [word.replace(CLIP, str(clip_folder)) for word in command.words]
        if words[0] in command_line._WITH_OVERRIDES:
            shutil.rmtree(parsed(words)[0].workdir, ignore_errors=True)  # two runs of one folder are alternatives
            words += smallest()
        monkeypatch.setattr(sys, "argv", ["clipsep", *words])
        told = io.StringIO()
        try:
            with redirect_stderr(told):  # and no `capsys`: Uvicorn has Abseil close what was the stderr before
                code = command_line.main(words)
        except BaseException as error:
            error.add_note(f"{command}: clipsep {shlex.join(words)}\n{told.getvalue()}")
            raise
        assert code == 0, f"{command}: clipsep {shlex.join(words)}\n{told.getvalue()}"

    return run


class Sentences:
    """Stands for the class of the package sentence-transformers, whose weights are not here."""

    def __init__(self, name: str):
        assert name

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([[len(text), text.count("o")] for text in texts])


@pytest.fixture
def run_block(monkeypatch, trained) -> Callable[[Typed, dict[str, Any]], None]:
    """Runs a block of Python among the names of those before."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Sentences))

    def run(block: Typed, names: dict[str, Any]) -> None:
        source = "\n" * (block.line - 1) + block.text  # so that an error names the line of the document
        with ExitStack() as stack:
            if SERVER in source:
                source = source.replace(SERVER, stack.enter_context(running(trained)))
            exec(compile(source, ROOT / block.document, "exec"), names)

    return run


@pytest.fixture
def known(trained) -> dict[str, Any]:
    """What the names of `ASSUMED` may stand for."""
    sounds = {"waveform": noise(2, 9_000), "blocks": [noise(2, 4_000)] * 2}
    return sounds | {"separator": clipsep_jax.load(trained), "Target": Target, "play": len}


def by_document() -> list[Any]:
    """What is run of each document."""
    found: dict[str, list[Typed]] = {}
    for typed in TYPED:
        if typed.is_python or is_run(typed):
            found.setdefault(typed.document, []).append(typed)
    return [pytest.param(typed, id=document) for document, typed in found.items()]


@pytest.mark.slow
@pytest.mark.parametrize("typed", by_document())
def test_a_document_does_what_it_says(typed, things, tmp_path, monkeypatch, known, run_command, run_block):
    monkeypatch.chdir(tmp_path)
    make_world(typed, things, tmp_path)
    names = {name: known[name] for name in ASSUMED.get(typed[0].document, ())}
    for each in typed:
        if each.is_python:
            run_block(each, names)
        else:
            run_command(each)
