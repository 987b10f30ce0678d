"""A model goes to the Hub with a card, and comes back bit for bit, by its name or by a revision that stays."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.scores import evaluation_of
from clipsep_jax.evaluation.tables import write_scores
from clipsep_jax.model_dir import open_model_dir
from clipsep_jax.publishing import write_card
from clipsep_jax.separation.separator import Separator
from tests.hub_server import running_hub


@pytest.fixture(scope="module")
def scores(trained, clip_records, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scores") / "small"
    summary, rows = evaluation_of(Separator.load(trained), RecordSet(clip_records), "test", 4).run()
    write_scores(folder, summary, rows)
    return folder


def clipsep(hub, home: Path, *arguments: str, **places: str) -> subprocess.CompletedProcess:
    """A command in a process of its own, which sees no other hub than this."""
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "clipsep_jax.cli", *arguments]
    environment = os.environ | own | places
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_model_goes_there_and_back(trained, clip_records, scores, tmp_path):
    with running_hub() as hub:
        told = ("--records", str(clip_records), "--scores", str(scores), "--license", "cc-by-4.0", "--private")
        pushed = clipsep(hub, tmp_path / "owner", "push", str(trained), "someone/small", *told)
        assert pushed.returncode == 0, pushed.stderr
        oid = list(hub.commits["someone/small"])[-1]
        assert pushed.stdout.strip().startswith(f"The model is at {hub.address}/someone/small")
        assert hub.private["someone/small"]
        files = hub.files("someone/small")
        assert {"README.md", "config.json", "model.safetensors", "query_encoder/model.safetensors"} <= files.keys()
        assert all(name.endswith((".json", ".md", ".safetensors", ".txt")) for name in files)
        folder = open_model_dir(trained).folder
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        refused = clipsep(hub, tmp_path / "other", "info", "someone/small")
        assert (refused.returncode, "--download" in refused.stderr) == (2, True)
        sound = tmp_path / "a.wav"
        write(sound)
        asked = ("separate", str(sound), "--query", "buzz", "--overwrite", "--out", str(tmp_path / "out"))
        for name in ("someone/small", f"someone/small@{oid}"):
            got = clipsep(hub, tmp_path / "other", *asked, "--model", name, "--download")
            assert got.returncode == 0, got.stderr
        assert (
            f"someone/small@{oid} gives the same for ever"
            in clipsep(hub, tmp_path / "new", *asked, "--model", "someone/small", "--download").stderr
        )
        stem = (tmp_path / "out" / "a_buzz.wav").read_bytes()
        hub.is_open = False
        offline = clipsep(hub, tmp_path / "other", *asked, "--model", f"someone/small@{oid}", HF_HUB_OFFLINE="1")
        assert offline.returncode == 0, offline.stderr
        assert (tmp_path / "out" / "a_buzz.wav").read_bytes() == stem
        shut = clipsep(hub, tmp_path / "owner", "push", str(trained), "someone/small", *told)
        assert shut.returncode == 2
        assert "cannot be written to on the Hugging Face Hub" in shut.stderr
        assert "Traceback" not in shut.stderr


def write(path: Path) -> None:
    import soundfile

    from tests.separation.inputs import noise

    soundfile.write(path, noise(5_000, level=0.3), 16_000)


def test_the_card_says_what_a_stranger_needs(trained, clip_records, scores):
    card = write_card(open_model_dir(trained), "someone/small", "cc-by-4.0", RecordSet(clip_records), [scores])
    _, metadata, text = card.split("---\n", 2)
    told = yaml.safe_load(metadata)
    assert (told["library_name"], told["pipeline_tag"], told["license"]) == (
        "clipsep-jax",
        "audio-to-audio",
        "cc-by-4.0",
    )
    (index,) = told["model-index"]
    summary = json.loads((scores / "scores.json").read_text())
    values = {metric["name"]: metric["value"] for result in index["results"] for metric in result["metrics"]}
    assert values["SDR (dB), queried by text"] == round(summary["text"]["sdr_mean"], 2)
    for words in ("## Use", "buzz, hiss, hum", "9 train, 6 validation, 6 test", "## Limits", "cc-by-4.0", "| text |"):
        assert words in text
    assert str(clip_records) not in card
    bare = write_card(open_model_dir(trained), "someone/small", "mit", None, [])
    assert "Not said." in bare
    assert "model-index" not in bare


def test_folders_without_scores_are_refused(trained, tmp_path):
    with pytest.raises(InputError, match=r"scores\.json"):
        write_card(open_model_dir(trained), "someone/small", "mit", None, [tmp_path])
