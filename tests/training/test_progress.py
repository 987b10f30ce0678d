"""What a run tells while it goes."""

import json
from pathlib import Path

import jax
import pytest

from clipsep_jax.training import progress
from clipsep_jax.training.flat import Flat, Structure
from clipsep_jax.training.loop import train
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import Trainer
from tests.small import make_records, small_config


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    return make_records(tmp_path_factory.mktemp("records"))


class Memory:
    """A device that tells its memory, and whose peak is known."""

    def memory_stats(self) -> dict[str, int]:
        return {"peak_bytes_in_use": 3_000_000_000}


def test_speed_reading_arithmetic_and_memory_are_told(records, tmp_path, monkeypatch, capsys):
    curves = []
    monkeypatch.setattr(progress, "peak_flops", lambda kind, precision: 1e6)
    monkeypatch.setattr(jax, "local_devices", lambda *_: [Memory()])
    monkeypatch.setattr(
        "clipsep_jax.training.tensorboard.Board.scalar", lambda _, name, step, value: curves.append((name, step, value))
    )
    config = small_config(records, steps=4, validate_every=4)
    train(config, tmp_path / "run")
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("time: steps ")
    for word in (
        " examples/s; ",
        " GB read; ",
        "% of the devices' peak arithmetic (MFU); 3.0 GB of device memory at most",
    ):
        assert word in last
    of_step = {name: value for name, step, value in curves if step == 4}
    assert of_step["examples_per_second"] == pytest.approx(of_step["steps_per_second"] * config.data.batch_size)
    assert of_step["mfu"] > 0
    assert of_step["device_gigabytes_peak"] == 3
    least = 4 * config.data.batch_size * config.data.num_sources * 2 * config.spectrogram.num_samples
    assert of_step["gigabytes_read"] * 1e9 >= least
    assert {"steps", "input", "checkpoint", "validation", "compile"} <= set(of_step)
    stored = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in stored] == [1, 2, 3, 4]  # told a step later, and none is lost
    assert not {"mfu", "examples_per_second", "gigabytes_read"} & set(stored[-1])  # they differ between equal runs


def test_a_run_that_ends_between_two_log_lines_tells_the_speed_up_to_its_end(records, monkeypatch):
    run = Run(small_config(records))
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    speed = progress.Speed(run, 10)
    now[0] += 5
    assert speed.words(60)[0] == f"{10 * run.config.data.batch_size:.1f} examples/s"


def test_a_flat_state_is_the_state(records):
    trainer = Trainer(small_config(records))
    state = trainer.init()
    flat = trainer.flat(state)
    assert jax.tree.structure(flat.tree) == jax.tree.structure(state)
    assert all(one is other for one, other in zip(jax.tree.leaves(flat.tree), jax.tree.leaves(state), strict=True))
    assert Structure(state) == flat.structure == Flat.of(state).structure
    assert hash(Structure(state)) == hash(flat.structure)
    assert Structure((1, 2)) != Structure([1, 2])
