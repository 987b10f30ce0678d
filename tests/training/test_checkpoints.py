"""Checkpoints: complete or not there, checked before they are used."""

import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.training.checkpoints import CHECKSUMS_NAME, Checkpoints
from clipsep_jax.training.step import Trainer
from tests.small import small_config

CONFIG = small_config(Path("records"))


@pytest.fixture(scope="module")
def state():
    return Trainer(CONFIG).init()


@pytest.fixture(scope="module")
def stored(state, tmp_path_factory):
    """Two checkpoints, of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("stored") / "checkpoints"
    with Checkpoints(folder, CONFIG) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, jax.tree.map(lambda x, s=step: x + s, state), 0.5 / step)
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    return Path(shutil.copytree(stored, tmp_path / "checkpoints"))


def files_of(folder: Path, step: int) -> list[Path]:
    return sorted(path for path in (folder / str(step)).rglob("*") if path.is_file())


def flip_a_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def test_the_latest_checkpoint_is_restored_equal(folder, state):
    with Checkpoints(folder, CONFIG) as checkpoints:
        assert checkpoints.steps == [1, 2]
        assert checkpoints.best_loss == 0.25
        restored = checkpoints.restore(2, state)
    for got, old in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(got, np.asarray(old) + 2)


def find_damage(folder: Path, state, path: Path) -> None:
    """The checkpoint of a damaged file is moved aside with a warning that names it, and the one before is used."""
    name = path.relative_to(folder / "2").as_posix()
    sentence = r"Checkpoint 2 is damaged \((?s:.)*\); it was moved to .*/damaged/2, and the last whole one is of step 1"
    with pytest.warns(InputWarning, match=sentence) as told:
        checkpoints = Checkpoints(folder, CONFIG)
    with checkpoints:
        assert checkpoints.steps == [1]
        assert name in str(told[0].message) or name == CHECKSUMS_NAME
        assert checkpoints.best_loss == 0.5
        restored = checkpoints.restore(1, state)
        checkpoints.save(2, restored)
        checkpoints.save(3, restored)
    assert (folder.parent / "damaged" / "2").is_dir()
    assert int(restored.step) == 1
    with Checkpoints(folder, CONFIG) as checkpoints:
        assert checkpoints.steps[-1] == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["state/d/", "state/_METADATA", "config/metadata", "metrics/metrics", CHECKSUMS_NAME])
def test_a_flipped_bit_is_found_before_it_is_used(folder, state, kind):
    path = next(path for path in files_of(folder, 2) if kind in path.as_posix())
    flip_a_bit(path, random.Random(0))
    find_damage(folder, state, path)


@pytest.mark.soak
def test_a_flipped_bit_in_any_file_is_found(stored, state, tmp_path):
    rng, names = random.Random(1), [path.relative_to(stored) for path in files_of(stored, 2)]
    for number, name in enumerate(names):
        folder = Path(shutil.copytree(stored, tmp_path / str(number) / "checkpoints"))
        if (folder / name).stat().st_size:
            flip_a_bit(folder / name, rng)
            find_damage(folder, state, folder / name)
    assert len(names) > 10


@pytest.mark.slow
@pytest.mark.parametrize("change", ["removed", "added", "emptied"])
def test_files_that_came_or_went_are_found(folder, state, change):
    path = next(path for path in files_of(folder, 2) if "state/d/" in path.as_posix())
    if change == "removed":
        path.unlink()
    elif change == "emptied":
        path.write_bytes(b"")
    else:
        path = path.with_name("more")
        path.write_bytes(b"x")
    find_damage(folder, state, path)


def test_damage_of_an_older_checkpoint_is_found_too(folder):
    """Its loss decides which model is the best."""
    path = folder / "1" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.5", "0.1"))
    with pytest.warns(InputWarning, match=r"Checkpoint 1 is damaged .* the last whole one is of step 2"):
        checkpoints = Checkpoints(folder, CONFIG)
    with checkpoints:
        assert checkpoints.steps == [2]
        assert checkpoints.best_loss == 0.25


def test_without_a_whole_checkpoint_nothing_is_used_and_nothing_lost(folder):
    for step in (1, 2):
        flip_a_bit(files_of(folder, step)[-1], random.Random(step))
    with pytest.warns(InputWarning, match=r"Checkpoint [12] is damaged .* no other one is whole"):
        Checkpoints(folder, CONFIG).close()
    with Checkpoints(folder, CONFIG) as checkpoints:
        assert checkpoints.steps == []
    assert {path.name for path in (folder.parent / "damaged").iterdir()} == {"1", "2"}


def test_a_checkpoint_whose_run_was_stopped_before_the_checksums_is_used_with_a_warning(folder):
    (folder / "2" / CHECKSUMS_NAME).unlink()
    with (
        pytest.warns(InputWarning, match=r"Checkpoint 2 has no sha256\.json"),
        Checkpoints(folder, CONFIG) as checkpoints,
    ):
        assert checkpoints.steps == [1, 2]
    assert (folder / "2" / CHECKSUMS_NAME).is_file()


def test_the_latest_two_and_the_best_are_kept(state, tmp_path):
    with Checkpoints(tmp_path / "checkpoints", CONFIG) as checkpoints:
        for step, loss in enumerate((0.5, 0.2, 0.4, None, 0.3, 0.9), 1):
            checkpoints.save(step, state, loss)
        assert checkpoints.best_loss == 0.2
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()) == [
        "2",
        "5",
        "6",
    ]


def test_a_change_may_be_allowed_by_the_name_of_an_earlier_version(folder):
    changed = CONFIG.replace(data={"similar_pairs": "drop", "num_dropped_pairs": 1}, train={"sharding": "fsdp"})
    with Checkpoints(folder, changed) as checkpoints:
        with pytest.raises(InputError, match=r"data\.num_dropped_pairs.*data\.similar_pairs.*train\.sharding"):
            checkpoints.check_config(1, ["data.drop_closest_from_step"])
        checkpoints.check_config(1, ["data.drop_closest", "sharding"])
