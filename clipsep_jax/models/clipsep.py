"""The whole mask network, assembled from its parts: separator network, queries, fusion."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.audio_encoder import AudioEncoder
from clipsep_jax.models.fusion import fusion_of
from clipsep_jax.models.tdf_unet import TdfUNet
from clipsep_jax.models.unet import UNet
from clipsep_jax.structures import MaskLogits
from clipsep_jax.tensors import Rule

Query = Float[Array, "B N Q"] | Int[Array, "B N"] | Float[Array, "B N K T"] | None


class CLIPSep(nnx.Module):
    """Masks for N queries, and M noise masks where the config asks for them (CLIPSep, figures 2 and 3)."""

    def __init__(self, config: ModelConfig, *, dtype: Any = None, remat: bool = False, rngs: nnx.Rngs):
        """Builds the network.

        Args:
            dtype: of the separator network's arithmetic; None takes the input's. Parameters, statistics and logits
                stay float32.
            remat: recompute every level of the U-Net except the outermost in the backward pass instead of storing its
                activations.
        """
        fusion = fusion_of(config)
        self.network = build_separator_network(
            config,
            num_in=fusion.input_channels(config),
            num_condition=fusion.condition_channels(config),
            num_modulation=fusion.modulation_channels(config),
            dtype=dtype,
            remat=remat,
            rngs=rngs,
        )
        self.fusion = fusion(config, self.network.num_features, rngs=rngs)
        self.label_embedding = nnx.data(
            nnx.Embed(config.num_labels, config.query_size, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
            if config.num_labels
            else None
        )

        self.audio_encoder = nnx.data(AudioEncoder(config, rngs=rngs) if config.hears_examples else None)

    def embed_examples(self, log_magnitude: Float[Array, "B K T"]) -> Float[Array, "B Q"]:
        """The queries of example sounds, from the log of their warped magnitudes."""
        assert self.audio_encoder is not None
        return self.audio_encoder(log_magnitude)

    def __call__(self, log_magnitude: Float[Array, "B K T"], query: Query) -> MaskLogits:
        """Mask logits from the log of the warped mixture magnitude and the queries.

        Args:
            query: embeddings; or numbers of labels, where the model has labels; or spectrograms of examples, where it
                has an encoder of them; or None, where it learned its queries.
        """
        if self.label_embedding is not None:
            assert query is not None
            query = self.label_embedding(query).astype(log_magnitude.dtype)
        elif query is not None and query.ndim == 4:
            query = self.embed_examples(query.reshape(-1, *query.shape[2:])).reshape(*query.shape[:2], -1)
        return self.fusion(self.network, log_magnitude, query)


def build_separator_network(
    config: ModelConfig,
    *,
    num_in: int,
    num_condition: int,
    num_modulation: int,
    dtype: Any,
    remat: bool,
    rngs: nnx.Rngs,
) -> UNet:
    """The one place where a config becomes a separator network.

    Such a network turns an image [B K T num_in], and vectors [B num_condition] and [B num_modulation] where these are
    above 0, into features [B K/2 T/2 num_features], of which the fusion's last convolution makes masks.
    """
    how: dict[str, Any] = {"dtype": dtype, "remat": remat, "rngs": rngs}
    network = {"unet": UNet, "tdf_unet": TdfUNet}[config.network]
    return network(config, num_in=num_in, num_condition=num_condition, num_modulation=num_modulation, **how)


def build_model(config: ModelConfig, rngs: nnx.Rngs, *, dtype: Any = None, remat: bool = False) -> CLIPSep:
    """The one place where a config becomes a mask network; `dtype` and `remat` as in `CLIPSep`."""
    return CLIPSep(config, dtype=dtype, remat=remat, rngs=rngs)


def stored_layout(tree: PyTree) -> PyTree:
    """A tree that holds states of a `CLIPSep`, with variables named as in files."""
    return _renamed(tree, _stored_name)


def own_layout(tree: PyTree) -> PyTree:
    """The inverse of `stored_layout`."""
    return _renamed(tree, _own_name)


def stored_rules(model: CLIPSep) -> tuple[Rule, ...]:
    """`stored_layout` for a file of tensors."""
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model))]
    return tuple(Rule(stored_name(path), ".".join(map(str, path))) for path in paths)


def stored_name(path: tuple) -> str:
    """The name in files of the variable at a path of a `CLIPSep`."""
    return ".".join(map(str, _stored_name(path)))


def _renamed(tree: PyTree, name: Any) -> PyTree:
    def rename(state: Any) -> Any:
        if not isinstance(state, nnx.State):
            return state
        return nnx.from_flat_state([(name(path), variable) for path, variable in nnx.to_flat_state(state)])

    return jax.tree.map(rename, tree, is_leaf=lambda node: isinstance(node, nnx.State))


def _stored_name(path: tuple) -> tuple:
    """Files of all versions name variables as the first version did, in which the U-Net owned the last convolution."""
    if path[:2] == ("fusion", "last"):
        return ("unet", *path[1:])
    return {"network": ("unet",), "fusion": ()}.get(path[0], path[:1]) + path[1:]


def _own_name(path: tuple) -> tuple:
    if path[:2] == ("unet", "last"):
        return ("fusion", *path[1:])
    return {"unet": ("network",), "label_embedding": path[:1], "audio_encoder": path[:1]}.get(
        path[0], ("fusion", path[0])
    ) + path[1:]
