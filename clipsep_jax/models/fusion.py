"""How queries and the separator network meet: each way owns the last convolution and gives the mask logits.

A way of fusion is a module with `input_channels` and `condition_channels`, which the network is built with, and
`__call__(network, log_magnitude, query)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.layers import UpConv, append_everywhere, blend_tap_images, tap_images, upsample_conv
from clipsep_jax.structures import MaskLogits

Query = Float[Array, "B N Q"] | None


_small = nnx.initializers.normal(1e-4)


class Projection(nnx.Linear):
    """A linear layer with the official initialisation: weights N(0, 0.0001), PyTorch's default bias."""

    def __init__(self, num_in: int, num_out: int, *, rngs: nnx.Rngs):
        bound = 1 / np.sqrt(num_in)
        super().__init__(
            num_in,
            num_out,
            kernel_init=_small,
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

    @jax.named_scope("masks")
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
        scaled = vectors * self.scale[None, None]
        taps = jnp.einsum("bpC,cyxC->byxpc", scaled, kernel)
        images = tap_images(features, taps.reshape(len(taps), -1, taps.shape[-1]).astype(features.dtype))
        logits = blend_tap_images(images.reshape(*taps.shape[:-1], *images.shape[2:]))
        offset = scaled @ kernel_bias + self.bias[None]
        return logits + offset[:, :, None, None]


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
        logits = upsample_conv(features.astype(kernel.dtype), kernel @ vectors)
        offset = kernel_bias @ vectors + self.bias[...]
        return jnp.moveaxis(logits + offset[None, None, None], -1, 1)


class Fusion(nnx.Module):
    """What all ways of fusion have: the last convolution.

    Attributes:
        input_channels: of the network's input.
        condition_channels: of the vector that joins the network at its bottleneck; 0 for none.
        modulation_channels: of the vector that modulates every block of the network; 0 for none.
    """

    def __init__(self, config: ModelConfig, num_features: int, num_maps: int, *, rngs: nnx.Rngs):
        """Builds the last convolution.

        Args:
            num_features: channels of the network's output.
            num_maps: channels of the last convolution's output.
        """
        self.last = UpConv(num_features, num_maps, init_std=config.init_std, use_bias=True, rngs=rngs)

    @staticmethod
    def input_channels(config: ModelConfig) -> int:
        return 1

    @staticmethod
    def condition_channels(config: ModelConfig) -> int:
        return 0

    @staticmethod
    def modulation_channels(config: ModelConfig) -> int:
        return 0

    def _last(self) -> tuple[Array, Array]:
        assert self.last.bias is not None
        return self.last.kernel[...], self.last.bias[...]


class LateFusion(Fusion):
    """The network runs once; its features are multiplied with every query vector and every noise vector.

    With `negative_query`, queries [B N 2Q] are one for what is wanted and one for what is not (CLAPSep: Ma et al.,
    2024); zeros, or a size of Q, stand for none.
    """

    def __init__(self, config: ModelConfig, num_features: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_features, config.num_channels, rngs=rngs)
        self.query_head = Projection(config.query_size, config.num_channels, rngs=rngs)
        self.negative_head = nnx.data(
            nnx.Linear(config.query_size, config.num_channels, use_bias=False, kernel_init=_small, rngs=rngs)
            if config.negative_query
            else None
        )
        self.noise_heads = nnx.data(NoiseHeads(config, rngs=rngs) if config.num_noise_heads else None)
        self.inner_product = InnerProduct(config)

    def __call__(self, network: Any, log_magnitude: Float[Array, "B K T"], query: Query) -> MaskLogits:
        assert query is not None
        projected = self._projected(query)
        vectors = jax.nn.sigmoid(projected)
        if self.noise_heads is not None:
            vectors = jnp.concatenate([vectors, jax.nn.sigmoid(self.noise_heads(projected))], axis=1)
        logits = self.inner_product(vectors, network(log_magnitude[..., None]), *self._last())
        num_queries = projected.shape[1]
        return MaskLogits(logits[:, :num_queries], logits[:, num_queries:] if self.noise_heads is not None else None)

    def _projected(self, query: Float[Array, "B N q"]) -> Float[Array, "B N C"]:
        size = self.query_head.in_features
        projected = self.query_head(query[..., :size])
        if self.negative_head is None or query.shape[-1] == size:
            return projected
        return projected + self.negative_head(query[..., size:])


class FusionPerQuery(Fusion):
    """The network, with its BatchNorm, runs once per query, given its vector."""

    def __init__(self, config: ModelConfig, num_features: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_features, 1, rngs=rngs)
        self.query_head = Projection(config.query_size, config.num_channels, rngs=rngs)

    def __call__(self, network: Any, log_magnitude: Float[Array, "B K T"], query: Query) -> MaskLogits:
        assert query is not None
        image = log_magnitude[..., None]
        logits = []
        for vector in jnp.moveaxis(jax.nn.sigmoid(self.query_head(query)), 1, 0):
            features = self._features(network, image, vector)
            logits.append(self.last(features.astype(log_magnitude.dtype))[..., 0])
        return MaskLogits(jnp.stack(logits, axis=1))

    def _features(
        self, network: Any, image: Float[Array, "B K T 1"], vector: Float[Array, "B C"]
    ) -> Float[Array, "B k t c"]:
        raise NotImplementedError


class MiddleFusion(FusionPerQuery):
    """The query vector joins at the network's bottleneck."""

    @staticmethod
    def condition_channels(config: ModelConfig) -> int:
        return config.num_channels

    def _features(
        self, network: Any, image: Float[Array, "B K T 1"], vector: Float[Array, "B C"]
    ) -> Float[Array, "B k t c"]:
        return network(image, vector)


class EarlyFusion(FusionPerQuery):
    """The query vector joins at the network's input, as constant channels."""

    @staticmethod
    def input_channels(config: ModelConfig) -> int:
        return 1 + config.num_channels

    def _features(
        self, network: Any, image: Float[Array, "B K T 1"], vector: Float[Array, "B C"]
    ) -> Float[Array, "B k t c"]:
        return network(append_everywhere(image, vector))


class FilmFusion(Fusion):
    """The query scales and shifts the channels of every block (FiLM: Perez et al., 2018; LASS-Net: Liu et al., 2022).

    The network runs once per query; all queries of a mixture pass it together.
    """

    def __init__(self, config: ModelConfig, num_features: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_features, 1, rngs=rngs)
        self.query_head = nnx.Linear(config.query_size, self.modulation_channels(config), rngs=rngs)

    @staticmethod
    def modulation_channels(config: ModelConfig) -> int:
        return 4 * config.num_channels

    def __call__(self, network: Any, log_magnitude: Float[Array, "B K T"], query: Query) -> MaskLogits:
        assert query is not None
        b, n, _ = query.shape
        vectors = jax.nn.relu(self.query_head(query)).reshape(b * n, -1)
        features = network(jnp.repeat(log_magnitude, n, axis=0)[..., None], modulation=vectors)
        logits = self.last(features.astype(log_magnitude.dtype))[..., 0]
        return MaskLogits(logits.reshape(b, n, *logits.shape[1:]))


class LearnedFusion(Fusion):
    """No query: the masks' vectors are parameters."""

    def __init__(self, config: ModelConfig, num_features: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_features, config.num_channels, rngs=rngs)
        self.learned_queries = LearnedQueries(config, rngs=rngs)

    def __call__(self, network: Any, log_magnitude: Float[Array, "B K T"], query: Query) -> MaskLogits:
        return MaskLogits(self.learned_queries(network(log_magnitude[..., None]), *self._last()))


AnyFusion = LateFusion | MiddleFusion | EarlyFusion | FilmFusion | LearnedFusion

_BY_NAME: dict[str, type[AnyFusion]] = {
    "late": LateFusion,
    "middle": MiddleFusion,
    "early": EarlyFusion,
    "film": FilmFusion,
}


def fusion_of(config: ModelConfig) -> type[AnyFusion]:
    """The one place where a config becomes a way of fusion."""
    return LearnedFusion if config.num_learned_queries else _BY_NAME[config.fusion]
