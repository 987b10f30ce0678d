"""Traces of a window of steps, and the profiler's server."""

import socket

import jax
import pytest

from clipsep_jax import profiling
from clipsep_jax.cli import main
from clipsep_jax.structures import InputWarning
from clipsep_jax.train import train
from tests.small import make_records, small_config


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("records"))


def traces_of(folder):
    return list(folder.glob("plugins/profile/*/*.xplane.pb"))


def test_a_window_of_steps_is_recorded(records, tmp_path, capsys):
    trace = profiling.StepTrace(2, 3, tmp_path / "tensorboard")
    train(small_config(records), tmp_path, trace=trace)
    (found,) = traces_of(tmp_path / "tensorboard")
    assert b"_train_step" in found.read_bytes()
    assert f"is in {tmp_path / 'tensorboard'}." in capsys.readouterr().err


def test_a_window_that_the_run_does_not_reach_the_end_of_is_recorded_too(records, tmp_path):
    train(small_config(records), tmp_path, trace=profiling.StepTrace(4, 9, tmp_path / "tensorboard"))
    assert len(traces_of(tmp_path / "tensorboard")) == 1


def test_a_run_that_goes_on_within_the_window_records_the_rest(records, tmp_path, capsys):
    train(small_config(records, steps=2), tmp_path)
    trace = profiling.StepTrace(1, 3, tmp_path / "tensorboard")
    train(small_config(records), tmp_path, trace=trace, allow_changes=["train.steps"])
    assert "The trace of steps from 3 on is in" in capsys.readouterr().err
    train(small_config(records), tmp_path / "other", trace=profiling.StepTrace(7, 9, tmp_path / "none"))
    assert "No step of this run was from 7 to 9" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


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
            profiling.start_server(port)
    assert started == []
    profiling.start_server(port)
    assert started == [port]


@pytest.mark.parametrize("window", ["3", "0:2", "5:4", "a:b"])
def test_a_window_that_is_none_is_refused(window, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config=configs/toy_smoke.py", "--workdir=unused", f"--profile-steps={window}"])
    assert f"{window} is not FIRST:LAST" in capsys.readouterr().err
