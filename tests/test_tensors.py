import json
import os
import re

import huggingface_hub
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import save_file

from clipsep_jax.errors import InputError
from clipsep_jax.files import staged_folder
from clipsep_jax.hub import MODEL_FILES, copy_folder, read_weights, resolve_model_folder
from clipsep_jax.tensors import CONV, LINEAR, Rule, export_tensors, load_tensors, read_tensors, read_torch_tensors

RULES = (
    Rule("blocks.{i}.position_ids", None),
    Rule("blocks.{i}.fc.weight", "parts.{i}.kernel", LINEAR),
    Rule("blocks.{i}.fc.bias", "parts.{i}.bias"),
    Rule("stem.weight", "stem.kernel", CONV),
    Rule("norm.running_var", "norm.var"),
    Rule("norm.weight", "norm.scale"),
    Rule("norm.bias", "norm.bias"),
    Rule("norm.running_mean", "norm.mean"),
    Rule("scale", "scale"),
)
SHAPES = {
    "blocks.0.fc.weight": (4, 3),
    "blocks.0.fc.bias": (4,),
    "blocks.1.fc.weight": (4, 3),
    "blocks.1.fc.bias": (4,),
    "stem.weight": (5, 3, 2, 7),
    "norm.weight": (3,),
    "norm.bias": (3,),
    "norm.running_mean": (3,),
    "norm.running_var": (3,),
    "scale": (),
}


class Small(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.parts = nnx.List([nnx.Linear(3, 4, rngs=rngs) for _ in range(2)])
        self.stem = nnx.Conv(3, 5, (2, 7), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.scale = nnx.Param(jnp.float32(1))


def small() -> Small:
    return Small(nnx.Rngs(0))


def published() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: np.array(generator.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("make", [small, lambda: nnx.eval_shape(small)], ids=["concrete", "abstract"])
def test_load_puts_every_tensor_in_our_layout_and_export_is_its_inverse(make):
    tensors = published()
    module = make()
    load_tensors(module, {**tensors, "blocks.0.position_ids": np.arange(3)}, RULES, "a file")
    np.testing.assert_array_equal(module.parts[1].kernel[...], tensors["blocks.1.fc.weight"].T)
    np.testing.assert_array_equal(module.stem.kernel[...], tensors["stem.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(module.norm.mean[...], tensors["norm.running_mean"])
    back = export_tensors(module, RULES)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], tensor, strict=True)


def test_load_names_all_faults_at_once_and_changes_nothing():
    tensors = published()
    del tensors["scale"], tensors["blocks.1.fc.bias"]
    tensors |= {"blocks.0.fc.weight": np.zeros((3, 4), np.float32), "head.weight": np.zeros(2, np.float32)}
    tensors["blocks.7.fc.bias"] = np.zeros(4, np.float32)
    module = small()
    before = export_tensors(module, RULES)
    with pytest.raises(InputError) as caught:
        load_tensors(module, tensors, RULES, "x/model.safetensors")
    message = str(caught.value)
    assert message.startswith("x/model.safetensors ")
    assert "missing: blocks.1.fc.bias, scale" in message
    assert "of another shape: blocks.0.fc.weight (3, 4) instead of (4, 3)" in message
    assert "unknown: head.weight, blocks.7.fc.bias" in message
    for name, tensor in export_tensors(module, RULES).items():
        np.testing.assert_array_equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.bool_, np.complex64])
def test_no_number_of_another_kind_becomes_a_weight(dtype):
    tensors = published() | {"norm.bias": np.ones(3, dtype)}
    with pytest.raises(InputError, match=f"of another type: norm.bias {np.dtype(dtype)}"):
        load_tensors(small(), tensors, RULES, "a file")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_weights_that_are_not_finite_are_named(tmp_path, name, value):
    tensors = published() | {"norm.bias": np.array([0, value, 0])}
    if name.endswith("pt"):
        torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, tmp_path / name)
    else:
        save_file(tensors, tmp_path / name)
    read = read_torch_tensors if name.endswith("pt") else read_tensors
    with pytest.raises(InputError, match=rf"{name} holds numbers that are not finite \(in norm\.bias\)"):
        read(tmp_path / name)


def test_a_long_list_of_faults_is_counted():
    extra = {f"other.{number}": np.zeros(1, np.float32) for number in range(30)}
    with pytest.raises(InputError, match=r"other\.19 and 10 more"):
        load_tensors(small(), published() | extra, RULES, "a file")


def test_a_variable_without_a_rule_is_our_own_mistake():
    with pytest.raises(KeyError, match=r"scale"):
        export_tensors(small(), RULES[:-1])


def test_a_placeholder_stays_within_one_name():
    rule = Rule("a.{x}.b", "c.{x}.d")
    assert rule.their_name("c.k_1.d") == "a.k_1.b"
    assert rule.their_name("c.k.1.d") is None
    assert rule.their_name("cxk.d") is None


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_single_and_integers_stay(tmp_path, half):
    values = np.array([0.5, -3, 1024]).astype(half)
    save_file({"a": values, "ids": np.arange(3), "b": np.float32([1.1])}, tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path)
    np.testing.assert_array_equal(tensors["a"], np.float32([0.5, -3, 1024]), strict=True)
    np.testing.assert_array_equal(tensors["b"], np.float32([1.1]), strict=True)
    assert tensors["ids"].dtype == np.int64


@pytest.mark.parametrize("kind", ["F8_E4M3", "F4", "nonsense"])
def test_numbers_of_a_type_that_numpy_lacks_are_refused(tmp_path, kind):
    header = json.dumps({"a": {"dtype": kind, "shape": [2], "data_offsets": [0, 1 if kind == "F4" else 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    with pytest.raises(InputError, match=r"model\.safetensors (is damaged|holds numbers of a type)") as caught:
        read_tensors(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_of_a_million_letters_is_refused(tmp_path):
    save_file({".".join(["layer"] * 20_000): np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors holds more than 100,000 tensors, or names of more than"):
        read_tensors(tmp_path)


def test_a_file_larger_than_any_model_is_not_read(tmp_path):
    save_file(published(), tmp_path / "model.safetensors")
    os.truncate(tmp_path / "model.safetensors", 40 * 2**30)  # takes no room on the disk
    with pytest.raises(InputError, match=r"model\.safetensors is larger than 16 GiB"):
        read_tensors(tmp_path)


def test_no_weights_are_named(tmp_path):
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "model.safetensors"))):
        read_tensors(tmp_path)


@pytest.mark.parametrize("length", [0, 5, 40, -1])
def test_a_truncated_file_is_named(tmp_path, length):
    path = tmp_path / "model.safetensors"
    save_file(published(), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=rf"{re.escape(str(path))} is damaged"):
        read_tensors(tmp_path)


def test_a_local_folder_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve_model_folder("owner/name").samefile(tmp_path / "owner" / "name")


@pytest.mark.parametrize("name", ["clip", "/no/such/folder", "a/b/c", "../x/..", "owner/", "https://x/y", "-x/y", ""])
def test_neither_a_folder_nor_an_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(InputError, match="neither a folder nor a Hugging Face id"):
        resolve_model_folder(name)


def the_hub(folder, asked):
    """A stand-in for the client, which finds nothing in its cache and fetches `folder`."""

    def download(name, revision=None, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("no network")
        asked.update(name=name, patterns=allow_patterns)
        return str(folder)

    return download


def test_pytorchs_weights_are_fetched_only_where_there_are_no_others(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", the_hub(tmp_path, asked))
    assert resolve_model_folder("owner/name") == tmp_path
    assert asked["patterns"][-1] == "pytorch_model.bin"


def test_what_a_file_names_is_fetched_only_if_asked_for(tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", the_hub(tmp_path, asked))
    with pytest.raises(InputError, match=r"owner/name, which a file names, .* https://huggingface\.co/owner/name with"):
        resolve_model_folder("owner/name", download=False)
    assert not asked
    assert resolve_model_folder("owner/name") == tmp_path
    assert "Fetching owner/name from https://huggingface.co/owner/name" in capsys.readouterr().err
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert resolve_model_folder("owner/name", download=False) == tmp_path  # fetched before
    assert capsys.readouterr().err == ""


def test_shards_and_pytorchs_file_hold_the_same_weights_and_are_copied(tmp_path):
    tensors = {"a": np.float32([1.5]), "b": np.arange(3)}
    for kind in ("safetensors", "shards", "torch"):
        folder = tmp_path / kind
        folder.mkdir()
        for name in ("config.json", "preprocessor_config.json"):
            (folder / name).write_text("{}")
        if kind == "safetensors":
            save_file(tensors, folder / "model.safetensors")
        elif kind == "shards":
            files = {name: f"model-0000{n}-of-00002.safetensors" for n, name in enumerate(tensors)}
            for name, file in files.items():
                save_file({name: tensors[name]}, folder / file)
            text = json.dumps({"metadata": {"total_size": 28}, "weight_map": files})
            (folder / "model.safetensors.index.json").write_text(text)
        else:
            half = {"a": torch.tensor(tensors["a"]).half(), "b": torch.tensor(tensors["b"])}
            torch.save(half, folder / "pytorch_model.bin")
        copy_folder(folder, tmp_path / f"copy of {kind}")
        for place in (folder, tmp_path / f"copy of {kind}"):
            found = read_weights(place)
            assert found.keys() == tensors.keys()
            for name, tensor in tensors.items():
                np.testing.assert_array_equal(found[name], tensor, strict=True)


@pytest.mark.parametrize("names", [["../x.safetensors"], ["x.bin"], [3], []])
def test_a_list_of_shards_that_names_other_files_is_refused(tmp_path, names):
    text = json.dumps({"weight_map": {str(n): name for n, name in enumerate(names)}})
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json is damaged"):
        read_weights(tmp_path)


def test_the_hub_is_asked_for_nothing_executable(tmp_path, monkeypatch):
    asked = {}

    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", the_hub(tmp_path, asked))
    assert resolve_model_folder("openai/clip-vit-base-patch32") == tmp_path
    assert asked["name"] == "openai/clip-vit-base-patch32"
    assert "model.safetensors" in asked["patterns"]
    assert all(pattern.endswith((".json", ".txt", ".safetensors")) for pattern in asked["patterns"])


@pytest.mark.parametrize(
    "error",
    [LocalEntryNotFoundError("no network.\nmore"), RuntimeError("no network."), OSError()],
)
def test_a_failed_download_is_one_sentence(error, monkeypatch):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=r"owner/name.*cannot be fetched.*local folder") as caught:
        resolve_model_folder("owner/name")
    assert "\n" not in str(caught.value)


def test_copy_takes_the_files_of_the_model_and_no_others(tmp_path):
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.mkdir()
    for name in [*MODEL_FILES, "pytorch_model.bin", "modeling.py"]:
        (source / name).write_text(json.dumps(name))
    copy_folder(source, target)
    assert sorted(path.name for path in target.iterdir()) == sorted(MODEL_FILES)
    assert all(json.loads((target / name).read_text()) == name for name in MODEL_FILES)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_copy_of_half_a_model_is_refused(tmp_path, lost):
    source = tmp_path / "source"
    source.mkdir()
    for name in MODEL_FILES:
        (source / name).write_text(name)
    (source / lost).unlink()
    with pytest.raises(InputError, match=re.escape(str(source / lost))):
        copy_folder(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def write_and_fail(folder):
    with staged_folder(folder) as staging:
        (staging / "a").write_text("new")
        raise RuntimeError("stop")


def test_an_interrupted_write_leaves_the_folder_as_it_was(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"
