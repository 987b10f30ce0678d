"""Checks that need eight devices; run in a process of its own, see `test_distributed.py`.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.distributed.eight_devices FOLDER CHECK...
"""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from clipsep_jax.config import Config
from clipsep_jax.structures import Batch
from clipsep_jax.training.checkpoints import Checkpoints
from clipsep_jax.training.devices import make_mesh, put_batch, replicated
from clipsep_jax.training.members import JointTrainer
from clipsep_jax.training.step import Trainer, TrainState
from tests.shared_programs import sharing_programs
from tests.small import QUERY_SIZE, small_config

FLOAT = jax.dtypes.canonicalize_dtype(float)
if jax.config.read("jax_enable_x64"):
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # the parameters of Flax's layers stay float32


def config_of(sharding: str) -> Config:
    config = small_config(Path())
    # Wide enough that some arrays are split.
    model = replace(config.model, width=16)
    spectrogram = replace(config.spectrogram, num_samples=4_095, num_warped_bins=64)
    data = replace(config.data, batch_size=8)
    train = replace(config.train, sharding=sharding)
    return replace(config, model=model, data=data, spectrogram=spectrogram, train=train)


def batch_of(config: Config, seed: int) -> Batch:
    """Clips of different loudness, so that statistics of a part of the batch are not those of all."""
    rng, b = np.random.default_rng(seed), config.data.batch_size
    sound = rng.integers(-9000, 9000, (b, 2, config.spectrogram.num_samples))
    sound = (sound * np.linspace(0.01, 1, b)[:, None, None]).astype(np.int16)
    return Batch(sound, np.ones((b, 2), FLOAT), rng.normal(size=(b, 2, QUERY_SIZE)).astype(FLOAT))


def on_host(tree):
    return jax.tree.map(np.asarray, tree)


def worst_difference(got, want) -> float:
    """The largest difference of any array, relative to its largest value."""
    pairs = zip(jax.tree.leaves(on_host(got)), jax.tree.leaves(on_host(want)), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) for a, b in pairs)


class OneStep:
    """Loss, gradients and new statistics of a step on some devices, from a state on the host."""

    def __init__(self, config: Config, num_devices: int):
        self.mesh = make_mesh(jax.devices()[:num_devices])
        self.trainer = Trainer(config, mesh=self.mesh)
        self.places = jax.tree.map(lambda x: x.sharding, self.trainer.init())
        split = [not place.is_fully_replicated for place in jax.tree.leaves(self.places)]
        assert any(split) == (config.train.sharding == "fsdp" and num_devices > 1)
        self.gradients = jax.jit(self._gradients, out_shardings=replicated(self.mesh))

    def __call__(self, state: TrainState, batch: Batch) -> tuple:
        state, batch = jax.device_put(state, self.places), put_batch(batch, self.mesh)
        return on_host(self.gradients(state, batch))

    def _gradients(self, state: TrainState, batch: Batch) -> tuple:
        mixed = self.trainer.mix(batch, state.step, None, True)
        gradients, loss, statistics = self.trainer.gradients(state, *mixed, self.trainer.recipe.objective)
        return loss.value, gradients, statistics


def equal_step(folder: Path) -> None:
    """In the middle of a run, a step is the same on 1 and 8 devices."""
    compare_steps((1,), {8: ("fsdp",)})


def equal_steps(folder: Path) -> None:
    """At five states of a run, a step is the same on 1, 2, 4 and 8 devices, replicated and sharded."""
    compare_steps(range(5), dict.fromkeys((2, 4, 8), ("replicated", "fsdp")))


def compare_steps(numbers: Sequence[int], shardings: Mapping[int, Sequence[str]]) -> None:
    """Compare loss, gradients and statistics of a step on one device with those on more.

    In float64, as in float32 gradients jump where rounding moves a mask over the kink of min(1, query + noise), on
    which all masks lie at the start; there, loss and statistics are compared.
    """
    exact = jax.config.read("jax_enable_x64")
    plain = config_of("replicated")
    trainer = Trainer(plain)
    state, states = trainer.init(), []
    for seed in range(max(numbers) + 1):
        states.append(on_host(state))
        state, _ = trainer.train_step(state, batch_of(plain, seed))
    batches = {number: batch_of(plain, 10 + number) for number in numbers}
    one = OneStep(plain, 1)
    wanted = {number: one(states[number], batch) for number, batch in batches.items()}
    for num_devices, kinds in shardings.items():
        for kind in kinds:
            several = OneStep(config_of(kind), num_devices)
            for number, want in wanted.items():
                got = several(states[number], batches[number])
                difference = worst_difference(got if exact else got[::2], want if exact else want[::2])
                assert difference < 1e-5, (number, kind, num_devices, difference)


def restored_on_fewer(folder: Path) -> None:
    """8 -> 2 -> 1 devices: every restored value is equal bit for bit, and lies as the devices want it."""
    config = config_of("fsdp")
    want: TrainState | None = None
    for step, num_devices in ((1, 8), (2, 2), (3, 1)):
        state = like = Trainer(config, mesh=make_mesh(jax.devices()[:num_devices])).init()
        with Checkpoints(folder, config) as checkpoints:
            if want is not None:
                state = checkpoints.restore(step - 1, like)
                for got, old in zip(jax.tree.leaves(on_host(state)), jax.tree.leaves(want), strict=True):
                    np.testing.assert_array_equal(got, old)
                for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
                    assert isinstance(leaf.sharding, NamedSharding)
                    assert leaf.sharding.is_equivalent_to(place.sharding, leaf.ndim)
            state = jax.tree.map(lambda x: x + 1, state)  # not what `init` gives
            want = on_host(state)
            checkpoints.save(step, jax.device_put(state, jax.tree.map(lambda x: x.sharding, like)))


def members_spread(folder: Path) -> None:
    """The first member, and one on another device."""
    compare_members((0, 4))


def all_members_spread(folder: Path) -> None:
    """All of them."""
    compare_members(range(6))


def compare_members(numbers: Sequence[int]) -> None:
    """Six members on 4 x 2 devices, and one on each of 6: a step from one state is that of each alone on one device.

    In float64, and with the state a few steps in, for the reason given at `compare_steps`.
    """
    for kind, num_devices in (("fsdp", 8), ("replicated", 6)):
        config = config_of(kind)
        gammas = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
        configs = [replace(config, objective=replace(config.objective, gamma=gamma)) for gamma in gammas]
        mesh = make_mesh(jax.devices()[:num_devices], len(configs))
        assert mesh.shape["model"] == (2 if num_devices == 8 else 6)
        joint = JointTrainer(configs, mesh=mesh)
        state, batch = joint.init(), batch_of(config, 0)
        assert all(leaf.sharding.spec[0] == "model" for leaf in jax.tree.leaves(state))
        for seed in range(2):
            state, _ = joint.train_step(state, put_batch(batch_of(config, seed), mesh))
        before = on_host(state)
        after = on_host(joint.train_step(state, put_batch(batch, mesh)))
        for number in numbers:
            start = jax.tree.map(lambda x, number=number: x[number], before)
            want = Trainer(configs[number]).train_step(start, batch)
            got = jax.tree.map(lambda x, number=number: x[number], after)
            assert worst_difference(got, want) < 1e-5, (kind, num_devices, number, worst_difference(got, want))


def members_restored_on_fewer(folder: Path) -> None:
    """4 x 2 -> 1 x 2 -> 1 x 1 devices: every member's restored values are equal bit for bit, and lie as they should."""
    configs = [
        replace(config_of("fsdp"), objective=replace(config_of("fsdp").objective, gamma=gamma)) for gamma in (0.0, 0.5)
    ]
    want: TrainState | None = None
    for step, num_devices in ((1, 8), (2, 2), (3, 1)):
        mesh = make_mesh(jax.devices()[:num_devices], len(configs))
        joint = JointTrainer(configs, mesh=mesh)
        state = joint.init()
        with ExitStack() as stack:
            each = [
                stack.enter_context(Checkpoints(folder / str(number) / "checkpoints", config))
                for number, config in enumerate(configs)
            ]
            if want is not None:
                likes = [joint.part_of(state, number) for number in range(len(configs))]
                state = joint.stack([c.restore(step - 1, like) for c, like in zip(each, likes, strict=True)])
                for got, old in zip(jax.tree.leaves(on_host(state)), jax.tree.leaves(want), strict=True):
                    np.testing.assert_array_equal(got, old)
            for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(joint.sharding(mesh)), strict=True):
                assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
            state = jax.tree.map(lambda x: x + 1, state)  # not what `init` gives
            want = on_host(state)
            for number, checkpoints in enumerate(each):
                checkpoints.save(step, joint.part_of(state, number))
    _, metrics = joint.train_step(state, put_batch(batch_of(configs[0], 0), mesh))  # and they are trained further
    assert np.isfinite(metrics["loss"]).all()


CHECKS: dict[str, Callable[[Path], None]] = {
    "equal_step": equal_step,
    "equal_steps": equal_steps,
    "members_spread": members_spread,
    "all_members_spread": all_members_spread,
    "members_restored_on_fewer": members_restored_on_fewer,
    "restored_on_fewer": restored_on_fewer,
}

if __name__ == "__main__":
    assert jax.device_count() == 8
    for name in sys.argv[2:]:
        (Path(sys.argv[1]) / name).mkdir(parents=True)
        try:
            with sharing_programs():
                CHECKS[name](Path(sys.argv[1]) / name)
        except Exception:
            traceback.print_exc()
        else:
            print(f"{name} held")
