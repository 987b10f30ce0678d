"""A miniature CLIP with random weights and a real byte-level tokenizer, for tests of whatever needs an encoder."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from clipsep_jax.encoders.clip import save_clip
from clipsep_jax.encoders.clip_network import Clip, ClipConfig, TextConfig, VisionConfig

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
MERGES = [("t", "h"), ("th", "e</w>"), ("a", "n"), ("an", "d</w>"), ("o", "f</w>"), ("i", "n"), ("in", "g</w>")]


def make_tokenizer():
    """Byte-level pair encoding as CLIP's: every byte, every byte that ends a word, a few merges, two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    words = [*alphabet, *(letter + "</w>" for letter in alphabet), *(left + right for left, right in MERGES)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=MERGES)


def tiny_config(
    image_size: int = 224,
    patch_size: int = 32,
    projection_dim: int = 32,
    max_length: int = 77,
    hidden_act: str = "quick_gelu",
    eos_token_id: int | None = None,
) -> ClipConfig:
    """Settings of a CLIP of two layers a tower; the end token is the tokenizer's unless given."""
    tokenizer = make_tokenizer()
    eos = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    return ClipConfig(
        TextConfig(len(tokenizer), 24, 48, 2, 3, max_length, hidden_act, 1e-5, eos),
        VisionConfig(32, 64, 2, 4, image_size, patch_size, hidden_act, 1e-5),
        projection_dim,
    )


def random_clip(config: ClipConfig, seed: int = 0) -> Clip:
    """A CLIP whose every variable is random, biases and scales too."""
    model = nnx.eval_shape(lambda: Clip(config, nnx.Rngs(0)))
    generator = np.random.default_rng(seed)
    draw = lambda leaf: jnp.asarray(0.2 * generator.standard_normal(leaf.shape), leaf.dtype)  # noqa: E731
    nnx.update(model, jax.tree.map(draw, nnx.state(model)))
    return model


def make_tiny_clip_folder(path: Path, *, seed: int = 0, **settings) -> Path:
    """Write a random CLIP as a Hugging Face folder; `settings` are those of `tiny_config`."""
    config = tiny_config(**settings)
    save_clip(path, random_clip(config, seed), config, make_tokenizer(), IMAGE_MEAN, IMAGE_STD)
    return path
