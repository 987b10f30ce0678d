"""A bounded line of work, of which one piece is done at a time."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Full(Exception):
    """The line is as long as it may be."""


class Ticket(Generic[Result]):
    """A place in the line.

    Attributes:
        future: what the work gives, or raises.
        share: of the work that is done, if known.
    """

    future: Future[Result]

    def __init__(self) -> None:
        self.share: float | None = None
        self._left = threading.Event()

    def leave(self) -> None:
        """Nobody waits for the result any more: the work is not begun, or ends at its next step."""
        self._left.set()
        self.future.cancel()

    def go_on(self, share: float | None) -> None:
        """Tells how far the work is.

        Raises:
            CancelledError: nobody waits for it any more.
        """
        if self._left.is_set():
            raise CancelledError
        self.share = share


class Line:
    """Does one piece of work after the other, in a thread of its own."""

    def __init__(self, most_waiting: int):
        self._most = most_waiting + 1
        self._tickets: list[Ticket] = []  # the first one is worked on
        self._lock = threading.RLock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="separate")

    def join(self, work: Callable[[Ticket[Result]], Result]) -> Ticket[Result]:
        """Puts work at the end of the line; it is given its ticket, to tell how far it is.

        Raises:
            Full: too many wait.
        """
        ticket: Ticket[Result] = Ticket()
        with self._lock:
            if len(self._tickets) >= self._most:
                raise Full
            self._tickets.append(ticket)
            ticket.future = self._worker.submit(work, ticket)
        ticket.future.add_done_callback(lambda _: self._remove(ticket))
        return ticket

    def place(self, ticket: Ticket) -> int:
        """How many pieces of work come before a ticket's; 0 once it is begun."""
        with self._lock:
            return self._tickets.index(ticket) if ticket in self._tickets else 0

    def __len__(self) -> int:
        """How many pieces are not done."""
        return len(self._tickets)

    def close(self) -> None:
        """Ends the work in hand at its next step, and all that waits."""
        with self._lock:
            left = list(self._tickets)
        for ticket in left:
            ticket.leave()
        self._worker.shutdown()

    def _remove(self, ticket: Ticket) -> None:
        with self._lock:
            self._tickets.remove(ticket)
