"""One training step here and in PyTorch from the same state, at 20 states along PyTorch's trajectory.

Step by step, because trajectories are chaotic: over many steps PyTorch's own float32 and float64 part.
"""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from clipsep_jax.config import Config, ModelConfig, ObjectiveConfig, OptimizerConfig, SpectrogramConfig
from clipsep_jax.mixing import apply_gain, mix
from clipsep_jax.official.checkpoint import official_rules
from clipsep_jax.structures import Batch
from clipsep_jax.training.optimizer import build_optimizer
from clipsep_jax.training.step import Trainer, TrainState
from tests.torch_reference import TorchTrainer

NUM_STATES = 20
MODEL = ModelConfig(num_levels=4, width=4, num_channels=5, query_size=6)
BASE = Config(
    spectrogram=SpectrogramConfig(num_samples=4095),
    model=MODEL,
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, decay_end_step=15),
)
CONFIGS = {
    "clipsep": BASE,
    "clipsep_nit": replace(
        BASE, model=replace(MODEL, num_noise_heads=2), objective=ObjectiveConfig(name="noise_invariant")
    ),
    "pit": replace(
        BASE, model=replace(MODEL, num_learned_queries=2), objective=ObjectiveConfig(name="permutation_invariant")
    ),
}

Tensors = dict[str, np.ndarray]


def make_batch(config: Config, seed: int) -> Batch:
    """Two low-passed noises an example, so that either wins in some of the bins."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(3, 2, config.spectrogram.num_samples))
    smooth = np.cumsum(noise[:, 1], axis=-1) / 20
    sources = np.clip(np.stack([noise[:, 0], smooth], axis=1) * 5000, -32768, 32767).astype(np.int16)
    query = None if config.model.num_learned_queries else rng.normal(size=(3, 2, config.model.query_size))
    return Batch(sources, rng.uniform(0.5, 1.5, (3, 2)), query)


def cast(batch: Batch, dtype: type) -> Batch:
    return Batch(batch.sources, *(None if x is None else jnp.asarray(x, dtype) for x in (batch.gain, batch.query)))


class RecordingTrainer(TorchTrainer):
    """In float64, with its state, gradients and moments as arrays."""

    def __init__(self, config: Config):
        super().__init__(config, torch.float64, on_gradients=self.record)
        self.counts: dict[str, int] = {}
        for name, norm in self.module.named_modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.register_forward_hook(lambda module, inputs, _, name=name: self.count(name, inputs[0]))

    def record(self) -> None:
        self.gradients = {name: parameter.grad.numpy().copy() for name, parameter in self.parameters.items()}

    def count(self, name: str, x: torch.Tensor) -> None:
        self.counts[name] = x.numel() // x.shape[1]

    def state(self) -> Tensors:
        return {name: tensor.numpy().copy() for name, tensor in self.module.state_dict().items()}

    def moments(self, which: str) -> Tensors:
        states = {name: self.adam.state[parameter] for name, parameter in self.parameters.items()}
        return {
            name: state[which].numpy().copy() if state else np.zeros(self.parameters[name].shape)
            for name, state in states.items()
        }


class OurTrainer:
    """One step of the product's trainer from a state that is given under the official names."""

    def __init__(self, config: Config):
        self.trainer, self.rules = Trainer(config), official_rules(config.model)
        self.template = jax.eval_shape(self.trainer.init)
        self.rule = cache(self._rule)
        self.probe = jax.jit(self._probe)

    def _rule(self, path: tuple):
        dotted = ".".join(map(str, path))
        return next((name, rule) for rule in self.rules if (name := rule.their_name(dotted)))

    def ours(self, template: nnx.State, tensors: Tensors, dtype: type) -> nnx.State:
        flat = []
        for path, variable in nnx.to_flat_state(template):
            name, rule = self.rule(path)
            flat.append((path, variable.replace(jnp.asarray(rule.our_layout(tensors[name]), dtype))))
        return nnx.from_flat_state(flat)

    def theirs(self, state: nnx.State) -> Tensors:
        tensors = {}
        for path, variable in nnx.to_flat_state(state):
            name, rule = self.rule(path)
            tensors[name] = rule.their_layout(np.asarray(variable[...]))
        return tensors

    def state(self, step: int, tensors: Tensors, mean: Tensors, square: Tensors, dtype: type) -> TrainState:
        params = self.ours(self.template.params, tensors, dtype)
        moments = {"mu": self.ours(params, mean, dtype), "nu": self.ours(params, square, dtype)}
        # A count of 64 bits, where they are on, because optax takes the schedule's precision from it.
        optimizer = optax.tree.set(
            build_optimizer(self.trainer.config.optimizer).init(params), count=jnp.array(step), **moments
        )
        return TrainState(
            jnp.array(step), jnp.array(0), params, self.ours(self.template.batch_stats, tensors, dtype), optimizer
        )

    def _probe(self, state: TrainState, batch: Batch):
        """Loss, gradients and the state after."""
        mixed = self.trainer.mix(batch, state.step, None, training=True)
        gradients, loss, _ = self.trainer.gradients(state, *mixed, self.trainer.recipe.objective)
        after, metrics = self.trainer.train_step(state, batch)
        return loss.value, metrics["loss"], gradients, after


def assert_close(found: Tensors, expected: Tensors, what: str) -> None:
    """Within relative 1e-6 of each tensor's norm."""
    for name, tensor in found.items():
        error = np.linalg.norm(tensor - expected[name])
        assert error <= 1e-6 * np.linalg.norm(expected[name]), f"{what} of {name}: {error}"


def biased(before: Tensors, after: Tensors, counts: dict[str, int]) -> Tensors:
    """Statistics as Flax keeps them: the new part of the running variance without PyTorch's n / (n - 1)."""
    result = dict(after)
    for name, n in counts.items():
        key = f"{name}.running_var"
        kept = 0.9 * before[key]
        result[key] = kept + (after[key] - kept) * (n - 1) / n
    return result


@pytest.mark.slow
@pytest.mark.parametrize("system", CONFIGS)
def test_each_step_equals_pytorch(system):
    config = CONFIGS[system]
    torch_trainer, ours = RecordingTrainer(config), OurTrainer(config)
    losses = []
    for step in range(NUM_STATES):
        batch, before = make_batch(config, step), torch_trainer.state()
        moments = torch_trainer.moments("exp_avg"), torch_trainer.moments("exp_avg_sq")
        with jax.enable_x64(True):
            double = cast(batch, np.float64)
            mixture = mix(apply_gain(jnp.asarray(batch.sources), double.gain), config.spectrogram, config.mixing)
            assert mixture.magnitude.dtype == np.float64
            state = ours.state(step, before, *moments, np.float64)
            loss, metric, gradients, after = jax.device_get(ours.probe(state, double))
        arrays = (mixture.magnitude, mixture.targets, mixture.weight, batch.query)
        expected = torch_trainer.step(*(None if x is None else torch.tensor(np.asarray(x)) for x in arrays))
        losses.append(expected)
        assert loss == metric == pytest.approx(expected, rel=1e-6)
        assert_close(ours.theirs(gradients), torch_trainer.gradients, "gradient")
        assert_close(ours.theirs(after.params), torch_trainer.state(), "new value")
        statistics = biased(before, torch_trainer.state(), torch_trainer.counts)
        assert_close(ours.theirs(after.batch_stats), statistics, "new statistic")
        single = ours.probe(ours.state(step, before, *moments, np.float32), cast(batch, np.float32))
        assert single[0].dtype == np.float32
        assert float(single[0]) == pytest.approx(expected, rel=1e-4)
    assert losses[-1] < losses[0]
