"""The whole train step of the paper's network, and of a sweep's members, lowered for TPUs and GPUs that are not here.

python -m tests.distributed.lowering CLIP_FOLDER PLATFORM NUM_DEVICES
"""

import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from benchmarks.scaling import abstract_mesh
from clipsep_jax.config import Config
from clipsep_jax.encoders.clip import ClipEncoder, load_clip
from clipsep_jax.structures import Batch
from clipsep_jax.training.devices import batch_sharding, replicated
from clipsep_jax.training.flat import Flat
from clipsep_jax.training.members import JointTrainer
from clipsep_jax.training.step import Trainer


def config_of(num_devices: int, sharding: str) -> Config:
    config = Config()
    return replace(
        config,
        train=replace(config.train, sharding=sharding),
        model=replace(config.model, num_noise_heads=2),
        objective=replace(config.objective, name="noise_invariant"),
        data=replace(config.data, batch_size=2 * num_devices),
    )


def lower(config: Config, num_devices: int, platform: str, encoder: ClipEncoder | None) -> str:
    """The program as text; with an encoder, it encodes pictures inside the step."""
    mesh = abstract_mesh(num_devices)
    if encoder:
        config = replace(config, model=replace(config.model, query_size=encoder.query_size))
    trainer = Trainer(config, encode=encoder.encode_images if encoder else None, mesh=mesh)
    return lower_step(trainer, mesh, platform, encoder)


def lower_members(config: Config, num_devices: int, platform: str) -> str:
    """The same of two members that are spread over the axis `model`."""
    mesh = abstract_mesh(num_devices, 2)
    configs = [replace(config, objective=replace(config.objective, gamma=gamma)) for gamma in (0.0, 0.5)]
    return lower_step(JointTrainer(configs, mesh=mesh), mesh, platform, None)


def lower_step(trainer: Trainer, mesh: AbstractMesh, platform: str, encoder: ClipEncoder | None) -> str:
    config = trainer.config

    def abstract(shape: tuple[int, ...], dtype: type, sharding=None):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding or batch_sharding(mesh))

    shapes = jax.eval_shape(trainer.init)
    state = jax.tree.map(lambda x, place: abstract(x.shape, x.dtype, place), shapes, trainer.sharding(mesh))
    b, n = config.data.batch_size, config.data.num_sources
    batch = Batch(
        abstract((b, n, config.spectrogram.num_samples), jnp.int16),
        abstract((b, n), jnp.float32),
        None if encoder else abstract((b, n, config.model.query_size), jnp.float32),
        abstract((b, n, config.data.frames_per_clip, 224, 224, 3), jnp.uint8) if encoder else None,
    )
    weights = jax.tree.map(lambda x: abstract(x.shape, x.dtype, replicated(mesh)), encoder.state) if encoder else None
    return (
        trainer.compiled_train_step.trace(trainer.flat(state), batch, trainer.recipe, weights and Flat.of(weights))
        .lower(lowering_platforms=(platform,))
        .as_text()
    )


if __name__ == "__main__":
    platform, num_devices = sys.argv[2], int(sys.argv[3])
    for encoder in (None, load_clip(sys.argv[1])):
        whole, split = (
            lower(config_of(num_devices, sharding), num_devices, platform, encoder)
            for sharding in ("replicated", "fsdp")
        )
        assert f"mhlo.num_partitions = {num_devices}" in whole
        assert f"mhlo.num_partitions = {num_devices}" in split
        assert whole != split
    for sharding in ("replicated", "fsdp"):
        members = lower_members(config_of(num_devices, sharding), num_devices, platform)
        assert f"mhlo.num_partitions = {num_devices}" in members
    print("held")
