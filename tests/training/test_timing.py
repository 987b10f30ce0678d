"""Where the time of a run goes, traces of a window of steps, and the profiler's server."""

import socket
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

from clipsep_jax.cli.main import main
from clipsep_jax.errors import InputWarning
from clipsep_jax.training import timing
from clipsep_jax.training.loop import train
from clipsep_jax.training.timing import KINDS, Goodput
from tests.small import make_records, small_config


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("records"))


def traces_of(folder):
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.slow
def test_a_window_of_steps_is_recorded(records, tmp_path, capsys):
    trace = timing.StepTrace(2, 3, tmp_path / "tensorboard")
    train(small_config(records), tmp_path, trace=trace)
    (found,) = traces_of(tmp_path / "tensorboard")
    assert b"_train_step" in found.read_bytes()
    assert f"is in {tmp_path / 'tensorboard'}." in capsys.readouterr().err


@pytest.mark.slow
def test_a_window_that_the_run_does_not_reach_the_end_of_is_recorded_too(records, tmp_path):
    train(small_config(records), tmp_path, trace=timing.StepTrace(4, 9, tmp_path / "tensorboard"))
    assert len(traces_of(tmp_path / "tensorboard")) == 1


@pytest.mark.soak
def test_a_run_that_goes_on_within_the_window_records_the_rest(records, tmp_path, capsys):
    train(small_config(records, steps=2), tmp_path)
    trace = timing.StepTrace(1, 3, tmp_path / "tensorboard")
    train(small_config(records), tmp_path, trace=trace, allow_changes=["train.steps"])
    assert "The trace of steps from 3 on is in" in capsys.readouterr().err
    train(small_config(records), tmp_path / "other", trace=timing.StepTrace(7, 9, tmp_path / "none"))
    assert "No step of this run was from 7 to 9" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_without_a_window_nothing_is_recorded(records, tmp_path):
    train(small_config(records), tmp_path)
    assert traces_of(tmp_path / "tensorboard") == []


def test_the_server_starts_at_a_free_port_and_one_in_use_is_told(monkeypatch):
    started = []
    monkeypatch.setattr(jax.profiler, "start_server", started.append)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.warns(InputWarning, match=f"There is no profiler at port {port}: "):
            timing.start_server(port)
    assert started == []
    timing.start_server(port)
    assert started == [port]


@pytest.mark.parametrize("window", ["3", "0:2", "5:4", "a:b"])
def test_a_window_that_is_none_is_refused(window, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config=configs/toy_smoke.py", "--workdir=unused", f"--profile-steps={window}"])
    assert f"{window} is not FIRST:LAST" in capsys.readouterr().err


def test_shares_add_up_and_compilation_is_counted_once():
    with Goodput() as goodput:
        begin = time.perf_counter()
        with goodput.during("validation"):  # compiles, and waits besides
            jax.block_until_ready(jax.jit(lambda x: jnp.linalg.svd(x @ x + 3.25)[1])(jnp.ones((50, 50))))
            time.sleep(0.1)
        validated = time.perf_counter() - begin
        time.sleep(0.3)
        shares, total = goodput.shares(), time.perf_counter() - begin
    seconds = {kind: share * total for kind, share in shares.items()}
    assert tuple(shares) == KINDS
    assert sum(shares.values()) == pytest.approx(1)
    assert seconds["input"] == 0
    assert seconds["compile"] > 0
    assert seconds["validation"] + seconds["compile"] == pytest.approx(validated, abs=0.02)
    assert seconds["validation"] >= 0.09
    assert seconds["steps"] == pytest.approx(total - validated, abs=0.02)
    assert str(goodput).startswith("time: steps ")


class Later:
    """Something that a device computes until a time."""

    def __init__(self, seconds: float):
        self._end = time.perf_counter() + seconds

    def block_until_ready(self) -> None:
        time.sleep(max(0.0, self._end - time.perf_counter()))


@pytest.mark.parametrize(
    ("compute", "wait", "starved"),
    [
        (0.3, 0.1, 0.0),  # the batch is there before the step before it ends
        (0.1, 0.3, 0.2),  # it comes 0.2 s after that
        (0.0, 0.2, 0.2),
    ],
)
def test_input_is_what_the_devices_wait_for(monkeypatch, compute, wait, starved):
    monkeypatch.setattr(jax, "block_until_ready", lambda later: later.block_until_ready())

    def slow() -> Iterator[int]:
        while True:
            time.sleep(wait)
            yield 0

    batches = slow()
    with Goodput() as goodput:
        begin, times = time.perf_counter(), 3
        for _ in range(1 + times):
            goodput.next_of(batches)
            goodput.gave(Later(compute))
            if compute > wait:
                time.sleep(compute - wait)  # else the host would run ahead, as no step takes long enough
        time.sleep(0.05)
        seconds = goodput.shares()["input"] * (time.perf_counter() - begin)
    assert seconds == pytest.approx(times * starved, abs=0.08)


def test_a_step_that_fails_does_not_stop_the_run_at_its_end(monkeypatch):
    def fail(_: object) -> None:
        raise RuntimeError("of the device")

    monkeypatch.setattr(jax, "block_until_ready", fail)
    with Goodput() as goodput:
        goodput.gave(None)
        goodput.gave(None)
    assert goodput.shares()["input"] == 0
