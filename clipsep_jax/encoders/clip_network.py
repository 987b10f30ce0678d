"""The network of CLIP: both towers in Flax NNX, and the table of its tensors' names at Hugging Face."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from clipsep_jax.tensors import CONV, LINEAR, Rule

CLIP_RULES = (
    Rule("{tower}_model.embeddings.position_ids", None),
    Rule("{tower}_model.embeddings.position_embedding.weight", "{tower}.position_embedding"),
    Rule("text_model.embeddings.token_embedding.weight", "text.token_embedding.embedding"),
    Rule("vision_model.embeddings.class_embedding", "vision.class_embedding"),
    Rule("vision_model.embeddings.patch_embedding.weight", "vision.patch_embedding.kernel", CONV),
    Rule(
        "{tower}_model.encoder.layers.{i}.self_attn.{part}.weight", "{tower}.layers.{i}.attention.{part}.kernel", LINEAR
    ),
    Rule("{tower}_model.encoder.layers.{i}.self_attn.{part}.bias", "{tower}.layers.{i}.attention.{part}.bias"),
    Rule("{tower}_model.encoder.layers.{i}.mlp.{part}.weight", "{tower}.layers.{i}.mlp.{part}.kernel", LINEAR),
    Rule("{tower}_model.encoder.layers.{i}.mlp.{part}.bias", "{tower}.layers.{i}.mlp.{part}.bias"),
    Rule("{tower}_model.encoder.layers.{i}.{norm}.weight", "{tower}.layers.{i}.{norm}.scale"),
    Rule("{tower}_model.encoder.layers.{i}.{norm}.bias", "{tower}.layers.{i}.{norm}.bias"),
    Rule("{tower}_model.{norm}.weight", "{tower}.{norm}.scale"),
    Rule("{tower}_model.{norm}.bias", "{tower}.{norm}.bias"),
    Rule("{which}_projection.weight", "{which}_projection.kernel", LINEAR),
    Rule("logit_scale", "logit_scale"),
)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclass(frozen=True)
class TextConfig:
    """Settings of the text tower, under Hugging Face's names and with its defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407


@dataclass(frozen=True)
class VisionConfig:
    """Settings of the vision tower, under Hugging Face's names and with its defaults."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class ClipConfig:
    """Settings of both towers; the defaults are ViT-B/32."""

    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    projection_dim: int = 512


class Attention(nnx.Module):
    """Multi-head self-attention; `causal` hides later positions."""

    def __init__(self, config: TextConfig | VisionConfig, causal: bool, rngs: nnx.Rngs) -> None:
        self.num_heads = config.num_attention_heads
        self.causal = causal
        size = config.hidden_size
        self.q_proj = nnx.Linear(size, size, rngs=rngs)
        self.k_proj = nnx.Linear(size, size, rngs=rngs)
        self.v_proj = nnx.Linear(size, size, rngs=rngs)
        self.out_proj = nnx.Linear(size, size, rngs=rngs)

    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        heads = (*x.shape[:2], self.num_heads, -1)
        query, key, value = (part(x).reshape(heads) for part in (self.q_proj, self.k_proj, self.v_proj))
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=self.causal)
        return self.out_proj(mixed.reshape(x.shape))


class Mlp(nnx.Module):
    """Two linear layers around the configured activation."""

    def __init__(self, config: TextConfig | VisionConfig, rngs: nnx.Rngs) -> None:
        self.activation = config.hidden_act
        self.fc1 = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.fc2 = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)

    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        return self.fc2(ACTIVATIONS[self.activation](self.fc1(x)))


class EncoderLayer(nnx.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: TextConfig | VisionConfig, causal: bool, rngs: nnx.Rngs) -> None:
        self.layer_norm1 = _layer_norm(config, rngs)
        self.attention = Attention(config, causal, rngs)
        self.layer_norm2 = _layer_norm(config, rngs)
        self.mlp = Mlp(config, rngs)

    def __call__(self, x: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        x = x + self.attention(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


def _layer_norm(config: TextConfig | VisionConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, rngs=rngs)


def _layers(config: TextConfig | VisionConfig, causal: bool, rngs: nnx.Rngs) -> list[EncoderLayer]:
    return [EncoderLayer(config, causal, rngs) for _ in range(config.num_hidden_layers)]


def _table(*shape: int, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))


class ClipVisionTower(nnx.Module):
    """Normalised pixels to the class token's features, before the projection."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs) -> None:
        size, patch = config.hidden_size, (config.patch_size, config.patch_size)
        num_patches = (config.image_size // config.patch_size) ** 2
        self.patch_embedding = nnx.Conv(3, size, patch, patch, padding="VALID", use_bias=False, rngs=rngs)
        self.class_embedding = _table(size, rngs=rngs)
        self.position_embedding = _table(num_patches + 1, size, rngs=rngs)
        self.pre_layrnorm = _layer_norm(config, rngs)  # as Hugging Face spells it
        self.layers = nnx.List(_layers(config, False, rngs))
        self.post_layernorm = _layer_norm(config, rngs)

    def __call__(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B D"]:
        patches = self.patch_embedding(pixels)
        batch, _, _, size = patches.shape
        first = jnp.broadcast_to(self.class_embedding[...], (batch, 1, size))
        x = jnp.concatenate([first, patches.reshape(batch, -1, size)], axis=1) + self.position_embedding[None]
        x = self.pre_layrnorm(x)
        for layer in self.layers:
            x = layer(x)
        return self.post_layernorm(x[:, 0])


class ClipTextTower(nnx.Module):
    """Token ids to the features at the end token, before the projection.

    Attention is causal, so padding after a text's end token has no effect and needs no mask.
    """

    def __init__(self, config: TextConfig, rngs: nnx.Rngs) -> None:
        self.eos_token_id = config.eos_token_id
        self.token_embedding = nnx.Embed(config.vocab_size, config.hidden_size, rngs=rngs)
        self.position_embedding = _table(config.max_position_embeddings, config.hidden_size, rngs=rngs)
        self.layers = nnx.List(_layers(config, True, rngs))
        self.final_layer_norm = _layer_norm(config, rngs)

    def __call__(self, ids: Int[Array, "B P"]) -> Float[Array, "B D"]:
        x = self.token_embedding(ids) + self.position_embedding[None, : ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        # Early configs say 2, wrongly; in their vocabulary the end token is the largest id.
        end = ids if self.eos_token_id == 2 else ids == self.eos_token_id
        return self.final_layer_norm(x[jnp.arange(len(ids)), jnp.argmax(end, axis=1)])


class Clip(nnx.Module):
    """Both towers and their projections into one space, and the learned scale of the cosine."""

    def __init__(self, config: ClipConfig, rngs: nnx.Rngs) -> None:
        self.vision = ClipVisionTower(config.vision, rngs)
        self.text = ClipTextTower(config.text, rngs)
        self.visual_projection = nnx.Linear(config.vision.hidden_size, config.projection_dim, use_bias=False, rngs=rngs)
        self.text_projection = nnx.Linear(config.text.hidden_size, config.projection_dim, use_bias=False, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))

    def image_features(self, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B Q"]:
        """Project normalised pixels; the result is not scaled to unit length."""
        return self.visual_projection(self.vision(pixels))

    def text_features(self, ids: Int[Array, "B P"]) -> Float[Array, "B Q"]:
        """Project token ids; the result is not scaled to unit length."""
        return self.text_projection(self.text(ids))
