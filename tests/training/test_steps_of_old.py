"""Steps of every system, single and in a sweep, equal those of version 0.1.0 before numbers became data of the step.

`old_files/steps.npz` was written by `write_steps` with that version.
"""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipsep_jax.config import Config
from clipsep_jax.config_files import read_config
from clipsep_jax.models.clipsep import stored_layout
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.structures import Batch
from clipsep_jax.training.members import JointTrainer
from clipsep_jax.training.step import Trainer
from clipsep_jax.training.sweep import Variation, members_of
from tests.small import QUERY_SIZE

FILE = Path(__file__).parents[1] / "old_files" / "steps.npz"
NUM_STEPS = 3

SMALL = {
    "spectrogram": {"num_samples": 2047},
    "model": {"num_levels": 2, "width": 2, "num_channels": 3, "query_size": QUERY_SIZE, "init_std": 0.3},
    "data": {"batch_size": 2},
    "optimizer": {"warmup_steps": 2, "decay_end_step": 5, "learning_rate": 0.01},
}
SINGLE = {
    "clipsep": {},
    "clipsep_text": {"data": {"similar_pairs": "drop", "num_dropped_pairs": 1, "similar_pairs_from_step": 1}},
    "clipsep_hybrid": {"data": {"similar_pairs": "downweight", "similar_pairs_from_step": 0}},
    "clipsep_early": {"objective": {"criterion": "l1"}, "mixing": {"targets": "ratio"}},
    "clipsep_middle": {},
    "clipsep_nit": {"objective": {"noise_warmup_steps": 1, "gamma": 0.5}},
    "labelsep": {"mixing": {"weighted": False}},
    "bertsep": {},
    "sop": {},
    "pit": {},
}
VARIED = [
    Variation("objective.criterion", ("bce", "l1")),
    Variation("objective.gamma", (0.0, 0.7)),
    Variation("optimizer.learning_rate", (0.01, 0.003)),
    Variation("optimizer.max_gradient_norm", (1.0, 1e-3)),
]


def small(system: str) -> Config:
    """A shipped config at the least size."""
    config = read_config(system, []).replace(**SMALL)
    for group, values in SINGLE[system].items():
        config = config.replace(**{group: values})
    return kind_of(config).fit(config, ["buzz", "hiss", "hum"])


def batch_of(config: Config, step: int) -> Batch:
    rng = np.random.default_rng(step)
    shape = (config.data.batch_size + config.data.num_dropped_pairs, 2)
    if config.model.num_labels:
        query = rng.integers(config.model.num_labels, size=shape)
    else:
        query = None if config.model.num_learned_queries else rng.normal(size=(*shape, QUERY_SIZE))
    sources = rng.integers(-9000, 9000, (*shape, config.spectrogram.num_samples)).astype(np.int16)
    return Batch(sources, rng.uniform(0.5, 1.5, shape), query)


def double(tree):
    """All numbers in 64 bits, the counts too, as they set the precision of the learning rate."""
    wide = {"f": jnp.float64, "i": jnp.int64}
    return jax.tree.map(lambda x: x.astype(wide[x.dtype.kind]), tree)


def steps_of(name: str, trainer: Trainer, config: Config) -> Iterator[tuple[str, np.ndarray]]:
    """All metrics of each step, and of each tensor of the state its norm and its product with a random one."""
    state = double(trainer.init())
    for step in range(NUM_STEPS):
        state, metrics = trainer.train_step(state, batch_of(config, step))
        for key, value in metrics.items():
            yield f"{name} {step} {key}", np.asarray(value)
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            stored_layout((state.params, state.batch_stats, state.optimizer))
        ):
            tensor = np.asarray(leaf, np.float64)
            shape = tensor.shape[1:] if name == "sweep" else tensor.shape
            other = np.random.default_rng(tensor.size).normal(size=shape)
            axes = tuple(range(tensor.ndim - len(shape), tensor.ndim))
            sums = [(tensor**2).sum(axis=axes) ** 0.5, (tensor * other).sum(axis=axes)]
            yield f"{name} {step} {jax.tree_util.keystr(path)}", np.array(sums)


def found_steps(name: str) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        if name == "sweep":
            config = small("clipsep_nit")
            members = list(members_of(config, VARIED).values())[::5]  # 4 of 16, each value twice
            return dict(steps_of(name, JointTrainer(members), config))
        return dict(steps_of(name, Trainer(small(name)), small(name)))


def write_steps() -> None:
    arrays = {}
    for name in [*SINGLE, "sweep"]:
        found = found_steps(name)
        arrays |= {name: np.concatenate([np.ravel(value) for value in found.values()]), f"{name} keys": [*found]}
    np.savez_compressed(FILE, **arrays)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SINGLE, "sweep"])
def test_steps_equal_those_of_the_old_version(name):
    found = found_steps(name)
    with np.load(FILE) as old:
        expected, keys = old[name], old[f"{name} keys"]
    assert list(found) == list(keys)
    start = 0
    for key, value in found.items():
        wanted = expected[start : start + value.size].reshape(value.shape)
        np.testing.assert_allclose(value, wanted, rtol=1e-9, atol=1e-15, err_msg=key)
        start += value.size
    assert start == expected.size
