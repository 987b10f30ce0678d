"""Traces of a window of steps, and the profiler's server."""

import jax
import pytest

from clipsep_jax import profiling
from clipsep_jax.cli import main
from clipsep_jax.structures import InputError
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


def test_without_a_window_nothing_is_recorded(records, tmp_path):
    train(small_config(records), tmp_path)
    assert traces_of(tmp_path / "tensorboard") == []


def test_the_server_is_kept_and_a_port_that_cannot_be_had_is_told(monkeypatch):
    def start(port: int) -> object:
        if port == 1:
            raise RuntimeError("in use")
        return f"server at {port}"

    monkeypatch.setattr(profiling, "_servers", [])
    monkeypatch.setattr(jax.profiler, "start_server", start)
    profiling.start_server(6006)
    assert profiling._servers == ["server at 6006"]
    with pytest.raises(InputError, match="no profiler at port 1 "):
        profiling.start_server(1)


@pytest.mark.parametrize("window", ["3", "0:2", "5:4", "a:b"])
def test_a_window_that_is_none_is_refused(window, capsys):
    with pytest.raises(SystemExit):
        main(["train", "--config=configs/toy_smoke.py", "--workdir=unused", f"--profile-steps={window}"])
    assert f"{window} is not FIRST:LAST" in capsys.readouterr().err
