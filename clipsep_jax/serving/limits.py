"""What a server takes, and for how long it keeps what it makes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a server takes, and for how long it keeps what it makes.

    Attributes:
        upload_megabytes: of one request, all of its files together.
        upload_seconds: in which a request must have come.
        recording_minutes: of sound.
        targets: stems of one recording.
        waiting: recordings that wait while one is separated; more are turned away.
        keep_minutes: after which uploads and results are removed.
        keep_gigabytes: of uploads and results; beyond, the oldest are removed first.
    """

    upload_megabytes: int = 200
    upload_seconds: int = 120
    recording_minutes: int = 30
    targets: int = 8
    waiting: int = 32
    keep_minutes: int = 60
    keep_gigabytes: int = 10

    @property
    def upload_bytes(self) -> int:
        return self.upload_megabytes * 10**6


DEFAULT_LIMITS = Limits()
