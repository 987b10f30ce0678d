"""The whole mask network: U-Net, query head, noise heads, late fusion."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.heads import InnerProduct, NoiseHeads, Projection
from clipsep_jax.models.unet import UNet
from clipsep_jax.structures import MaskLogits


class CLIPSep(nnx.Module):
    """Masks for N queries, and M noise masks where the config asks for them (CLIPSep, figures 2 and 3)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.unet = UNet(config, rngs=rngs)
        self.query_head = Projection(config.query_size, config.num_channels, rngs=rngs)
        self.noise_heads = nnx.data(NoiseHeads(config, rngs=rngs) if config.num_noise_heads else None)
        self.inner_product = InnerProduct(config)

    def __call__(self, log_magnitude: Float[Array, "B K T"], query: Float[Array, "B N Q"]) -> MaskLogits:
        """Mask logits from the log of the warped mixture magnitude and the query embeddings."""
        features = self.unet(log_magnitude[..., None])
        projected = self.query_head(query)
        vectors = jax.nn.sigmoid(projected)
        if self.noise_heads is not None:
            noise = jax.nn.sigmoid(self.noise_heads(projected))
            vectors = jax.numpy.concatenate([vectors, noise], axis=1)
        last = self.unet.last
        assert last.bias is not None
        logits = self.inner_product(vectors, features, last.kernel[...], last.bias[...])
        num_queries = query.shape[1]
        return MaskLogits(logits[:, :num_queries], logits[:, num_queries:] if self.noise_heads is not None else None)


def build_model(config: ModelConfig, rngs: nnx.Rngs) -> CLIPSep:
    """The one place where a config becomes a mask network."""
    return CLIPSep(config, rngs=rngs)
