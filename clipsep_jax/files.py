"""Writing files and folders so that none is ever seen half-written, and reading and writing JSON and CSV.

All JSON of the package goes through this module.
"""

import csv
import hashlib
import io
import json
import os
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import GenericAlias
from typing import Any, BinaryIO, TypeVar

from clipsep_jax.errors import InputError
from clipsep_jax.schema import SchemaError, checked

MOST_JSON_BYTES = 16 * 2**20  # of a file
_MOST_NAME_BYTES = 255
MOST_LIST_BYTES = 256 * 2**20  # of a file with a line for each clip or label
MOST_LINE_BYTES = 2**20  # of a line of a file of such lines

T = TypeVar("T")


def is_file_name(text: str) -> bool:
    """Whether a text names a file of a folder, rather than the folder, or something outside it."""
    try:
        num_bytes = len(os.fsencode(text))
    except UnicodeEncodeError:
        return False
    fits = 0 < num_bytes <= _MOST_NAME_BYTES and text not in (".", "..")
    return fits and not set(text) & {"/", os.sep, os.altsep, "\0"}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file of any size, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds `path` to errors of the operating system that name no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing; it takes that name only once it is complete and on disk.

    The temporary name, `*.partial`, is unique to the process and thread.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)  # so that the new name outlasts a power cut too
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def staged_folder(folder: Path, last: str = "") -> Iterator[Path]:
    """Give a scratch folder whose files move into `folder`, each whole, once the block ends without an error.

    A folder in it moves as one; its target must be missing or empty. After an error, nothing of it is left. The file
    named `last` moves after all others.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
            yield Path(scratch)
            move_all(Path(scratch), folder, last)
    except BaseException:
        if is_new:
            with suppress(OSError):  # not empty, if moving failed half way
                folder.rmdir()
        raise


def move_all(scratch: Path, folder: Path, last: str = "") -> None:
    """Move each file of a scratch folder into another, whole; the one named `last` after all others are there."""
    for path in sorted(scratch.iterdir(), key=lambda path: (path.name == last, path.name)):
        if path.suffix != ".partial":  # which a killed process left
            sync(path)
            os.replace(path, folder / path.name)


def encode_json(value: Any, indent: int | None = None) -> bytes:
    """A value as JSON with a newline at its end: one line, unless it is indented."""
    return json.dumps(value, indent=indent).encode() + b"\n"


def decode_json(text: str | bytes, where: object, otherwise: str, kind: type[T] | GenericAlias) -> T:
    """The value of a JSON text, checked against a type.

    Args:
        where: what the text was read from, for the message.
        otherwise: how the message continues if there is no such value, such as "is damaged; restore the file."
        kind: the type that the value must have, such as a dataclass; see `schema.checked`.

    Raises:
        InputError: the text is not JSON, or its value has another type.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} {otherwise}") from error
    return check_json(value, where, otherwise, kind)


def check_json(value: Any, where: object, otherwise: str, kind: type[T] | GenericAlias, name: str = "") -> T:
    """A part of a JSON value, called `name`, checked against a type; see `decode_json`."""
    try:
        return checked(kind, value, name)
    except SchemaError as error:
        raise InputError(f"{where} {otherwise.removesuffix('.')} ({error}).") from error


def read_json(path: Path, otherwise: str, kind: type[T] | GenericAlias) -> T:
    """The value of a JSON file; see `decode_json`.

    Raises:
        InputError: the file holds no JSON, a value of another type, or too many bytes.
        FileNotFoundError: there is no such file.
    """
    check_is_file(path)
    with path.open("rb") as file:
        data = file.read(MOST_JSON_BYTES + 1)
    if len(data) > MOST_JSON_BYTES:
        raise InputError(f"{path} {otherwise.removesuffix('.')} (it is larger than {MOST_JSON_BYTES >> 20} MiB).")
    return decode_json(data, path, otherwise, kind)


def read_json_lines(path: Path, otherwise: str, kind: type[T] | GenericAlias) -> list[T]:
    """The values of a file with one JSON value per line; see `decode_json`.

    Raises:
        InputError: a line holds no JSON, a value of another type, or too many bytes.
        FileNotFoundError: there is no such file.
    """
    check_is_file(path)
    values = list[T]()
    with path.open("rb") as file:
        while line := file.readline(MOST_LINE_BYTES):
            values.append(decode_json(line, f"{path}, line {len(values) + 1},", otherwise, kind))
    return values


def decode_json_lines(data: bytes) -> list[Any]:
    """The values of lines of JSON, not checked and all at once, which takes a twentieth of the time.

    Raises:
        ValueError, RecursionError: they are no such lines; `read_json_lines` tells which.
    """
    lines = data.splitlines()
    values = json.loads(b"[" + b",".join(lines) + b"]")
    if len(values) != len(lines):
        raise ValueError("a line holds several values")
    return values


def check_is_file(path: Path, most_bytes: int | None = None) -> None:
    """Refuse a folder, a pipe or a device, reading from which might never end, and a file that is too large.

    Raises:
        InputError: it is not a regular file, or has more than `most_bytes`.
        FileNotFoundError: there is no such file.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a folder, a pipe or a device; give a file.")
    if most_bytes is not None and status.st_size > most_bytes:
        raise InputError(f"{path} is larger than {most_bytes >> 20} MiB; give a smaller file.")


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write a file with one JSON value per line, whole or not at all."""
    with atomic_write(path) as file:
        file.writelines(map(encode_json, values))


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(encode_json(value, indent))


def write_csv(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file with a line of names, whole or not at all.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([_cell(value) for value in row] for row in (names, *rows))
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _cell(value: Any) -> Any:
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value
