"""Recordings that the page offers to those who have none at hand."""

from dataclasses import dataclass
from pathlib import Path

from clipsep_jax.data_prep.sources.inputs import path_below, read_rows
from clipsep_jax.errors import InputError

MOST_EXAMPLES = 20


@dataclass(frozen=True)
class Example:
    """A recording, and what to pull out of it."""

    recording: Path
    query: str


def read_examples(table: Path) -> tuple[Example, ...]:
    """The examples of a CSV file with the columns `file`, relative to its folder, and `query`, such as the demo writes.

    Raises:
        InputError: the file cannot be read, names a file that is not there, or holds too many.
    """
    found = []
    for row, where in read_rows(table, ("file", "query")):
        recording = table.parent / path_below(row["file"], where, table.parent)
        if not recording.is_file():
            raise InputError(f"{where}: there is no file {recording}; leave the line out.")
        found.append(Example(recording, (row["query"] or "").strip()))
    if len(found) > MOST_EXAMPLES:
        raise InputError(f"{table} holds {len(found)} examples; keep {MOST_EXAMPLES} or fewer.")
    return tuple(found)
