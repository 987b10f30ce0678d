"""The loop: a falling loss, curves, checkpoints, resuming, stopping."""

import itertools
import json
import os
import shutil
import signal
import threading
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from clipsep_jax.config import Config, OptimizerConfig
from clipsep_jax.data.batches import Batches
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.model_dir import Progress, open_model_dir, write_weights
from clipsep_jax.objectives import build_objective
from clipsep_jax.structures import Batch
from clipsep_jax.training.checkpoints import Checkpoints
from clipsep_jax.training.curves import MetricsLog, read_metrics
from clipsep_jax.training.loop import Interrupted, train
from clipsep_jax.training.optimizer import build_optimizer
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import Trainer
from tests.encoders.tiny_clip import make_tiny_clip_folder
from tests.small import QUERY_SIZE, make_records, small_config


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("records"))


def random_batch(config: Config, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    b, length = config.data.batch_size, config.spectrogram.num_samples
    return Batch(
        jnp.asarray(rng.integers(-9000, 9000, (b, 2, length)), jnp.int16),
        jnp.ones((b, 2)),
        jnp.asarray(rng.normal(size=(b, 2, QUERY_SIZE)), jnp.float32),
    )


def test_schedule_is_the_official_one():
    schedule = build_optimizer(OptimizerConfig()).rate
    steps = np.array([0, 1, 4_999, 5_000, 52_500, 100_000, 150_000])
    expected = [1 / 5000, 2 / 5000, 1, 1, 0.55, 0.1, 0.1]
    np.testing.assert_allclose([schedule(jnp.array(step)) for step in steps], np.array(expected) * 1e-3, rtol=1e-5)


@pytest.mark.slow
def test_loss_falls_on_one_batch(records):
    config = small_config(records)
    config = replace(config, optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1))
    trainer, batch = Trainer(config), random_batch(config)
    state = trainer.init()
    losses = []
    for _ in range(30):
        state, metrics = trainer.train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert int(state.step) == 30
    names = {"loss", "gradient_norm", "learning_rate", "mean_query_activation", "mean_noise_activation"}
    assert names <= metrics.keys()


@pytest.mark.slow
def test_step_applies_clipped_adam_to_the_gradients(records):
    config = small_config(records)
    trainer, batch = Trainer(config), random_batch(config)
    state = trainer.init()

    @jax.jit
    def loss_of(params):
        mixture, query = trainer.mix(batch, state.step, None, training=True)
        logits, _ = trainer.logits(params, state.batch_stats, mixture, query, training=True)
        return build_objective(config.objective)(logits, mixture, state.step).value

    gradients = jax.grad(loss_of)(state.params)
    norm = optax.tree.norm(gradients)
    clipped = jax.tree.map(lambda g: g * jnp.minimum(1, 1 / norm), gradients)
    # Adam's first step: both moments' biases cancel, so the update is lr * g / (|g| + eps).
    expected = jax.tree.map(lambda p, g: p - 5e-4 * g / (jnp.abs(g) + 1e-8), state.params, clipped)
    new, metrics = trainer.train_step(state, batch)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    for got, want in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)


def test_validation_uses_running_statistics(records):
    config = small_config(records)
    trainer = Trainer(config)
    state = trainer.init()
    loud, quiet = random_batch(config), random_batch(config, 1)
    joined = Batch(*[jnp.concatenate([getattr(loud, n), getattr(quiet, n)]) for n in ("sources", "gain", "query")])
    np.testing.assert_allclose(
        trainer.validation_step(state, joined)[: config.data.batch_size],
        trainer.validation_step(state, loud),
        rtol=1e-5,
    )


@pytest.mark.slow
def test_run_writes_curves_checkpoints_and_the_best_model(records, tmp_path):
    config = small_config(records)
    best = train(config, tmp_path)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert {"validation_loss_image", "validation_loss_text"} <= lines[1].keys()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()) == ["2", "4"]
    losses = {line["step"]: line["validation_loss_image"] for line in lines if "validation_loss_image" in line}
    model_dir = open_model_dir(tmp_path)
    assert model_dir.folder == best
    assert model_dir.progress.step == min(losses, key=losses.get)
    assert model_dir.config == config
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(records, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small_config(records, steps=6), whole)
    train(small_config(records, steps=4), parts)
    train(small_config(records, steps=6), parts, allow_changes=["train.steps"])
    assert read_metrics(parts) == read_metrics(whole)
    weights = [open_model_dir(folder).folder / "model.safetensors" for folder in (whole, parts)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_curves_after_the_restored_step_and_a_torn_line_are_removed(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    with MetricsLog(tmp_path, 2) as log:
        log.write(3, {"loss": 0.25})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 0.25},
    ]


@pytest.mark.slow
def test_nothing_is_compiled_again_during_a_run(records, tmp_path, monkeypatch, caplog):
    """After the first validation and save every program is there."""
    write, compiled = MetricsLog.write, {}

    def write_and_count(log, step, *more):
        compiled[step] = [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
        write(log, step, *more)

    monkeypatch.setattr(MetricsLog, "write", write_and_count)
    with jax.log_compiles():
        train(small_config(records, steps=10, seed=10), tmp_path)  # no other test has these programs
    assert any("train_step" in message for message in compiled[1])
    assert compiled[10][len(compiled[4]) :] == []
    for name in ("_train_step", "_validation_step"):  # not a second time for the first result, either
        assert sum(name in message for message in compiled[10]) == 1


class WatchedMetric:
    """A metric that notes when it is read."""

    def __init__(self, value: jax.Array, step: int, read: set[int]):
        self.value, self.step, self.read = value, step, read

    def __float__(self) -> float:
        self.read.add(self.step)
        return float(self.value)


@pytest.mark.slow
def test_the_loop_reads_nothing_from_the_device_between_logging(records, tmp_path, monkeypatch):
    read: set[int] = set()
    build = Trainer.__init__

    def build_watched(trainer, config, **more):
        build(trainer, config, **more)
        step_function, steps = trainer.flat_step, itertools.count(1)

        def watched_step(*inputs):
            assert not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(inputs))  # all is there already
            state, metrics = step_function(*inputs)
            step = next(steps)
            return state, {name: WatchedMetric(value, step, read) for name, value in metrics.items()}

        trainer.flat_step = watched_step
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(trainer.recipe))

    def refuse(*_):
        assert threading.current_thread() is not threading.main_thread(), "the loop waits for the device"

    monkeypatch.setattr(Trainer, "__init__", build_watched)
    monkeypatch.setattr(jax, "block_until_ready", refuse)
    config = small_config(records, steps=12, log_every=3, validate_every=12)
    train(replace(config, checkpoint=replace(config.checkpoint, save_every=12)), tmp_path)
    assert read == {3, 6, 9, 12}


@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on(records, tmp_path, monkeypatch):
    config = small_config(records, steps=100_000, validate_every=100_000)
    config = replace(config, checkpoint=replace(config.checkpoint, save_every=100_000))
    write = MetricsLog.write

    def write_and_interrupt(log, step, *more):
        write(log, step, *more)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", write_and_interrupt)
        with pytest.raises(Interrupted) as stop:
            train(config, tmp_path)
    assert stop.value.step in (3, 4)
    assert open_model_dir(tmp_path).progress.step == stop.value.step
    changed = ["train.steps", "train.validate_every", "checkpoint.save_every"]
    train(small_config(records, steps=6), tmp_path, allow_changes=changed)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_loss_that_is_not_finite_stops_the_run(records, tmp_path):
    config = small_config(records)
    config = replace(config, optimizer=OptimizerConfig(learning_rate=float("inf"), warmup_steps=1))
    with (
        pytest.warns(InputWarning, match="Step 2 changed nothing"),
        pytest.raises(InputError, match=r"of step 2 is (nan|inf)"),
    ):
        train(config, tmp_path)


def poison(monkeypatch, steps: set[int]) -> None:
    """Makes the gains of some steps' batches NaN."""
    iterate = Batches.iterate

    def poisoned(self, start=0):
        for step, batch in enumerate(iterate(self, start), start + 1):
            yield replace(batch, gain=np.full_like(batch.gain, np.nan)) if step in steps else batch

    monkeypatch.setattr(Batches, "iterate", poisoned)


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_clips(records, tmp_path, monkeypatch):
    config = small_config(records, steps=6, log_every=3)
    poison(monkeypatch, {2, 4})
    with pytest.warns(InputWarning, match=r"Step \d changed nothing") as told:
        train(config, tmp_path)
    batches = Run(config).train_batches
    for step, warning in zip((2, 4), told, strict=True):
        assert str(warning.message).startswith(f"Step {step} ")
        assert str(warning.message).endswith(f"It held {', '.join(batches.ids(step - 1))}.")
    assert [line["skipped_steps"] for line in read_metrics(tmp_path)] == [1, 1, 2, 2]
    assert all("loss" in line for line in read_metrics(tmp_path) if line["step"] not in (2, 4))
    assert all(np.isfinite(value) for line in read_metrics(tmp_path) for value in line.values())


@pytest.mark.slow
def test_a_skipped_step_keeps_parameters_statistics_and_optimizer(records):
    config = small_config(records)
    trainer, batch = Trainer(config), random_batch(config)
    start, _ = trainer.train_step(trainer.init(), batch)
    start = jax.tree.map(np.asarray, start)
    bad = replace(batch, gain=jnp.full_like(batch.gain, jnp.inf))
    after, metrics = trainer.train_step(start, bad)
    assert not np.isfinite(metrics["gradient_norm"]) or not np.isfinite(metrics["loss"])
    assert (int(after.step), int(after.skipped)) == (2, 1)
    for name in ("params", "batch_stats", "optimizer"):
        for got, want in zip(*(jax.tree.leaves(getattr(s, name)) for s in (after, start)), strict=True):
            np.testing.assert_array_equal(got, want)


def test_too_many_bad_steps_in_a_row_end_the_run(records, tmp_path, monkeypatch):
    config = small_config(records, steps=20, log_every=4, validate_every=20, max_skipped_in_row=3)
    config = replace(config, checkpoint=replace(config.checkpoint, save_every=20))
    poison(monkeypatch, {2, 3, 7, 8, 9})
    with (
        pytest.warns(InputWarning, match=r"Step [2378] changed nothing"),
        pytest.raises(InputError, match=r"not finite in 3 steps in a row, up to step 9 \(of clip"),
    ):
        train(config, tmp_path)


CHANGES = ["train.steps", "optimizer.learning_rate", "optimizer.warmup_steps", "checkpoint.save_every"]


@pytest.mark.slow
def test_a_broken_update_is_never_saved(records, tmp_path):
    """Finite loss, but parameters that are not: the run stops before it would save them, and can resume from before."""
    config = small_config(records)
    train(small_config(records, steps=2), tmp_path)
    broken = replace(config, optimizer=OptimizerConfig(learning_rate=1e38, warmup_steps=1))
    broken = replace(broken, checkpoint=replace(config.checkpoint, save_every=1))
    with pytest.raises(InputError, match="norm of the parameters of step 3"):
        train(broken, tmp_path, allow_changes=CHANGES)
    train(config, tmp_path, allow_changes=CHANGES)
    assert [line["step"] for line in read_metrics(tmp_path)][-1] == 4


def test_a_validation_loss_that_is_not_finite_stops_the_run(records, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "validate", lambda self, state: {"validation_loss_image": np.array(np.nan)})
    with pytest.raises(InputError, match="validation_loss_image of step 2 is nan"):
        train(small_config(records), tmp_path)


@pytest.mark.slow
def test_a_validation_split_too_small_to_mix_counts_as_none(tmp_path):
    records = make_records(tmp_path / "records", {"train": 6, "validation": 1})
    train(small_config(records), tmp_path / "run")
    assert open_model_dir(tmp_path / "run").progress == Progress(4, None)


@pytest.mark.slow
def test_another_network_cannot_resume(records, tmp_path):
    config = small_config(records)
    train(config, tmp_path)
    wider = replace(config, model=replace(config.model, width=4))
    with pytest.raises(InputError, match=r"is of another network: \S+ is \(.*\) there"):
        train(wider, tmp_path, allow_changes=["model.width"])


@pytest.mark.slow
def test_options_that_differ_from_the_checkpoints_are_listed_and_refused(records, tmp_path):
    config = small_config(records)
    train(config, tmp_path)
    changed = replace(config, train=replace(config.train, steps=6), objective=replace(config.objective, gamma=0.5))
    words = (
        r"objective\.gamma was 0\.25, is 0\.5; train\.steps was 4, is 6\. .*"
        r"--allow-change=objective\.gamma --allow-change=train\.steps"
    )
    with pytest.raises(InputError, match=words):
        train(changed, tmp_path)
    with pytest.raises(InputError, match=r"config: objective\.gamma was 0\.25, is 0\.5\. "):
        train(changed, tmp_path, allow_changes=["train.steps"])
    assert read_metrics(tmp_path)[-1]["step"] == 4
    train(changed, tmp_path, allow_changes=["train.steps", "objective.gamma"])
    assert read_metrics(tmp_path)[-1]["step"] == 6


@pytest.mark.slow
def test_without_validation_split_the_latest_model_is_kept(tmp_path):
    records = make_records(tmp_path / "records", {"train": 6})
    train(small_config(records), tmp_path / "run")
    assert open_model_dir(tmp_path / "run").progress.step == 4


@pytest.mark.slow
def test_model_directory_holds_the_checkpoint(records, tmp_path):
    config = small_config(records, steps=2)
    train(config, tmp_path)
    like = Run(config).trainer.init()
    with Checkpoints(tmp_path / "checkpoints", config) as checkpoints:
        state = checkpoints.restore(2, like)
    model = open_model_dir(tmp_path).load_model()
    params, batch_stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    for got, want in ((params, state.params), (batch_stats, state.batch_stats)):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), got, want))


@pytest.mark.slow
def test_frames_and_embeddings_give_the_same_losses(clip_records, tmp_path):
    """CLIP inside the step on the stored pictures, or its stored embeddings: the same training."""
    losses = {}
    for source in ("embeddings", "frames"):
        config = small_config(clip_records, steps=3)
        config = replace(config, query=replace(config.query, source=source))
        train(config, tmp_path / source)
        losses[source] = [line["loss"] for line in read_metrics(tmp_path / source)]
    np.testing.assert_allclose(losses["frames"], losses["embeddings"], rtol=1e-4)


def test_an_encoder_that_did_not_make_the_embeddings_is_refused(clip_records, tmp_path):
    other = make_tiny_clip_folder(tmp_path / "clip", seed=7, projection_dim=QUERY_SIZE)
    config = small_config(clip_records)
    config = replace(config, query=replace(config.query, encoder=str(other)))
    with pytest.raises(InputError, match="were made by"):
        train(config, tmp_path / "run")


def test_an_encoder_that_is_gone_is_refused(records, tmp_path):
    config = small_config(records)
    config = replace(config, query=replace(config.query, encoder=str(tmp_path / "gone")))
    with pytest.raises(InputError, match=r"query encoder .* is missing"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_best_model_whose_checkpoint_is_lost_is_kept(records, tmp_path):
    config = small_config(records)
    best = train(config, tmp_path) / "model.safetensors"
    write_weights(best.parent, open_model_dir(tmp_path).load_model(), 3, -1.0)  # better than any to come
    before = best.read_bytes()
    train(replace(config, train=replace(config.train, steps=6)), tmp_path, allow_changes=["train.steps"])
    assert best.read_bytes() == before
    shutil.rmtree(tmp_path / "checkpoints")
    train(config, tmp_path)  # anew, perhaps by another config
    assert best.read_bytes() != before
