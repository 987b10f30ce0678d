"""Pictures as the encoders see them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


@dataclass(frozen=True)
class PictureConfig:
    """How a picture becomes the vision tower's input.

    Attributes:
        mean, std: of each colour, on the scale 0 to 1.
        squash: resize both sides freely, instead of resizing the shorter side and cropping the centre.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    squash: bool = False


def preprocess(frames: UInt8[Array, "B H W 3"], image_size: int, config: PictureConfig) -> Float[Array, "B S S 3"]:
    """Fit pictures to a square of `image_size` and normalise their colours, as Hugging Face's CLIP does."""
    pixels = frames.astype(jnp.float32)
    if frames.shape[1:3] != (image_size, image_size):
        pixels = _fit(pixels, image_size, config.squash)
    mean, std = (jnp.broadcast_to(jnp.float32(colours), pixels.shape) for colours in (config.mean, config.std))
    return (pixels / 255 - mean) / std


def _fit(pixels: Float[Array, "B H W 3"], size: int, squash: bool) -> Float[Array, "B S S 3"]:
    batch, height, width, _ = pixels.shape
    short = min(height, width)
    tall, wide = (size, size) if squash else (int(size * height / short), int(size * width / short))
    # Pillow resizes 8-bit pictures one axis after the other, and rounds each time.
    for shape in ((batch, height, wide, 3), (batch, tall, wide, 3)):
        resized = jax.image.resize(pixels, shape, method="cubic", antialias=True)
        pixels = jnp.clip(jnp.round(resized), 0, 255)
    top, left = (tall - size) // 2, (wide - size) // 2
    return pixels[:, top : top + size, left : left + size]
