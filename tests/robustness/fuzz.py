"""Changes files of every kind that is read, at random but repeatably, and counts what comes of it.

Asked is that each is read or refused in one sentence: no traceback, no 10 s, no 2 GB, nothing written outside of the
folders that were given, nothing run and nobody called.
"""

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MOST_BYTES = 2 * 10**9
STARTING_SECONDS = 300.0  # for imports, and for compiling at the first reading of a kind
SHARE_OF_SLOW = 0.15  # of the changes


def main() -> int:
    """Run for a time; the exit code is 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="of all changes (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--patience", type=float, default=10.0, help="seconds that one reading may take (default: 10)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        counts, faults = fuzz(Path(folder), options.seconds, options.seed, options.workers, options.patience)
    kinds = sorted({kind for kind, _ in counts})
    print(f"{'':<20}{'read':>8}{'refused':>9}{'faults':>8}")
    for kind in kinds:
        print(f"{kind:<20}{counts[kind, 'read']:>8}{counts[kind, 'refused']:>9}{counts[kind, 'fault']:>8}")
    print(f"{sum(counts.values())} changes by seed {options.seed}; {len(faults)} faults.")
    for fault in faults:
        print(f"\n{fault}")
    return 1 if faults else 0


def fuzz(folder: Path, seconds: float, seed: int, num_workers: int, patience: float) -> tuple[Counter, list[str]]:
    """How often each kind was read, refused or at fault, and each fault in words."""
    good = folder / "good"
    good.mkdir()
    maker = multiprocessing.get_context("spawn").Process(target=_make_good, args=(good,))
    maker.start()
    maker.join()
    assert maker.exitcode == 0
    workers = [_Worker(folder, good, seed, number, patience) for number in range(num_workers)]
    counts: Counter = Counter()
    faults: list[str] = []
    end = time.monotonic() + seconds
    number = 0
    try:
        while time.monotonic() < end:
            for worker in workers:
                if worker.is_free:
                    worker.begin(number)
                    number += 1
            multiprocessing.connection.wait([worker.pipe for worker in workers], timeout=0.2)
            for worker in workers:
                outcome = worker.outcome()
                if outcome:
                    kind, result, words = outcome
                    counts[kind, result] += 1
                    if result == "fault":
                        faults.append(words)
    finally:
        for worker in workers:
            worker.stop()
    return counts, faults


class _Worker:
    """A process that reads one changed folder after the other; one that hangs or grows is ended, and begun anew."""

    def __init__(self, folder: Path, good: Path, seed: int, number: int, patience: float):
        self._arguments = folder / f"worker{number}", good, seed
        self._patience = patience
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._change: int | None = None
        self._told: dict[str, Any] = {}
        self._known: set[str] = set()  # kinds that were read, and compiled, before

    @property
    def is_free(self) -> bool:
        return self._change is None

    def begin(self, number: int) -> None:
        self.pipe.send(number)
        self._change, self._begun, self._told = number, time.monotonic(), {}

    def outcome(self) -> tuple[str, str, str] | None:
        """Kind, result and words, once there are any."""
        if self._change is None:
            return None
        try:
            while self.pipe.poll():
                self._told |= self.pipe.recv()
                if "result" not in self._told:
                    self._begun = time.monotonic()  # the change is made, reading begins
        except (EOFError, ConnectionError):
            return self._fault(f"the process died with {self._process.exitcode}")
        kind = self._told.get("kind", "")
        if self._num_bytes() > MOST_BYTES:
            return self._fault(f"{self._num_bytes() / 1e9:.1f} GB of memory")
        if "result" not in self._told:
            most = self._patience if kind in self._known else STARTING_SECONDS
            return self._fault(f"no end after {most:.0f} s") if time.monotonic() - self._begun > most else None
        self._known.add(kind)
        number, self._change = self._change, None
        return kind, self._told["result"], f"Change {number}, {self._told['what']}: {self._told['words']}"

    def _fault(self, words: str) -> tuple[str, str, str]:
        kind, what = self._told.get("kind", "?"), self._told.get("what", "?")
        number = self._change
        self.stop()
        self._start()
        return kind, "fault", f"Change {number}, {what}: {words}"

    def _num_bytes(self) -> int:
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return 0
        return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _make_good(folder: Path) -> None:
    _prepare_process()
    from clipsep_jax.encoders.clip import load_clip
    from clipsep_jax.training.loop import train
    from tests.encoders.tiny_clip import make_tiny_clip_folder
    from tests.robustness.readings import READINGS
    from tests.small import QUERY_SIZE, make_records, small_config

    encoder, records, model = (folder / name for name in ("_clip", "_records", "_model"))
    make_tiny_clip_folder(encoder, projection_dim=QUERY_SIZE)
    make_records(records, encoder=load_clip(str(encoder)))
    train(small_config(records), model)
    for kind, reading in READINGS.items():
        reading.make(folder / kind, model, encoder)


def _prepare_process() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    from tests import conftest  # flags for quick compiling, and its cache

    assert conftest


def _work(pipe: Connection, folder: Path, good: Path, seed: int) -> None:
    _prepare_process()
    sys.stderr = sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    shutil.rmtree(folder, ignore_errors=True)  # of a process before
    changed, out = folder / "changed", folder / "out"
    watch = _Watch([folder])
    from clipsep_jax.errors import InputError
    from tests.robustness import readings
    from tests.robustness.mutations import changes_of

    sys.addaudithook(watch.see)
    while True:
        rng = random.Random(f"{seed} {pipe.recv()}")
        kinds = [name for name, one in readings.READINGS.items() if one.slow == (rng.random() < SHARE_OF_SLOW)]
        kind = rng.choice(kinds or list(readings.READINGS))
        reading = readings.READINGS[kind]
        shutil.rmtree(changed, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(good / kind, changed)
        out.mkdir()
        path = rng.choice(sorted(path for path in changed.glob(reading.files) if path.is_file()))
        change = rng.choice(changes_of(path))
        what = f"{change.__name__} of {path.relative_to(changed)} ({kind})"
        try:
            change(path, rng)
        except (ValueError, KeyError, IndexError):  # its kind has no such part
            what = f"nothing of {path.name}"
        pipe.send({"kind": kind, "what": what})
        readings.CHANGED[kind] = path.name
        watch.begin()
        result, words = "read", ""
        try:
            reading.read(changed, out)
        except InputError as error:
            result, words = "refused", str(error)
            if "\n" in words:
                result = "fault"
        except OSError as error:  # a sentence too, by the command line
            result, words = "refused", str(error)
        except BaseException:
            result, words = "fault", traceback.format_exc()
        watch.end()
        if watch.seen:
            result, words = "fault", f"it did {watch.seen[:3]}"
        pipe.send({"result": result, "words": words})


class _Watch:
    """Notes what a process writes outside of some folders, runs, or calls over the network."""

    _WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
    _CALLS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo")

    def __init__(self, allowed: list[Path]):
        cache = Path(__file__).resolve().parents[2] / ".pytest_cache"
        self._allowed = [*map(str, allowed), str(cache), os.devnull, "/proc", "/dev/shm"]
        self._watching = False
        self.seen: list[str] = []

    def begin(self) -> None:
        self.seen, self._watching = [], True

    def end(self) -> None:
        self._watching = False

    def see(self, event: str, arguments: tuple) -> None:
        if not self._watching:
            return
        if event in self._CALLS:
            self.seen.append(f"{event} {arguments[:1]}")
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            if isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                self._check(event, os.fsdecode(arguments[0]))
        elif event in self._WRITES:
            pair = event in ("os.rename", "os.link")
            folders = [number for number in arguments[2 if pair else 1 :] if isinstance(number, int) and number >= 0]
            for place in arguments[: 2 if pair else 1]:
                if isinstance(place, str | bytes | os.PathLike):
                    # The last number is the descriptor of a folder, where one was given.
                    near = f"/proc/self/fd/{folders[-1]}" if folders and event != "os.mkdir" else "."
                    self._check(event, os.path.join(os.path.realpath(near), os.fsdecode(place)))

    def _check(self, event: str, place: str) -> None:
        path = os.path.abspath(place)
        if "__pycache__" not in path and not any(path.startswith(folder) for folder in self._allowed):
            self.seen.append(f"{event} {path}")


if __name__ == "__main__":
    sys.exit(main())
