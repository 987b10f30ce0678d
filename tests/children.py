"""Child processes, as Linux tells them; elsewhere none are found."""

import time
from collections.abc import Collection
from pathlib import Path


def children_of(pid: int) -> set[int]:
    """The children of a process."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for file in files for child in file.read_text().split()}


def ended(pids: Collection[int], seconds: float) -> bool:
    """Whether all of these processes end within a time; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while any(_is_alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
