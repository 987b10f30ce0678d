"""A record: one clip as a serialized `tf.train.Example`.

The format is described in docs/records.md. TensorFlow is neither needed nor imported.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from google.protobuf.message import DecodeError
from jaxtyping import Float32, Int16, UInt8
from PIL import Image

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.data.tfrecord import Example
from clipsep_jax.errors import InputError

FRAMES_PER_SECOND = 1
FRAME_SIZE = 224

AudioEncoding = Literal["pcm16", "flac"]

_TEXT = ("utf-8", "surrogateescape")  # a file name need not be valid UTF-8
_MAX_FLAC_SAMPLES = 2**25  # of one clip, 35 minutes; FLAC can hold a lot of silence in a few bytes


class CorruptRecordError(InputError):
    """A stored record does not read back as it was written.

    Attributes:
        reason: in a few words, such as "its checksum is wrong".
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Record:
    """One clip.

    Attributes:
        id: POSIX path of the clip relative to its folder.
        label: what is heard, "" where unknown.
        audio: 16-bit mono audio at 16 kHz; sample 0 is time 0.
        frames: JPEG pictures, RGB, 224 x 224, one per second; picture i is the one shown at i + 0.5 s. Empty where
            only their embeddings are kept.
        frame_embeddings: one embedding per picture, or None before they are computed.
        still_picture: whether all pictures of the video, not only the stored ones, are the same.
    """

    id: str
    label: str
    audio: Int16[np.ndarray, " L"]
    frames: tuple[bytes, ...]
    frame_embeddings: Float32[np.ndarray, "num_frames Q"] | None = None
    still_picture: bool = False

    @property
    def num_frames(self) -> int:
        """How many pictures there are, or were before only their embeddings were kept."""
        return len(self.frames if self.frame_embeddings is None else self.frame_embeddings)


def encode_record(record: Record, audio_encoding: AudioEncoding = "pcm16") -> bytes:
    """Serialize a record as a `tf.train.Example`; equal records give equal bytes.

    Args:
        audio_encoding: "pcm16", which is read fastest, or "flac", which is smaller; both are lossless.

    Raises:
        ValueError: the record does not hold one embedding per picture.
        TypeError: its arrays are not int16 and float32.
    """
    example = Example()
    feature = example.features.feature
    feature["id"].bytes_list.value.append(record.id.encode(*_TEXT))
    feature["label"].bytes_list.value.append(record.label.encode(*_TEXT))
    feature["audio"].bytes_list.value.append(_encode_audio(record.audio, audio_encoding))
    feature["encoding"].bytes_list.value.append(audio_encoding.encode())
    feature["sample_rate_hz"].int64_list.value.append(SAMPLE_RATE_HZ)
    feature["still_picture"].int64_list.value.append(int(record.still_picture))
    feature["frames"].bytes_list.value.extend(record.frames)
    embeddings = record.frame_embeddings
    if embeddings is not None:
        _check_count(len(embeddings), len(record.frames))
        packed = embeddings.astype("<f4", casting="equiv", copy=False).tobytes()
        feature["frame_embeddings"].bytes_list.value.append(packed)
        feature["query_size"].int64_list.value.append(embeddings.shape[1])
    return example.SerializeToString(deterministic=True)


def decode_record(data: bytes, *, with_frames: bool = True) -> Record:
    """Read a serialized record; its arrays are read-only.

    Args:
        data: what `encode_record` gave.
        with_frames: False leaves `frames` empty, for readers that need only audio and embeddings.

    Raises:
        CorruptRecordError: the bytes are not a record.
    """
    try:
        feature = Example.FromString(data).features.feature
        missing = sorted(_FEATURES - set(feature))
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if list(feature["sample_rate_hz"].int64_list.value) != [SAMPLE_RATE_HZ]:
            raise ValueError(f"its audio is not sampled at {SAMPLE_RATE_HZ} Hz")
        return Record(
            id=feature["id"].bytes_list.value[0].decode(*_TEXT),
            label=feature["label"].bytes_list.value[0].decode(*_TEXT),
            audio=_decode_audio(feature["audio"].bytes_list.value[0], feature["encoding"].bytes_list.value[0]),
            frames=tuple(feature["frames"].bytes_list.value) if with_frames else (),
            frame_embeddings=_decode_embeddings(feature),
            still_picture=bool(feature["still_picture"].int64_list.value[0]),
        )
    except (DecodeError, IndexError, ValueError) as error:
        message = f"The bytes are not a readable record ({error}); prepare the records again."
        raise CorruptRecordError(message, "it is not a readable record") from error


_FEATURES = {"id", "label", "audio", "encoding", "sample_rate_hz", "still_picture", "frames"}


def _encode_audio(audio: Int16[np.ndarray, " L"], encoding: str) -> bytes:
    if encoding == "pcm16":
        return audio.astype("<i2", casting="equiv", copy=False).tobytes()
    import soundfile

    buffer = io.BytesIO()
    samples = audio.astype(np.int16, casting="equiv", copy=False)
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, subtype="PCM_16", format="FLAC")
    return buffer.getvalue()


def _decode_audio(data: bytes, encoding: bytes) -> Int16[np.ndarray, " L"]:
    if encoding == b"pcm16":
        return np.frombuffer(data, "<i2").astype(np.int16, copy=False)
    if encoding != b"flac":
        raise ValueError("its audio has an unknown encoding")
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if (file.format, file.samplerate, file.channels) != ("FLAC", SAMPLE_RATE_HZ, 1):
                raise ValueError("its audio is not one-channel FLAC at the right rate")
            if file.frames > _MAX_FLAC_SAMPLES:
                raise ValueError(f"its audio has {file.frames} samples")
            return file.read(dtype="int16")
    except soundfile.SoundFileError as error:
        raise ValueError(f"its audio does not decode: {error}") from error


def _decode_embeddings(feature: Any) -> Float32[np.ndarray, "num_frames Q"] | None:
    if "frame_embeddings" not in feature:
        return None
    packed = np.frombuffer(feature["frame_embeddings"].bytes_list.value[0], "<f4").astype(np.float32, copy=False)
    embeddings = packed.reshape(-1, feature["query_size"].int64_list.value[0])
    _check_count(len(embeddings), len(feature["frames"].bytes_list.value))
    return embeddings


def _check_count(num_embeddings: int, num_frames: int) -> None:
    if num_frames not in (0, num_embeddings):
        raise ValueError(f"{num_embeddings} embeddings for {num_frames} pictures")


def decode_frame(jpeg: bytes) -> UInt8[np.ndarray, "224 224 3"]:
    """Decode one stored picture.

    Raises:
        CorruptRecordError: it is not a JPEG, is damaged, or is not of 224 x 224 pixels.
    """
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            if picture.size != (FRAME_SIZE, FRAME_SIZE):
                width, height = picture.size
                message = f"A stored picture has {width} x {height} pixels, not {FRAME_SIZE} x {FRAME_SIZE}."
                raise CorruptRecordError(message, "a picture is of another size")
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = "A stored picture is not a readable JPEG."
        raise CorruptRecordError(message, "a picture is not a readable JPEG") from error
