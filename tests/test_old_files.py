"""Files and command lines of version 0.1.0 before its packages were rearranged still work, with the same numbers.

`old_files/` was written by that version: models of eight systems with what they made of `waveform.npy` (stems.npy) and
of the test split (numbers.json), records, a training workdir and a sweep, each after two steps.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import clipsep_jax
from clipsep_jax.cli.main import main
from clipsep_jax.config import Config
from clipsep_jax.config_files import read_config
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep.verify import verify
from clipsep_jax.evaluation.protocols import listed_protocol
from clipsep_jax.evaluation.scores import Evaluation
from clipsep_jax.training.curves import read_metrics
from clipsep_jax.training.loop import train
from clipsep_jax.training.sweep import read_variation, sweep
from tests.small import QUERY_SIZE

OLD = Path(__file__).parent / "old_files"
SYSTEMS = sorted(path.name for path in (OLD / "models").iterdir())
QUERIES = {"labelsep": ["hum", "buzz"], "bertsep": ["hum", "buzz"], "pit": []}
NUMBERS = json.loads((OLD / "numbers.json").read_text())


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """A copy of the files as the current folder, since their configs name the records by a relative path."""
    for name in ("records", "workdir", "sweep"):
        shutil.copytree(OLD / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_an_old_model_gives_the_same_stems(system):
    separator = clipsep_jax.load(OLD / "models" / system)
    vectors = np.random.default_rng(1).normal(size=(2, QUERY_SIZE)).astype(np.float32)
    queries = separator.embed(QUERIES.get(system, list(vectors)))
    waveform, chunk = np.load(OLD / "waveform.npy"), 2047
    stems, total = np.zeros((2, len(waveform))), np.zeros(len(waveform))
    rise = np.arange(1, chunk + 1)
    fade = np.minimum(rise, rise[::-1]) / 1024
    for start in (
        *range(0, len(waveform) - chunk, 1024),
        len(waveform) - chunk,
    ):  # as was written: stems are cross-faded
        clip = waveform[None, start : start + chunk]
        separated = np.asarray(separator.separate_clips(clip, None if queries is None else queries[None]))[0]
        stems[:, start : start + chunk] += separated * fade
        total[start : start + chunk] += fade
    np.testing.assert_allclose(stems / total, np.load(OLD / "models" / system / "stems.npy"), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["labelsep", "bertsep", "pit"])  # those that need no encoder
def test_an_old_model_gets_the_same_scores(system, tmp_path):
    records, old_rows = RecordSet(OLD / "records"), NUMBERS[system]["rows"]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["target,interferer", *(f"{row['target']},{row['interferer']}" for row in old_rows)]))
    protocol = listed_protocol(f"pairs:{path}", records, records)
    _, rows = Evaluation(clipsep_jax.load(OLD / "models" / system), protocol).run(progress=False)
    for row, old in zip(rows, NUMBERS[system]["rows"], strict=True):
        assert {name: row[name] for name in ("target", "interferer")} == {n: old[n] for n in ("target", "interferer")}
        for name in old.keys() - {"target", "interferer"}:
            assert row[name] == pytest.approx(old[name], abs=1e-4), name


def test_old_records_are_intact():
    assert list(verify(OLD / "records")) == []


@pytest.mark.slow
def test_an_old_workdir_goes_on(copied):
    values = json.loads((copied / "workdir" / "best" / "config.json").read_text())["config"]
    values["train"]["steps"] = 3
    train(Config.from_config_dict(values), copied / "workdir", allow_changes=["train.steps"])
    lines = read_metrics(copied / "workdir")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[:2] == NUMBERS["clipsep_nit"]["metrics"]


@pytest.mark.slow
def test_an_old_sweep_goes_on(copied):
    values = json.loads((copied / "sweep" / "gamma=0.5" / "best" / "config.json").read_text())["config"]
    values["train"]["steps"] = 3
    config = Config.from_config_dict(values)
    variations = [read_variation("objective.gamma=0,0.5", config)]
    sweep(config, copied / "sweep", variations, num_mixtures=0, allow_changes=["train.steps"])
    for name in ("gamma=0.0", "gamma=0.5"):
        assert [line["step"] for line in read_metrics(copied / "sweep" / name)] == [1, 2, 3]


@pytest.mark.parametrize(
    "command",
    [
        "prepare videos DIR --labels CSV --out RECORDS --clip owner/name --audio flac "
        "--max-rejected 0.5 --time-limit 9",
        "prepare audio DIR --out RECORDS --workers 2",
        "prepare vggsound --csv CSV --videos DIR --out RECORDS --validation-share 0.1 --reject-still",
        "prepare music --json JSON --videos DIR --out RECORDS",
        "prepare official LIST --root DIR --prefix P --split test --out RECORDS",
        "prepare download LIST --out DIR --pause 1 --url {} --retry-gone",
        "prepare embed RECORDS --encoder resnet18:MODEL --drop-frames",
        "prepare report RECORDS --out DIR",
        "prepare verify RECORDS",
        "prepare table LABELS VECTORS --out FILE",
        "train --config=configs/clipsep_nit.py:vggsound --workdir=W --allow-change=train.steps --profile-steps=1:2 "
        "--coordinator=h:1 --num-processes=2 --process-id=0 --profile-server=9999",
        "sweep-gamma --config=configs/clipsep_nit.py --workdir=W --gammas 0,1 --vary optimizer.learning_rate=1,2 "
        "--split test --num-mixtures 0",
        "evaluate --model M --records R --split test --num-mixtures 9 --seed 1 --out O",
        "separate FILE --model M --query a --query b --out O",
        "import-torch FILE OUT --system pit --clip C --train-args A",
        "export-torch MODEL OUT --safetensors --official-layout DIR",
        "info MODEL",
        "demo --out O --videos V --labels L --clip C --steps 300",
    ],
)
def test_old_command_lines_are_understood(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    assert "usage: clipsep" in capsys.readouterr().out


def test_old_options_of_a_config_are_understood(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    overrides = {
        "spectrogram.sample_rate_hz": "16000", "spectrogram.num_samples": "65535", "model.num_labels": "0",
        "model.num_learned_queries": "0", "toy.num_clips": "30", "toy.encoder_steps": "5", "query.kind": "hybrid",
        "data.drop_closest": "-1", "data.drop_closest_from_step": "7", "data.read_threads": "2", "sharding": "fsdp",
        "train.board_mixtures": "0", "objective.criterion": "l1",
    }  # fmt: skip
    config = read_config("configs/clipsep.py:toy", [f"--config.{name}={value}" for name, value in overrides.items()])
    assert config == read_config("clipsep:toy", [f"--config.{name}={value}" for name, value in overrides.items()])
    assert Config.from_config_dict(config.to_dict()) == config


def test_an_own_config_may_start_from_a_shipped_one(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("from configs import base\n\n\ndef get_config():\n    return base.get_config('music')\n")
    assert read_config(str(own), []).data.records == "data/music"
