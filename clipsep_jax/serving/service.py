"""What the page and the HTTP door have in common: uploads go in, results come out, and both go away in time."""

import secrets
import shutil
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np

from clipsep_jax.errors import InputError
from clipsep_jax.separation.files import Recording
from clipsep_jax.separation.job import Job, Separated, separate_file
from clipsep_jax.separation.separator import Separator
from clipsep_jax.separation.stem_files import WAV, StemFormat
from clipsep_jax.separation.targets import Target, read_targets
from clipsep_jax.serving.limits import Limits
from clipsep_jax.serving.line import Line, Ticket
from clipsep_jax.sound_files import open_sound
from clipsep_jax.terminal import printable, say

FAULT = "Something went wrong on the server; its log says what."
_OF_THE_KEPT = 0.5  # that one result may take
MOST_TEXT_LETTERS = 500  # of a query
_MOST_NAME_LETTERS = 80
_TIDY_SECONDS = 30
_BLOCK_BYTES = 2**20


class Fault(Exception):
    """Something of ours went wrong, and is in the log."""


@dataclass(frozen=True)
class Upload:
    """A file of a client: where it lies here, and its name there, for messages and the names of results."""

    path: Path
    name: str


@dataclass(frozen=True)
class Asked:
    """What a client asks for.

    Attributes:
        recording: a sound or a video.
        queries: texts.
        without: texts of what all targets leave out.
        pictures, examples: queries that are files.
        form: of the stems.
    """

    recording: Upload
    queries: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    pictures: tuple[Upload, ...] = ()
    examples: tuple[Upload, ...] = ()
    form: StemFormat = WAV

    @property
    def uploads(self) -> tuple[Upload, ...]:
        """All files."""
        return self.recording, *self.pictures, *self.examples


@dataclass(frozen=True)
class Result:
    """What was made.

    Attributes:
        key: that nobody guesses; the name of its folder.
        titles: of the files, in the order of `separated.paths`; the last two are the residual and the mixture.
        separated: the files, and what is known of them.
    """

    key: str
    titles: tuple[str, ...]
    separated: Separated


class Service:
    """Separates what clients send, one recording after the other.

    Attributes:
        separator: the model.
        limits: what is taken, and how long it is kept.
        root: the folder below which everything lies; `close` removes it.
        line: of recordings that wait.
    """

    def __init__(self, separator: Separator, limits: Limits, root: Path):
        self.separator, self.limits, self.root = separator, limits, root
        self.line = Line(limits.waiting)
        for folder in self._folders:
            folder.mkdir(parents=True)
        self._closed, self._tidying = threading.Event(), threading.Lock()
        self._in_use: Counter[Path] = Counter()  # files that tickets wait to read
        self._for_ever: frozenset[Path] = frozenset()
        self._tidier = threading.Thread(target=self._tidy_for_ever, daemon=True)
        self._tidier.start()

    @property
    def uploads(self) -> Path:
        """Of programs; also while they come."""
        return self.root / "uploads"

    @property
    def page_uploads(self) -> Path:
        """Of the page, which writes them itself, each into a folder."""
        return self.root / "page"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self.uploads, self.page_uploads, self.results

    def warm_up(self) -> Ticket[None]:
        """Compiles what the first recording would wait for; the others wait in line."""

        def work(_: Ticket) -> None:
            size = self.separator.config.model.query_size
            query = [] if self.separator.config.model.num_learned_queries else [np.ones(size, np.float32)]
            with suppress(InputError):  # models of labels take no such query, and compile in moments
                self.separator.separate(np.zeros((1, self.separator.sample_rate_hz), np.float32), query)

        return self.line.join(work)

    def keep_what_is_there(self) -> None:
        """Whatever lies here now is never removed before the end."""
        self._for_ever = frozenset(path for folder in self._folders for path in folder.iterdir())

    def keep(self, file: BinaryIO, name: str) -> Upload:
        """Copies what a client sends to a place and a name of our own."""
        path = self.uploads / secrets.token_urlsafe(16)
        with path.open("xb") as copy:
            shutil.copyfileobj(file, copy, _BLOCK_BYTES)
        return Upload(path, name_of(name))

    def submit(self, asked: Asked) -> Ticket[Result]:
        """Puts a recording in line.

        Its future raises InputError, in words that name the client's files, or Fault after one of ours.

        Raises:
            InputError: too much is asked for.
            Full: too many wait.
        """
        num_targets = len(asked.queries) + len(asked.pictures) + len(asked.examples)
        if num_targets > self.limits.targets:
            raise InputError(f"{num_targets} sounds are asked for; ask for at most {self.limits.targets} at once.")
        if any(len(text) > MOST_TEXT_LETTERS for text in (*asked.queries, *asked.without)):
            raise InputError(f"A query has more than {MOST_TEXT_LETTERS} letters; use fewer words.")
        named = len(asked.without) + sum(text.count(" + ") + 1 for text in asked.queries)
        if named > 2 * self.limits.targets:
            raise InputError(f"{named} sounds are named; name at most {2 * self.limits.targets} at once.")
        files = [upload.path for upload in asked.uploads]
        ticket = self.line.join(lambda ticket: self._separate(asked, ticket))
        with self._tidying:
            self._in_use.update(files)
        ticket.future.add_done_callback(lambda _: self._let_go(files))
        return ticket

    def _let_go(self, files: Sequence[Path]) -> None:
        with self._tidying:
            self._in_use.subtract(files)
            self._in_use += Counter()  # drops those that nobody reads

    def file(self, key: str, name: str) -> Path | None:
        """A file of a result, if it is still there."""
        if {key, name} & {"", ".", ".."} or set("/\\\0") & set(key + name):
            return None
        with suppress(OSError):  # a name that no file can have
            path = self.results / key / name
            return path if path.is_file() else None
        return None

    def _separate(self, asked: Asked, ticket: Ticket[Result]) -> Result:
        key = secrets.token_urlsafe(16)
        out = self.results / key
        try:
            model = str(self.separator.model_dir.folder)
            with _as_the_client_says(model, asked.uploads):
                self._check_room(asked)
                job = Job(
                    self._targets(asked),
                    out,
                    form=asked.form,
                    residual=True,
                    mixture=True,
                    spectrogram=True,
                    max_seconds=60 * self.limits.recording_minutes,
                )
                recording = Recording(
                    asked.recording.path, PurePath(PurePath(asked.recording.name).stem or "recording")
                )
                separated = separate_file(self.separator, recording, job, _tell(ticket))
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise
        finally:
            self._tidy()
        return Result(key, tuple(job.titles(self.separator)), separated)

    def _check_room(self, asked: Asked) -> None:
        """Refuses a recording whose stems would take more than their share of the disk."""
        with open_sound(asked.recording.path, 60 * self.limits.recording_minutes) as sound:
            seconds = sound.seconds or 60 * self.limits.recording_minutes
            size = 2 * sound.rate_hz * sound.num_channels * seconds
        stems = len(asked.queries) + len(asked.pictures) + len(asked.examples) + 2
        most = _OF_THE_KEPT * self.limits.keep_gigabytes * 10**9
        if size * stems > most:
            raise InputError(
                f"The stems of {asked.recording.path} would take {size * stems / 10**9:.1f} GB, more than the "
                f"{most / 10**9:.1f} GB for one recording here; ask for fewer, or send less sound or fewer channels."
            )

    def _targets(self, asked: Asked) -> tuple[Target, ...]:
        texts = [*(("without", text) for text in asked.without), *(("query", text) for text in asked.queries)]
        files = [*(("image", file) for file in asked.pictures), *(("example", file) for file in asked.examples)]
        words = [*texts, *((word, str(file.path)) for word, file in files)]
        targets = read_targets(words, self.separator.prompt)
        names = [*asked.queries, *(PurePath(file.name).stem for _, file in files)]
        return tuple(replace(target, name=name) for target, name in zip(targets, names, strict=True))

    def close(self) -> None:
        """Ends all work and removes all files."""
        self._closed.set()
        self.line.close()
        self._tidier.join()
        shutil.rmtree(self.root, ignore_errors=True)

    def _tidy_for_ever(self) -> None:
        while not self._closed.wait(_TIDY_SECONDS):
            self._tidy()

    def _tidy(self) -> None:
        """Removes what is too old, and the oldest where there is too much."""
        oldest = time.time() - 60 * self.limits.keep_minutes
        with self._tidying:
            there = [path for folder in self._folders for path in folder.iterdir() if path not in self._for_ever]
            found = sorted(_age_and_size(path) for path in there if not self._is_in_use(path))
            total = sum(size for _, size, _ in found)
            for changed, size, path in found:
                if changed > oldest and total <= self.limits.keep_gigabytes * 10**9:
                    break
                total -= size
                remove(path)

    def _is_in_use(self, path: Path) -> bool:
        return any(path == each or path in each.parents for each in self._in_use)


def name_of(text: str) -> str:
    """A client's name of a file, without its folders and without what a terminal obeys."""
    return printable(PurePath(text.replace("\\", "/")).name)[-_MOST_NAME_LETTERS:] or "recording"


def remove(path: Path) -> None:
    """Removes a file or a folder that may have gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _age_and_size(path: Path) -> tuple[float, int, Path]:
    """When something last changed, and its bytes; files that go meanwhile count nothing."""
    changed, size = 0.0, 0
    with suppress(OSError):
        for each in (path, *path.rglob("*")):
            status = each.stat()
            changed, size = max(changed, status.st_mtime), size + status.st_size
    return changed, size, path


def _tell(ticket: Ticket) -> Callable[[float, float | None], None]:
    return lambda done, total: ticket.go_on(done / total if total else None)


@contextmanager
def _as_the_client_says(model: str, uploads: Sequence[Upload]) -> Iterator[None]:
    """Names files as the client does, and keeps our own faults and folders to ourselves."""
    try:
        for upload in uploads:
            if not upload.path.is_file():
                raise InputError(f"{upload.path} had to make room for others; send it again.")
        yield
    except InputError as error:
        text = str(error).replace(model, "The model")
        for upload in uploads:
            text = text.replace(str(upload.path), upload.name)
        raise InputError(text) from None
    except CancelledError:
        raise
    except Exception as error:
        say("".join(traceback.format_exception(error)), error=True)
        raise Fault(FAULT) from None
