"""The pictures of a media file: one per second, upright, cropped to a square, as JPEG."""

import math
from fractions import Fraction
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Int16
from PIL import Image

from clipsep_jax.data.record import FRAME_SIZE
from clipsep_jax.data_prep.decode import limits
from clipsep_jax.data_prep.decode.refusal import refuse
from clipsep_jax.data_prep.decode.sound import time_of

JPEG_QUALITY = 95

_TIME_TOLERANCE = Fraction(1, 1000)  # s; Matroska rounds its time stamps to this
_STILL_LEVELS = 6  # of 255: lossy coding alone may change a block's mean by so much


class Pictures:
    """Gathers the pictures shown at 0.5 s, 1.5 s, ... after `start`, from pictures in display order.

    Attributes:
        end: when the last picture ends, in seconds after `start`.
        still: whether all pictures shown from `start` on are the same, apart from lossy coding.
    """

    def __init__(self, start: Fraction) -> None:
        self.end = Fraction(0)
        self.still = False
        self._start = start
        self._first: np.ndarray | None = None
        self._first_shown: Fraction | None = None
        self._latest: Any = None
        self._latest_jpeg = b""
        self._jpegs: list[bytes] = []

    def add(self, frame: Any) -> None:
        time = time_of(frame)
        shown = self.end if time is None else time - self._start
        limits.check_duration(float(shown), limits.MAX_SECONDS)
        if self._first_shown is None:
            self._first_shown = shown
        while self._latest is not None and len(self._jpegs) + Fraction(1, 2) + _TIME_TOLERANCE < shown:
            self._take_latest()
        self._latest, self._latest_jpeg = frame, b""
        self.end = max(self.end, shown + (frame.duration or 0) * (frame.time_base or 0))
        if shown >= 0 and (self._first is None or self.still):
            self._compare(frame)

    @property
    def begins_late(self) -> bool:
        return self._first_shown is None or self._first_shown > 0

    def _compare(self, frame: Any) -> None:
        brightness = _brightness(frame)
        if self._first is None:
            self._first = brightness
        alike = brightness.shape == self._first.shape
        self.still = alike and bool(np.abs(brightness - self._first).max() <= _STILL_LEVELS)

    def _take_latest(self) -> None:
        self._latest_jpeg = self._latest_jpeg or _encode_jpeg(self._latest)
        self._jpegs.append(self._latest_jpeg)

    def finish(self, seconds: float) -> tuple[bytes, ...]:
        """Give the pictures of the first `seconds`: one per second, rounded, at least one."""
        if self._latest is None:
            refuse("undecodable", "no picture could be decoded")
        num_frames = max(1, math.floor(seconds + 0.5))
        while len(self._jpegs) < num_frames:
            self._take_latest()
        return tuple(self._jpegs[:num_frames])


def _brightness(frame: Any) -> Int16[np.ndarray, "h w"]:
    """Means of blocks of 8 x 8 pixels, 0 to 255."""
    width, height = max(1, frame.width // 8), max(1, frame.height // 8)
    return frame.reformat(width, height, "gray", interpolation="AREA").to_ndarray().astype(np.int16)


def _encode_jpeg(frame: Any) -> bytes:
    """Turn a picture upright and encode it."""
    picture = frame.to_image()
    if frame.rotation:
        picture = picture.rotate(frame.rotation, expand=True)
    return square_jpeg(picture)


def square_jpeg(picture: Image.Image) -> bytes:
    """Bring the shorter side to 224 pixels (bicubic), keep the centre, and compress."""
    buffer = BytesIO()
    crop_square(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def crop_square(picture: Image.Image) -> Image.Image:
    """Resize the shorter side to 224 and crop the centre in one step, so that nothing outside the crop is computed."""
    shorter = min(picture.size)
    scales = [side / int(FRAME_SIZE * side / shorter) for side in picture.size]
    lefts = [round((int(FRAME_SIZE * side / shorter) - FRAME_SIZE) / 2) for side in picture.size]
    left, top, right, bottom = (
        scale * (corner + size) for size in (0, FRAME_SIZE) for scale, corner in zip(scales, lefts, strict=True)
    )
    box = (left, top, min(right, picture.width), min(bottom, picture.height))
    return picture.resize((FRAME_SIZE, FRAME_SIZE), Image.Resampling.BICUBIC, box=box)
