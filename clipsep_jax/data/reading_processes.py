"""Processes that read batches into memory that they share with this one.

Each worker reads its rows of every batch; a batch is handed out once all have. Its arrays lie in one of a few slots,
which is read into again when nothing refers to them any more. The memory has no name, so nothing of it is left behind,
however the processes end; a worker ends when its connection closes, thus with this process. Workers import no JAX: it
would cost each a second and 200 MB, and claim devices.
"""

import ctypes
import logging
import math
import mmap
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import UInt8

from clipsep_jax.data.reading import Arrays, BatchReader, Report
from clipsep_jax.errors import InputError, InputWarning

NUM_SLOTS = 8  # batches that are being read, wait, or are in use
MOST_RESTARTS = 3  # of workers that died, in a run
SLOW_SECONDS = 60.0  # without an answer, before it is said which record is waited for

_PERMIT = struct.Struct("=qq")  # a step and the slot for it
_PLACE = struct.Struct("=q")  # of the clip that a worker reads
_STARTING = -1
_LEAST_READING = 3  # slots that are not handed out
_ALIGNMENT = 64  # of arrays, for which JAX on CPU takes them as they are
_CHILD = "import sys; sys.path[:] = {path!r}; from clipsep_jax.data.reading_processes import serve; serve({connection})"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # of which the reading process makes more than its workers would


def read_in_processes(
    reader: BatchReader, num_workers: int, start: int
) -> Generator[tuple[Arrays, Report], None, None]:
    """The batches of `reader` from a step on, read by some processes; close it to end them.

    Raises:
        InputError: a record cannot be used.
        ChildProcessError: workers keep dying.
        MemoryError: there is too little memory for the slots.
    """
    pool = _Pool(reader, min(num_workers, reader.batch_size), start)
    try:
        pool.start()
        for step in count(start):
            yield pool.take(step)
    finally:
        pool.close()


@dataclass(frozen=True)
class _Memory:
    """How the shared memory is divided: a number for each worker, the pickled reader, then slots of arrays."""

    layout: dict[str, tuple[tuple[int, ...], np.dtype]]
    num_workers: int
    reader_bytes: int

    @property
    def reader(self) -> slice:
        """The place of the reader."""
        return slice(8 * self.num_workers, 8 * self.num_workers + self.reader_bytes)

    @property
    def slot_bytes(self) -> int:
        return sum(_aligned(_bytes_of(*array)) for array in self.layout.values())

    def before(self, slot: int) -> int:
        """Bytes before a slot."""
        return _aligned(self.reader.stop) + slot * self.slot_bytes

    @property
    def num_bytes(self) -> int:
        return self.before(NUM_SLOTS)

    def arrays(self, slot: UInt8[np.ndarray, " n"]) -> Arrays:
        """The arrays in the bytes of a slot."""
        arrays, begin = {}, 0
        for name, (shape, dtype) in self.layout.items():
            num_bytes = _bytes_of(shape, dtype)
            arrays[name] = slot[begin : begin + num_bytes].view(dtype).reshape(shape)
            begin += _aligned(num_bytes)
        return arrays


def _bytes_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class _Task:
    """What a worker is told when it starts."""

    memory: _Memory
    descriptor: int  # of the memory
    number: int  # of the worker
    start: int  # its first step

    def rows(self, batch_size: int) -> range:
        """The rows that it reads of every batch."""
        workers = self.memory.num_workers
        return range(self.number * batch_size // workers, (self.number + 1) * batch_size // workers)


class _Worker:
    """A process, and the connection to it."""

    def __init__(self, process: subprocess.Popen, connection: Connection):
        self.process, self.connection = process, connection
        self._events = select.poll()  # `Connection.poll` makes one for every call
        self._events.register(connection.fileno(), select.POLLIN)

    def answers(self, seconds: float) -> bool:
        """Whether it says something, or ends, within a time."""
        return bool(self._events.poll(1_000 * seconds))

    def allow(self, permit: tuple[int, int]) -> None:
        """Let it read its part of the batch of a step into a slot."""
        with suppress(ConnectionError):  # it died, which the next answer tells
            self.connection.send_bytes(_PERMIT.pack(*permit))


class _Pool:
    """The workers of one iteration, and the slots."""

    def __init__(self, reader: BatchReader, num_workers: int, start: int):
        self._reader = reader
        pickled = pickle.dumps(replace(reader), pickle.HIGHEST_PROTOCOL)  # without what it has cached
        self._layout = _Memory(reader.layout, num_workers, len(pickled))
        self._workers: dict[int, _Worker] = {}
        self._next_step = start
        self._slots: dict[int, int] = {}  # of the steps that workers may read, or have read
        self._free = deque(range(NUM_SLOTS))  # slots that nothing refers to
        self._num_restarts = 0
        self._descriptor = _reserve(self._layout.num_bytes)
        self._memory = mmap.mmap(self._descriptor, self._layout.num_bytes)
        self._memory[self._layout.reader] = pickled

    def start(self) -> None:
        """Start the workers."""
        first = self._next_step
        self._let_read_on()
        for number in range(self._layout.num_workers):
            self._start_worker(number, first)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers.values():
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers.values():
            with suppress(subprocess.TimeoutExpired):  # it hangs in a read that not even a kill ends
                worker.process.wait(timeout=2)
        os.close(self._descriptor)
        with suppress(BufferError):  # batches are still in use; the memory goes with the last of them
            self._memory.close()

    def take(self, step: int) -> tuple[Arrays, Report]:
        """Wait for all parts of the batch of a step."""
        self._let_read_on()
        report = Report()
        for number in range(self._layout.num_workers):
            part = None
            while part is None:
                part = self._part(number, step)
            report.replaced += part.replaced
            report.num_bytes += part.num_bytes
        return self._hand_out(step), report

    def _part(self, number: int, step: int) -> Report | None:
        """What a worker says of its part; None if it died and was started again."""
        worker = self._workers[number]
        if not worker.answers(SLOW_SECONDS):
            self._warn_of_slowness(number)
        try:
            part = worker.connection.recv()
        except (EOFError, ConnectionError):
            self._restart(number, step)
            return None
        if isinstance(part, Exception):
            raise part
        return Report(*part)

    def _restart(self, number: int, step: int) -> None:
        worker = self._workers.pop(number)
        worker.connection.close()
        cause = _cause_of_end(worker.process)
        if self._num_restarts == MOST_RESTARTS:
            raise ChildProcessError(
                f"Processes that read records keep dying ({cause}); "
                "run the same command again with a smaller --config.data.read_workers"
            )
        self._num_restarts += 1
        message = f"A process that reads records died ({cause}); it is started again."
        warnings.warn(message, InputWarning, stacklevel=4)
        self._start_worker(number, step)

    def _start_worker(self, number: int, start: int) -> None:
        ours, theirs = Pipe()
        code = _CHILD.format(path=sys.path, connection=theirs.fileno())
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # which the child inherits
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), self._descriptor),
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        _PLACE.pack_into(self._memory, number * _PLACE.size, _STARTING)
        self._workers[number] = worker = _Worker(process, ours)
        with suppress(ConnectionError):
            ours.send(_Task(self._layout, self._descriptor, number, start))
        for permit in self._slots.items():
            worker.allow(permit)

    def _let_read_on(self) -> None:
        """Give the slots that became free to the next steps."""
        while self._free:
            permit = (self._next_step, self._free.popleft())
            self._next_step += 1
            self._slots.update([permit])
            for worker in self._workers.values():
                worker.allow(permit)

    def _hand_out(self, step: int) -> Arrays:
        """The arrays of a batch in their slot; or a copy, if too few slots would be left to read into."""
        slot, num_bytes = self._slots.pop(step), self._layout.slot_bytes
        place = self._layout.before(slot)
        if len(self._slots) + len(self._free) < _LEAST_READING:
            data = np.frombuffer(self._memory, np.uint8, num_bytes, place).copy()
            self._free.append(slot)
        else:
            owner = (ctypes.c_char * num_bytes).from_buffer(self._memory, place)
            weakref.finalize(owner, self._free.append, slot).atexit = False
            data = np.frombuffer(memoryview(owner), np.uint8)
        return self._layout.arrays(data)

    def _warn_of_slowness(self, number: int) -> None:
        (place,) = _PLACE.unpack_from(self._memory, number * _PLACE.size)
        if place == _STARTING:
            message = f"A process that reads records took over {SLOW_SECONDS:.0f} s to start so far."
        else:
            clip = f"{self._reader.id_at(place)} of {self._reader.split.folder}"
            message = f"{clip} took over {SLOW_SECONDS:.0f} s to read so far; see whether its disk answers."
        warnings.warn(message, InputWarning, stacklevel=4)


def _reserve(num_bytes: int) -> int:
    """A descriptor of new memory without a name, all of it there."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("clipsep-batches")
        try:
            os.posix_fallocate(descriptor, 0, num_bytes)
        except OSError as error:
            os.close(descriptor)
            raise MemoryError from error
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.truncate(num_bytes)
        return os.dup(file.fileno())


def _cause_of_end(process: subprocess.Popen) -> str:
    """Why a process ended whose connection is closed."""
    try:
        code = process.wait(timeout=2)
    except subprocess.TimeoutExpired:  # it closed the connection, and goes on
        process.kill()
        code = process.wait()
    if code == -signal.SIGKILL:
        return "SIGKILL, perhaps for lack of memory"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def serve(descriptor: int) -> None:
    """Read parts of batches, as a worker, until the connection closes."""
    _import_grain_alone()
    connection = Connection(descriptor)
    with suppress(EOFError, ConnectionError):
        task: _Task = connection.recv()
        memory = mmap.mmap(task.descriptor, task.memory.num_bytes)
        reader: BatchReader = pickle.loads(memory[task.memory.reader])
        rows = task.rows(reader.batch_size)
        whole = np.frombuffer(memory, np.uint8)
        now_at = np.frombuffer(memory, np.int64, task.memory.num_workers)[task.number :]
        slots: dict[int, int] = {}
        for step in count(task.start):
            while step not in slots:
                slots.update([_PERMIT.unpack(connection.recv_bytes())])
            place = task.memory.before(slots.pop(step))
            arrays = task.memory.arrays(whole[place : place + task.memory.slot_bytes])
            try:
                report = reader.fill(step, rows, arrays, now_at)
                part: tuple | Exception = (report.replaced, report.num_bytes)
            except Exception as error:
                part = _sendable(error)
            connection.send(part)


def _import_grain_alone() -> None:
    """Import Grain as where there is no JAX, which it would import too; what a reader needs may import it after."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # it would miss JAX
    sys.modules["jax"] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    import grain  # noqa: F401

    del sys.modules["jax"]


def _sendable(error: Exception) -> Exception:
    """An error as another process can raise it."""
    if isinstance(error, InputError):
        return InputError(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return RuntimeError(traceback.format_exc())
