"""From query embeddings to query vectors, and from query vectors to mask logits."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.layers import blend_taps, upsample_conv


class Projection(nnx.Linear):
    """A linear layer with the official initialisation: weights N(0, 0.0001), PyTorch's default bias."""

    def __init__(self, num_in: int, num_out: int, *, rngs: nnx.Rngs):
        bound = 1 / np.sqrt(num_in)
        super().__init__(
            num_in,
            num_out,
            kernel_init=nnx.initializers.normal(1e-4),
            bias_init=lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound),
            rngs=rngs,
        )


class NoiseHeads(nnx.Module):
    """The query vectors of the noise masks, from the mean of the queries' vectors before their sigmoid."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        size = config.num_channels
        self.projections = nnx.List([Projection(size, size, rngs=rngs) for _ in range(config.num_noise_heads)])

    def __call__(self, vectors: Float[Array, "B N C"]) -> Float[Array, "B M C"]:
        mean = vectors.mean(axis=1)
        return jnp.stack([projection(mean) for projection in self.projections], axis=1)


class InnerProduct(nnx.Module):
    """Mask logits: scaled inner product of a query vector and the features, plus a bias."""

    def __init__(self, config: ModelConfig):
        self.scale = nnx.Param(jnp.ones(config.num_channels))
        self.bias = nnx.Param(jnp.zeros(1))

    def __call__(
        self,
        vectors: Float[Array, "B P C"],
        features: Float[Array, "B k t c"],
        kernel: Float[Array, "c 3 3 C"],
        kernel_bias: Float[Array, " C"],
    ) -> Float[Array, "B P K T"]:
        """Logits of P masks, from the features before the last up-convolution (`kernel`, `kernel_bias`).

        The logits are linear in that convolution's output, so the vectors are contracted with its weights first and
        its C feature maps of full size are never built.
        """
        scaled = vectors * self.scale[...]
        taps = jnp.einsum("bpC,cyxC->bcyxp", scaled, kernel)
        taps_of_features = taps.reshape(*taps.shape[:2], -1).astype(features.dtype)
        products = jnp.einsum("bktc,bcn->bktn", features, taps_of_features, preferred_element_type=scaled.dtype)
        logits = blend_taps(products.reshape(*features.shape[:-1], *taps.shape[2:]))
        offset = scaled @ kernel_bias + self.bias[...]
        return jnp.moveaxis(logits, -1, 1) + offset[:, :, None, None]


class LearnedQueries(nnx.Module):
    """Mask logits without a query: a 1 x 1 convolution of the features, with PyTorch's default bias."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        shape = (1, 1, config.num_channels, config.num_learned_queries)
        self.kernel = nnx.Param(config.init_std * jax.random.normal(rngs.params(), shape))
        bound = 1 / np.sqrt(config.num_channels)
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), shape[-1:], minval=-bound, maxval=bound))

    def __call__(
        self,
        features: Float[Array, "B k t c"],
        kernel: Float[Array, "c 3 3 C"],
        kernel_bias: Float[Array, " C"],
    ) -> Float[Array, "B P K T"]:
        """Logits, as `InnerProduct` makes them: the two convolutions without a nonlinearity between are one."""
        vectors = self.kernel[0, 0]
        logits = upsample_conv(features.astype(kernel.dtype), kernel @ vectors) + kernel_bias @ vectors + self.bias[...]
        return jnp.moveaxis(logits, -1, 1)
