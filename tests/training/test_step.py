"""The compiled step: precision, rematerialisation, donation."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipsep_jax.config import Config, OptimizerConfig
from clipsep_jax.structures import Batch
from clipsep_jax.training.step import Trainer
from tests.small import QUERY_SIZE, small_config

NUM_KINDS = 8


def config_of(**train) -> Config:
    config = small_config(Path("unused"))
    return replace(
        config,
        spectrogram=replace(config.spectrogram, num_samples=8191, num_warped_bins=64),
        # Scales at which float32 runs from starts that differ by 1e-3 part by less than 1% in 50 steps.
        model=replace(config.model, num_levels=3, width=8, init_std=0.02),
        data=replace(config.data, batch_size=4),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5),
        train=replace(config.train, **train),
    )


def tones(config: Config, seed: int) -> Batch:
    """Sounds of one pitch each, and queries that encode the pitch."""
    rng = np.random.default_rng(seed)
    shape = (config.data.batch_size, config.data.num_sources)
    kinds = rng.integers(NUM_KINDS, size=shape)
    time = np.arange(config.spectrogram.num_samples) / config.spectrogram.sample_rate_hz
    sound = np.sin(2 * np.pi * 150 * 1.6 ** kinds[..., None] * time) + 0.05 * rng.normal(size=(*shape, len(time)))
    table = np.random.default_rng(0).normal(size=(NUM_KINDS, QUERY_SIZE)).astype(np.float32)
    return Batch(jnp.asarray(sound * 9000, jnp.int16), jnp.ones(shape), jnp.asarray(table[kinds]))


def losses_of(config: Config, num_steps: int) -> np.ndarray:
    trainer = Trainer(config)
    state, losses = trainer.init(), []
    for step in range(num_steps):
        state, metrics = trainer.train_step(state, tones(config, step))
        losses.append(metrics["loss"])
    return np.array(losses)


@pytest.mark.soak
def test_bfloat16_learns_as_float32_does():
    exact, rounded = (losses_of(config_of(precision=precision), 50) for precision in ("float32", "bfloat16"))
    assert not np.array_equal(exact, rounded)
    assert exact[-10:].mean() < 0.75 * exact[0]  # there was something to learn
    assert rounded[-10:].mean() == pytest.approx(exact[-10:].mean(), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "parts"),
    [
        ("noise_invariant", {}),
        ("weighted", {"num_noise_heads": 0, "fusion": "early"}),
        ("weighted", {"num_noise_heads": 0, "fusion": "middle"}),
        ("permutation_invariant", {"num_noise_heads": 0, "num_learned_queries": 2}),
    ],
    ids=["late", "early", "middle", "learned"],
)
def test_with_bfloat16_the_state_and_the_metrics_stay_float32(objective, parts):
    config = config_of(precision="bfloat16")
    parts = {"num_levels": 2, "width": 4, **parts}
    config = replace(config, objective=replace(config.objective, name=objective), model=replace(config.model, **parts))
    trainer, batch = Trainer(config), tones(config, 0)
    before = trainer.init()
    dtypes = jax.tree.map(lambda x: x.dtype, before)
    state, metrics = trainer.train_step(before, batch)
    assert jax.tree.map(lambda x: x.dtype, state) == dtypes
    assert metrics.pop("skipped_steps") == 0
    assert {x.dtype for x in jax.tree.leaves((state.params, state.batch_stats, metrics))} == {jnp.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(trainer.train_step)(state, batch))
    assert any("bf16" in line and "dot_general" in line for line in jaxpr.splitlines())


@pytest.mark.slow
def test_rematerialisation_gives_the_same_step():
    trainers = [Trainer(config_of(remat=remat)) for remat in (False, True)]
    state, batch = trainers[0].init(), tones(trainers[0].config, 0)
    (one, _), (other, _) = (t.train_step(jax.tree.map(jnp.copy, state), batch) for t in trainers)
    for got, want in zip(
        *map(jax.tree.leaves, ((other.optimizer, other.batch_stats), (one.optimizer, one.batch_stats))), strict=True
    ):
        assert jnp.linalg.norm(got - want) <= 1e-5 * jnp.linalg.norm(want)


def test_the_old_state_is_given_up_for_the_new_one():
    config = config_of()
    trainer = Trainer(config)
    state = trainer.init()
    trainer.train_step(state, tones(config, 0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
