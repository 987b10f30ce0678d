"""The names of the files that separation writes."""

from collections.abc import Sequence
from pathlib import Path


def output_paths(folder: Path, name: str, queries: Sequence[str]) -> list[Path]:
    """NAME_QUERY.wav for every query and NAME_residual.wav, all different."""
    endings = [*map(_file_name, queries), "residual"]
    endings = [e if endings.count(e) == 1 or i == len(queries) else f"{e}_{i + 1}" for i, e in enumerate(endings)]
    return [folder / f"{name}_{ending}.wav" for ending in endings]


def _file_name(query: str) -> str:
    letters = "".join(c if c.isalnum() else "-" for c in query.lower())
    short = "-".join(filter(None, letters.split("-"))).encode()[:80].decode(errors="ignore")
    return short or "query"
