"""Official checkpoints in and out: the same numbers in PyTorch and here, every bit back, and clear refusals."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipsep_jax.config import ModelConfig
from clipsep_jax.errors import InputError
from clipsep_jax.model_dir import TABLE_FILE, open_model_dir, start_model_dir, write_weights
from clipsep_jax.official.checkpoint import (
    REST_FILE,
    SYSTEMS,
    export_official_layout,
    export_torch,
    import_torch,
    infer_system,
)
from clipsep_jax.queries.table import EmbeddingTable
from tests.parity.systems import SYSTEM_CHANGES, model_config, random_inputs, random_module
from tests.torch_twin import TorchCLIPSep

FULL = ModelConfig()


def save_official(path, module, *, prefix="module."):
    torch.save({prefix + name: tensor for name, tensor in module.state_dict().items()}, path)
    return path


def imported(folder, config, system=None, **options):
    module = random_module(config)
    checkpoint = save_official(folder / "best_model.pt", module)
    return module, import_torch(checkpoint, folder / "model", system, **options)


def assert_same_forward(module, model_dir, config, **inputs):
    ours, theirs = random_inputs(config, **inputs)
    with torch.no_grad():
        query, noise = module(*theirs)
    got = open_model_dir(model_dir).load_model()(*ours)
    tolerance = 1e-4 * max(1, query.abs().max())
    assert query.std() > 0.01
    np.testing.assert_allclose(got.query, query, rtol=0, atol=tolerance)
    assert (got.noise is None) == (noise is None)
    if noise is not None:
        np.testing.assert_allclose(got.noise, noise, rtol=0, atol=1e-4 * max(1, noise.abs().max()))


def assert_same_tensors(found, module):
    expected = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_every_system_is_here():
    assert SYSTEM_CHANGES.keys() == SYSTEMS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_import_gives_the_same_masks_and_export_the_same_bits(system, tmp_path):
    config = model_config(system)
    module, model_dir = imported(tmp_path, config, system)
    found = open_model_dir(model_dir).config
    assert replace(found.model, init_std=config.init_std) == config
    assert_same_forward(module, model_dir, config)
    exported = torch.load(export_torch(model_dir, tmp_path / "back.pt"), weights_only=True)
    assert_same_tensors(exported, module)
    torch.nn.DataParallel(TorchCLIPSep(config)).load_state_dict(exported, strict=True)


@pytest.mark.soak
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_same_at_full_size(system, tmp_path):
    config = model_config(system, FULL)
    module, model_dir = imported(tmp_path, config, system)
    assert_same_forward(module, model_dir, config, shape=(1, 256, 256), num_queries=2)
    assert_same_tensors(torch.load(export_torch(model_dir, tmp_path / "back.pt"), weights_only=True), module)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_system_is_inferred_but_for_sound_of_pixels(system):
    names = random_module(model_config(system)).state_dict()
    tensors = {name: tensor.numpy() for name, tensor in names.items()}
    assert infer_system(tensors) == {"sop": "clipsep"}.get(system, system)


def without_memory(config):
    with torch.device("meta"):
        return TorchCLIPSep(config)


def test_names_are_the_official_ones():
    late = without_memory(replace(FULL, num_noise_heads=2)).state_dict()
    inner = "sound_net.unet_block.model.1.model.3.model.3.model.3.model.3.model.3.model"
    assert late[f"{inner}.1.weight"].shape == (512, 512, 4, 4)
    assert late[f"{inner}.4.weight"].shape == (512, 512, 3, 3)
    assert late[f"{inner}.5.running_var"].shape == (512,)
    assert late["sound_net.unet_block.model.4.bias"].shape == (32,)
    assert late["sound_net.unet_block.model.1.model.2.weight"].shape == (128,)
    assert late["pit_nets.1.weight"].shape == (32, 32)
    middle = without_memory(replace(FULL, fusion="middle")).state_dict()
    inner = "sound_net.unet_block" + 6 * ".submodule"
    assert middle[f"{inner}.upconv.weight"].shape == (512, 512 + 32, 3, 3)
    assert middle[f"{inner}.downnorm.weight"].shape == (512,)
    assert {"synth_net.scale", "sound_net.unet_block.downnorm.bias"} <= middle.keys()
    early = without_memory(replace(FULL, fusion="early")).state_dict()
    assert early["sound_net.bn0.weight"].shape == (33,)
    assert "frame_net.fc.weight" in early
    assert "synth_net.scale" not in early
    assert without_memory(replace(FULL, num_learned_queries=2)).synth_net.weight.shape == (2, 32, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["clipsep_middle", "pit"])
def test_safetensors_and_bare_names_go_both_ways(system, tmp_path):
    from safetensors.torch import load_file

    config = model_config(system)
    module = random_module(config)
    bare = save_official(tmp_path / "bare.pt", module, prefix="")
    model_dir = import_torch(bare, tmp_path / "model")
    exported = export_torch(model_dir, tmp_path / "new" / "m.safetensors", safetensors=True)
    assert_same_tensors(load_file(exported), module)
    again = import_torch(exported, tmp_path / "again")
    names = {"model.safetensors", "config.json", REST_FILE}
    assert {path.name for path in again.iterdir()} == names
    assert all((again / name).read_bytes() == (model_dir / name).read_bytes() for name in names)


def test_a_model_of_our_own_is_exported_whole(tmp_path):
    """If nothing was kept from an official checkpoint, missing values are filled in as in a new one."""
    module, model_dir = imported(tmp_path, model_config("clipsep_middle"))
    (model_dir / REST_FILE).unlink()
    opened = open_model_dir(model_dir)
    write_weights(model_dir, opened.load_model(), 30, None)
    exported = torch.load(export_torch(model_dir, tmp_path / "back.pt"), weights_only=True)
    assert exported.keys() == {f"module.{name}" for name in module.state_dict()}
    assert exported["module.sound_net.bn0.num_batches_tracked"] == 60  # twice a step: once a query
    assert torch.equal(exported["module.synth_net.scale"], torch.ones(5))
    TorchCLIPSep(opened.config.model).load_state_dict({name[7:]: x for name, x in exported.items()}, strict=True)


def test_settings_and_labels_come_from_the_runs_arguments(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"hum": 2, "buzz": 0, "hiss": 1}))
    arguments = {
        "audio_len": 32767, "n_fft": 1024, "win_len": 1024, "n_mix": 2, "lr": 0.5, "frame_margin": None,
        "label_map_filename": "/elsewhere/labels.json", "train_mode": "image", "weighted_loss": False,
    }  # fmt: skip
    (tmp_path / "train-args.json").write_text(json.dumps(arguments))
    config = replace(model_config("labelsep"), num_labels=3)
    _, model_dir = imported(tmp_path, config, train_args=tmp_path / "train-args.json")
    opened = open_model_dir(model_dir)
    assert opened.labels == ("buzz", "hiss", "hum")
    assert opened.config.spectrogram.num_samples == 32767
    assert opened.config.optimizer.learning_rate == 0.5
    assert not opened.config.mixing.weighted
    assert opened.config.query.kind == "label"


def test_unknown_labels_are_numbers(tmp_path):
    _, model_dir = imported(tmp_path, model_config("labelsep"))
    assert open_model_dir(model_dir).labels == tuple("0123456")


def test_hybrid_training_and_sentence_tables_are_read(tmp_path):
    (tmp_path / "train-args.json").write_text(json.dumps({"train_mode": "hybrid", "bert_embeddings": "bert.pt"}))
    vectors = torch.randn(3, 1, 256)
    torch.save(dict(zip(["a", "b", "c"], vectors, strict=True)), tmp_path / "bert.pt")
    options = {"train_args": tmp_path / "train-args.json"}
    _, model_dir = imported(tmp_path, model_config("bertsep"), **options)
    np.testing.assert_array_equal(EmbeddingTable.load(model_dir / TABLE_FILE).lookup("b"), vectors[1, 0])
    checkpoint = save_official(tmp_path / "clip.pt", random_module(model_config("clipsep")))
    assert open_model_dir(import_torch(checkpoint, tmp_path / "clip", **options)).config.query.kind == "hybrid"


def test_the_encoder_is_recorded(tmp_path, clip_folder):
    _, model_dir = imported(tmp_path, model_config("clipsep"), clip=str(clip_folder))
    assert open_model_dir(model_dir).encoder.query_size == 6


@pytest.mark.parametrize(
    ("system", "clip", "message"),
    [
        ("sop", "clip:x/y", "takes one of the kind resnet18-clip:PLACE"),
        ("clipsep", "resnet18:x/y", "takes one of the kind clip:PLACE"),
        ("pit", "x/y", "pit uses no encoder"),
    ],
)
def test_an_encoder_of_another_kind_is_refused(system, clip, message, tmp_path):
    with pytest.raises(InputError, match=message):
        imported(tmp_path, model_config(system), system, clip=clip)
    assert not (tmp_path / "model").exists()


def test_an_encoder_of_another_size_is_refused(tmp_path, clip_folder):
    with pytest.raises(InputError, match="size 6, but the checkpoint takes 9"):
        imported(tmp_path, replace(model_config("clipsep"), query_size=9), clip=str(clip_folder))


def test_all_faults_are_named_together_and_nothing_is_written(tmp_path):
    state = random_module(model_config("clipsep_middle")).state_dict()
    state["head.weight"] = torch.zeros(2)
    state["synth_net.scale"] = torch.zeros(9)
    state["sound_net.unet_block.submodule.downconv.weight"] = torch.zeros(1, 2, 4, 4)
    del state["sound_net.unet_block.downnorm.bias"], state["sound_net.unet_block.upconv.bias"]
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InputError) as caught:
        import_torch(tmp_path / "x.pt", tmp_path / "model")
    message = str(caught.value)
    assert "x.pt, read as clipsep_middle, does not fit" in message
    assert "missing: sound_net.unet_block.upconv.bias, sound_net.unet_block.downnorm.bias" in message
    assert "sound_net.unet_block.submodule.downconv.weight (1, 2, 4, 4) instead of (8, 4, 4, 4)" in message
    assert "synth_net.scale (9,) instead of (5,)" in message
    assert "unknown: head.weight" in message
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("system", "lost", "fault"),
    [
        ("clipsep", "frame_net.weight", "is missing"),
        ("clipsep", "sound_net.unet_block.model.0.weight", "is missing"),
        ("pit", "synth_net.weight", "is missing"),
        ("labelsep", "label_net.weight", r"has the shape \(3,\)"),
    ],
)
def test_the_tensor_that_hides_a_size_is_named(system, lost, fault, tmp_path):
    state = random_module(model_config(system)).state_dict()
    del state[lost]
    if "shape" in fault:
        state[lost] = torch.zeros(3)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match=rf"x\.pt cannot be read as {system}: {lost}, which .*{fault}"):
        import_torch(tmp_path / "x.pt", tmp_path / "model", system)
    assert not (tmp_path / "model").exists()


def test_a_name_with_and_without_its_prefix_is_refused(tmp_path):
    state = random_module(model_config("clipsep")).state_dict()
    torch.save(state | {f"module.{name}": tensor + 1 for name, tensor in state.items()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt holds \S+ with and without `module\.`"):
        import_torch(tmp_path / "x.pt", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_missing_file_an_unknown_system_and_a_full_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        import_torch(tmp_path / "none.pt", tmp_path / "model")
    _, model_dir = imported(tmp_path, model_config("clipsep"))
    with pytest.raises(InputError, match="already holds a model"):
        import_torch(tmp_path / "best_model.pt", model_dir)
    with pytest.raises(InputError, match="no official system 'clipsepnit'; choose one of clipsep, clipsep_nit"):
        import_torch(tmp_path / "best_model.pt", tmp_path / "other", "clipsepnit")
    with pytest.raises(InputError, match="is a folder"):
        export_torch(model_dir, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds no names and values"),
        ('{"log_freq": false}', "log_freq = False; only models with log_freq = True"),
        ('{"n_fft": 1024, "win_len": 512}', "win_len = 512; only models with win_len = 1024"),
        ('{"lr": "high"}', "learning_rate must be of type float"),
        ('{"label_map_filename": "labels.json"}', "does not number the checkpoint's 7 labels"),
    ],
)
def test_unfit_arguments_are_refused(text, message, tmp_path):
    (tmp_path / "labels.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "args.json").write_text(text)
    with pytest.raises(InputError, match=message):
        imported(tmp_path, model_config("labelsep"), train_args=tmp_path / "args.json")
    assert not (tmp_path / "model").exists()


def test_without_pytorch_it_says_so(tmp_path, monkeypatch):
    _, model_dir = imported(tmp_path, model_config("clipsep"))
    monkeypatch.setitem(sys.modules, "torch", None)
    for action in (
        lambda: import_torch(tmp_path / "best_model.pt", tmp_path / "other"),
        lambda: export_torch(model_dir, tmp_path / "out.pt"),
        lambda: export_official_layout(model_dir, tmp_path / "layout"),
    ):
        with pytest.raises(InputError, match="pip install torch"):
            action()
    assert not (tmp_path / "out.pt").exists()
    assert export_torch(model_dir, tmp_path / "out.safetensors", safetensors=True).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_official_layout_imports_again(system, tmp_path):
    """Its arguments, labels and sentence embeddings are read back; five levels are the least that the official have."""
    config = model_config(system, replace(FULL, num_levels=5))
    if system == "bertsep":
        rng = np.random.default_rng(0)
        torch.save({label: torch.tensor(rng.normal(size=(1, 256))) for label in "xyz"}, tmp_path / "bert.pt")
        (tmp_path / "args.json").write_text('{"bert_embeddings": "bert.pt"}')
        module, model_dir = imported(tmp_path, config, system, train_args=tmp_path / "args.json")
    else:
        module, model_dir = imported(tmp_path, config, system)
    layout = export_official_layout(model_dir, tmp_path / "layout")
    arguments = json.loads((layout / "train-args.json").read_text())
    assert (arguments["layers"], arguments["channels"], arguments["n_mix"]) == (5, 32, 2)
    assert_same_tensors(torch.load(layout / "checkpoints" / "best_model.pt", weights_only=True), module)
    again = import_torch(
        layout / "checkpoints" / "best_model.pt", tmp_path / "again", system, train_args=layout / "train-args.json"
    )
    for path in model_dir.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_no_official_class_is_has_no_official_layout(tmp_path):
    _, model_dir = imported(tmp_path, model_config("clipsep"))
    with pytest.raises(InputError, match=r"width of .* is 4, but the official code fixes it at 64"):
        export_official_layout(model_dir, tmp_path / "layout")
    opened = open_model_dir(model_dir)
    config = replace(
        opened.config,
        query=replace(opened.config.query, kind="label"),
        model=replace(opened.config.model, num_labels=2, num_noise_heads=2),
    )
    start_model_dir(model_dir, config, None, ["a", "b"])
    with pytest.raises(InputError, match="clipsep_nit and labelsep at once"):
        export_official_layout(model_dir, tmp_path / "layout")
    assert not (tmp_path / "layout").exists()
