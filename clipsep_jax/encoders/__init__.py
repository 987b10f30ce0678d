"""Frozen networks that turn pictures and sentences into query embeddings."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from clipsep_jax.structures import InputError


class NoTextError(InputError):
    """A text was given to an encoder that takes pictures alone."""


@runtime_checkable
class Encoder(Protocol):
    """What turns pictures, and maybe sentences, into query embeddings on the host."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def query_size(self) -> int: ...

    def embed_frames(self, frames: UInt8[np.ndarray, "B H W 3"]) -> Float32[np.ndarray, "B Q"]: ...

    def embed_text(self, texts: list[str]) -> Float32[np.ndarray, "n Q"]: ...
