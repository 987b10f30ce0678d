"""Why a file gives no clip: a reason of the ledger (see docs/records.md) and a sentence."""

from collections.abc import Callable
from typing import NoReturn

from clipsep_jax.data.record import Record
from clipsep_jax.data_prep.ledger import Rejection


class Refused(Exception):
    """A file cannot be used.

    Attributes:
        reason: one of the ledger's reasons, such as "no_audio".
        detail: a sentence without its subject, the file.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def refuse(reason: str, detail: str) -> NoReturn:
    """Raise `Refused`."""
    raise Refused(reason, detail)


def undecodable(error: BaseException) -> Refused:
    """The refusal of a file that raised an error when it was read or decoded."""
    import av

    message = str(getattr(error, "strerror", None) or error or type(error).__name__)
    return Refused("undecodable", f"it cannot be decoded: {message}" if isinstance(error, av.FFmpegError) else message)


def outcome(make: Callable[[], Record]) -> Record | Rejection:
    """The record that `make` gives, or why there is none; an error in one file does not stop the others."""
    try:
        return make()
    except Exception as error:
        refusal = error if isinstance(error, Refused) else undecodable(error)
        return Rejection(refusal.reason, refusal.detail)
