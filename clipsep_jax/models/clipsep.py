"""The whole mask network, assembled from its parts: U-Net, queries, fusion."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.fusion import InnerProduct, LearnedQueries, NoiseHeads, Projection
from clipsep_jax.models.unet import UNet, append_everywhere
from clipsep_jax.structures import MaskLogits

Query = Float[Array, "B N Q"] | Int[Array, "B N"] | None


class CLIPSep(nnx.Module):
    """Masks for N queries, and M noise masks where the config asks for them (CLIPSep, figures 2 and 3).

    With late fusion the U-Net runs once and its features are multiplied with every query vector. With middle and early
    fusion the query vector joins at the bottleneck or at the input, and the U-Net, with its BatchNorm, runs once a
    query. With learned queries there is no query at all.
    """

    def __init__(self, config: ModelConfig, *, dtype: Any = None, remat: bool = False, rngs: nnx.Rngs):
        """Builds the network.

        Args:
            dtype: of the U-Net's arithmetic; None takes the input's. Parameters, statistics and logits stay float32.
            remat: compute every level of the U-Net but the outermost a second time in the backward pass instead of
                storing what is inside it.
        """
        self.fusion = config.fusion
        late, size = config.fusion == "late", config.num_channels
        self.unet = UNet(
            config,
            num_in=1 + size if config.fusion == "early" else 1,
            num_condition=size if config.fusion == "middle" else 0,
            num_out=size if late else 1,
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        learned = config.num_learned_queries > 0
        self.learned_queries = nnx.data(LearnedQueries(config, rngs=rngs) if learned else None)
        self.query_head = nnx.data(None if learned else Projection(config.query_size, size, rngs=rngs))
        self.noise_heads = nnx.data(NoiseHeads(config, rngs=rngs) if config.num_noise_heads else None)
        self.inner_product = nnx.data(InnerProduct(config) if late and not learned else None)
        self.label_embedding = nnx.data(
            nnx.Embed(config.num_labels, config.query_size, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
            if config.num_labels
            else None
        )

    def __call__(self, log_magnitude: Float[Array, "B K T"], query: Query) -> MaskLogits:
        """Mask logits from the log of the warped mixture magnitude and the queries.

        Args:
            query: embeddings; or numbers of labels, where the model has labels; or None, where it learned its queries.
        """
        if self.learned_queries is not None:
            return MaskLogits(self.learned_queries(self.unet(log_magnitude[..., None]), *self._last()))
        projected = self._projected(query)
        if self.fusion == "late":
            return self._late(log_magnitude, projected)
        vectors = jnp.moveaxis(jax.nn.sigmoid(projected), 1, 0)
        return MaskLogits(jnp.stack([self._conditioned(log_magnitude, vector) for vector in vectors], axis=1))

    def _projected(self, query: Query) -> Float[Array, "B N C"]:
        assert query is not None
        assert self.query_head is not None
        return self.query_head(query if self.label_embedding is None else self.label_embedding(query))

    def _last(self) -> tuple[Array, Array]:
        assert self.unet.last.bias is not None
        return self.unet.last.kernel[...], self.unet.last.bias[...]

    def _late(self, log_magnitude: Float[Array, "B K T"], projected: Float[Array, "B N C"]) -> MaskLogits:
        assert self.inner_product is not None
        vectors = jax.nn.sigmoid(projected)
        if self.noise_heads is not None:
            vectors = jnp.concatenate([vectors, jax.nn.sigmoid(self.noise_heads(projected))], axis=1)
        logits = self.inner_product(vectors, self.unet(log_magnitude[..., None]), *self._last())
        num_queries = projected.shape[1]
        return MaskLogits(logits[:, :num_queries], logits[:, num_queries:] if self.noise_heads is not None else None)

    def _conditioned(self, log_magnitude: Float[Array, "B K T"], vector: Float[Array, "B C"]) -> Float[Array, "B K T"]:
        image = log_magnitude[..., None]
        early = self.fusion == "early"
        features = self.unet(append_everywhere(image, vector)) if early else self.unet(image, vector)
        return self.unet.last(features.astype(log_magnitude.dtype))[..., 0]


def build_model(config: ModelConfig, rngs: nnx.Rngs, *, dtype: Any = None, remat: bool = False) -> CLIPSep:
    """The one place where a config becomes a mask network; `dtype` and `remat` as in `CLIPSep`."""
    return CLIPSep(config, dtype=dtype, remat=remat, rngs=rngs)
