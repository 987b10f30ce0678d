"""Models with random weights, and random inputs for them."""

from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Float32

from clipsep_jax.config import Config
from clipsep_jax.data.record_set import EncoderInfo
from clipsep_jax.model_dir import start_model_dir, write_weights
from clipsep_jax.models.clipsep import build_model


def write_random_model(folder: Path, config: Config, encoder: EncoderInfo | None = None) -> Path:
    """A model directory of the config's network, untrained."""
    start_model_dir(folder, config, encoder)
    write_weights(folder, build_model(config.model, nnx.Rngs(0)), 0, None)
    return folder


def random_queries(config: Config, num_queries: int) -> list[np.ndarray]:
    """Embeddings, so that no query encoder is needed."""
    rng = np.random.default_rng(1)
    return list(rng.normal(size=(num_queries, config.model.query_size)).astype(np.float32))


def random_sound(config: Config, seconds: float) -> Float32[np.ndarray, " L"]:
    """Noise at the model's sample rate."""
    num_samples = round(seconds * config.spectrogram.sample_rate_hz)
    sound = np.random.default_rng(2).random(num_samples, dtype=np.float32)
    sound -= 0.5
    return sound
