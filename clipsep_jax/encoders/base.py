"""What all query encoders share."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, PyTree, Shaped, UInt8

from clipsep_jax.encoders.pixels import PictureConfig, preprocess
from clipsep_jax.errors import InputError


class NoTextError(InputError):
    """A text was given to an encoder that takes only pictures."""


class Encoder:
    """A frozen network that turns pictures, and maybe texts, into query embeddings.

    `encode_images` is pure: pass `state` as an argument of the jitted function that calls it, so that the weights are
    not constants of the program.

    Attributes:
        name: what it was loaded by.
        folder: where its files are.
        pictures: how pictures are normalised.
        graphdef, state: the network's structure and its weights.
    """

    name: str
    folder: Path
    pictures: PictureConfig
    graphdef: nnx.GraphDef
    state: PyTree

    @property
    def query_size(self) -> int:
        """Size Q of an embedding."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """Side in pixels of the square picture that the network sees."""
        raise NotImplementedError

    @cached_property
    def sha256(self) -> str:
        """Hash that tells encoders of different embeddings apart."""
        raise NotImplementedError

    def features(self, model: nnx.Module, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B Q"]:
        """The embeddings of normalised pictures."""
        raise NotImplementedError

    def encode_images(self, state: PyTree, frames: UInt8[Array, "B H W 3"]) -> Float[Array, "B Q"]:
        """Embed pictures of any size, on the device; the result is not scaled to unit length."""
        pixels = preprocess(frames, self.image_size, self.pictures)
        return self.features(nnx.merge(self.graphdef, state), pixels)

    @cached_property
    def _encode_images(self) -> Callable[..., Array]:
        return jax.jit(self.encode_images)

    def embed_frames(self, frames: UInt8[np.ndarray, "B H W 3"], batch_size: int = 32) -> Float32[np.ndarray, "B Q"]:
        """Embed pictures from the host; every batch is padded to `batch_size`, so it compiles once."""
        return self._in_batches(self._encode_images, frames, batch_size)

    def embed_text(self, texts: Sequence[str], batch_size: int = 8) -> Float32[np.ndarray, "B Q"]:
        """Embed texts from the host.

        Raises:
            NoTextError: it takes only pictures.
        """
        raise NoTextError(f"{self.name} takes pictures and no text; give a picture.")

    def check_query_size(self, size: int, otherwise: str) -> None:
        """Refuse an encoder whose embeddings have another size; `otherwise` ends the message.

        Raises:
            InputError: the sizes differ.
        """
        if self.query_size != size:
            raise InputError(f"{self.name} makes embeddings of size {self.query_size}{otherwise}")

    def _in_batches(
        self, encode: Callable[..., Array], rows: Shaped[np.ndarray, "B ..."], batch_size: int
    ) -> Float32[np.ndarray, "B Q"]:
        embeddings = np.empty((len(rows), self.query_size), np.float32)
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            filled = np.pad(part, [(0, batch_size - len(part))] + [(0, 0)] * (rows.ndim - 1))
            embeddings[start : start + len(part)] = np.asarray(encode(self.state, jnp.asarray(filled)))[: len(part)]
        return embeddings
