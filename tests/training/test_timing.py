"""Where the time of a run goes, traces of a window of steps, and the profiler's server."""

import socket
import time

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


@pytest.mark.slow
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
    begin, goodput = time.perf_counter(), Goodput()
    with goodput.during("input"):
        time.sleep(0.2)
    waited = time.perf_counter() - begin
    with goodput.during("validation"):  # compiles, and waits besides
        jax.block_until_ready(jax.jit(lambda x: jnp.linalg.svd(x @ x + 3.25)[1])(jnp.ones((50, 50))))
        time.sleep(0.1)
    validated = time.perf_counter() - begin - waited
    time.sleep(0.3)
    shares, total = goodput.shares(), time.perf_counter() - begin
    seconds = {kind: share * total for kind, share in shares.items()}
    assert tuple(shares) == KINDS
    assert sum(shares.values()) == pytest.approx(1)
    assert seconds["input"] == pytest.approx(waited, abs=0.02)
    assert seconds["compile"] > 0
    assert seconds["validation"] + seconds["compile"] == pytest.approx(validated, abs=0.02)
    assert seconds["validation"] >= 0.09
    assert seconds["steps"] == pytest.approx(total - waited - validated, abs=0.02)
    assert str(goodput).startswith("time: steps ")
