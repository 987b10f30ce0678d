import pickle
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from safetensors.numpy import save_file
from transformers import ResNetConfig, ResNetForImageClassification

from clipsep_jax.encoders.base import Encoder, NoTextError
from clipsep_jax.encoders.resnet import HUGGING_FACE_RULES, DilatedResnet18, load_resnet
from clipsep_jax.errors import InputError
from clipsep_jax.tensors import load_tensors
from tests.encoders.random_resnet import hugging_face_names, random_tensors

NORMALISATIONS = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "resnet18.safetensors"
    save_file(random_tensors(), path)
    return path


@pytest.fixture(scope="module")
def encoder(path):
    return load_resnet(str(path))


def noise(*shape):
    """Pictures of large and small patches of colour, so that distances within them count."""
    generator = np.random.default_rng(7)
    patches = generator.integers(0, 256, (shape[0], *(-(-side // 16) for side in shape[1:3]), 3))
    pictures = patches.repeat(16, 1).repeat(16, 2)[:, : shape[1], : shape[2]] + generator.integers(-40, 40, shape)
    return pictures.clip(0, 255).astype(np.uint8)


def torch_features(tensors, pixels, dilated=True):
    """ResNet-18 before its pooling, written down layer by layer."""
    weights = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}

    def unit(x, conv, norm, stride, padding, dilation=1):
        x = F.conv2d(x, weights[f"{conv}.weight"], None, stride, padding, dilation)
        statistics = (weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *statistics, training=False, eps=1e-5)

    def block(x, name, stride, first, second):
        y = F.relu(unit(x, f"{name}.conv1", f"{name}.bn1", stride, first, first))
        y = unit(y, f"{name}.conv2", f"{name}.bn2", 1, second, second)
        if f"{name}.downsample.0.weight" in weights:
            x = unit(x, f"{name}.downsample.0", f"{name}.downsample.1", stride, 0)
        return F.relu(x + y)

    x = F.max_pool2d(F.relu(unit(pixels, "conv1", "bn1", 2, 3)), 3, 2, 1)
    for stage in (1, 2, 3):
        x = block(x, f"layer{stage}.0", 1 if stage == 1 else 2, 1, 1)
        x = block(x, f"layer{stage}.1", 1, 1, 1)
    x = block(x, "layer4.0", 1 if dilated else 2, 1, 2 if dilated else 1)
    return block(x, "layer4.1", 1, 2 if dilated else 1, 2 if dilated else 1)


def torch_pixels(frames, pictures="imagenet"):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALISATIONS[pictures])
    return (torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - mean) / std


def torch_embeddings(tensors, frames, pictures="imagenet"):
    return torch_features(tensors, torch_pixels(frames, pictures)).amax((2, 3)).numpy()


def assert_same_features(found, expected):
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("pictures", ["imagenet", "clip"])
def test_embeddings_agree_with_torch(path, pictures):
    frames = noise(1, 224, 224, 3)
    encoder = load_resnet(str(path), pictures)
    assert isinstance(encoder, Encoder)
    expected = torch_embeddings(random_tensors(), frames, pictures)
    found = encoder.embed_frames(frames, batch_size=1)
    assert found.shape == (1, encoder.query_size) == (1, 512)
    assert_same_features(found, expected)


@pytest.mark.parametrize("shape", [(64, 80), pytest.param((50, 37), marks=pytest.mark.slow)])
def test_features_agree_with_torch_at_every_place(encoder, shape):
    pixels = torch_pixels(noise(2, *shape, 3))
    expected = torch_features(random_tensors(), pixels).permute(0, 2, 3, 1).numpy()
    run = jax.jit(lambda state, x: nnx.merge(encoder.graphdef, state)(x))
    assert_same_features(np.asarray(run(encoder.state, pixels.permute(0, 2, 3, 1).numpy())), expected)


def test_the_stride_is_sixteen():
    shape = nnx.eval_shape(lambda: DilatedResnet18(nnx.Rngs(0))(jnp.zeros((1, 224, 224, 3)))).shape
    assert shape == (1, 14, 14, 512)


@pytest.mark.slow
def test_a_folder_of_transformers_agrees_with_its_network(tmp_path, encoder):
    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=1000
    )
    model = ResNetForImageClassification(config).eval()
    tensors = {name: torch.from_numpy(tensor) for name, tensor in hugging_face_names(random_tensors()).items()}
    model.load_state_dict(tensors)
    model.save_pretrained(tmp_path)
    theirs = load_resnet(str(tmp_path))
    assert theirs.folder == tmp_path
    assert theirs.sha256 == encoder.sha256

    last = model.resnet.encoder.stages[3].layers
    last[0].layer[0].convolution.stride = last[0].shortcut.convolution.stride = (1, 1)
    for conv in (last[0].layer[1], last[1].layer[0], last[1].layer[1]):
        conv.convolution.dilation = conv.convolution.padding = (2, 2)
    frames = noise(1, 224, 224, 3)
    with torch.inference_mode():
        features = model.resnet(torch_pixels(frames)).last_hidden_state
    assert_same_features(theirs.embed_frames(frames, batch_size=1), features.amax((2, 3)).numpy())


def test_the_bare_network_of_transformers_is_read_too(tmp_path, encoder):
    named = hugging_face_names(random_tensors()).items()
    bare = {name.removeprefix("resnet."): tensor for name, tensor in named if name.startswith("resnet.")}
    save_file(bare, tmp_path / "model.safetensors")
    assert load_resnet(str(tmp_path)).sha256 == encoder.sha256


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_state_dict_of_torch_is_read(tmp_path, encoder, suffix):
    state = {name: torch.from_numpy(tensor) for name, tensor in random_tensors().items()}
    state["conv1.weight"] = torch.nn.Parameter(state["conv1.weight"])
    path = tmp_path / f"resnet18{suffix}"
    torch.save(state, path)
    jax.tree.map(np.testing.assert_array_equal, load_resnet(str(path)).state, encoder.state)


@pytest.mark.slow
def test_the_hash_is_that_of_weights_and_normalisation(path, tmp_path, encoder):
    assert load_resnet(str(path)).sha256 == encoder.sha256
    assert load_resnet(str(path), "clip").sha256 != encoder.sha256
    tensors = random_tensors()
    tensors["layer4.1.bn2.running_mean"] = tensors["layer4.1.bn2.running_mean"] + np.float32(0.1)
    save_file(tensors, tmp_path / "other.safetensors")
    assert load_resnet(str(tmp_path / "other.safetensors")).sha256 != encoder.sha256


def test_a_saved_encoder_is_read_back_bit_for_bit(tmp_path, encoder):
    encoder.save(tmp_path / "copy")
    copy = load_resnet(str(tmp_path / "copy"))
    assert copy.sha256 == encoder.sha256
    jax.tree.map(np.testing.assert_array_equal, copy.state, encoder.state)


def test_batches_change_nothing_and_the_weights_are_no_constants(encoder):
    frames = noise(3, 224, 224, 3)
    step = jax.jit(encoder.encode_images)
    np.testing.assert_allclose(step(encoder.state, frames), encoder.embed_frames(frames, 2), rtol=0, atol=1e-4)
    constants = jax.make_jaxpr(step)(encoder.state, frames).consts
    assert sum(np.size(constant) for constant in constants) < 100
    assert encoder.embed_frames(frames[:0]).shape == (0, 512)


def test_pictures_of_other_sizes_are_fitted(encoder):
    frames = noise(2, 224, 300, 3)
    found = encoder.embed_frames(frames, 2)
    np.testing.assert_allclose(found, encoder.embed_frames(frames[:, :, 38:262], 2), rtol=0, atol=1e-4)


def test_texts_are_refused(encoder):
    with pytest.raises(NoTextError, match=r"resnet18\.safetensors.*takes pictures and no text"):
        encoder.embed_text(["rain"])


def test_tensors_that_do_not_fit_are_named_together(tmp_path):
    tensors = random_tensors()
    del tensors["layer2.0.downsample.1.running_var"]
    tensors |= {"layer3.0.conv1.weight": np.zeros((256, 128, 1, 1), np.float32), "layer1.2.conv1.weight": np.zeros(1)}
    path = tmp_path / "resnet.safetensors"
    save_file(tensors, path)
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        load_resnet(str(path))
    for fault in ("missing: layer2.0.downsample.1.running_var", "layer3.0.conv1.weight (256, 128, 1, 1)", "layer1.2"):
        assert fault in str(caught.value)


def test_every_tensor_of_hugging_face_has_a_place_or_is_known_to_have_none():
    model = nnx.eval_shape(lambda: DilatedResnet18(nnx.Rngs(0)))
    tensors = {name.removeprefix("resnet."): x for name, x in hugging_face_names(random_tensors()).items()}
    load_tensors(model, tensors, HUGGING_FACE_RULES, "memory")
    with pytest.raises(InputError, match=r"unknown: encoder\.stages\.0\.layers\.0\.extra"):
        load_tensors(model, tensors | {"encoder.stages.0.layers.0.extra": np.zeros(1)}, HUGGING_FACE_RULES, "memory")


class Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a pickle ran')",)


def test_files_that_are_no_state_dict_are_refused_and_run_nothing(tmp_path):
    path = tmp_path / "resnet18.pth"
    torch.save({"conv1.weight": torch.zeros(2), "args": [1, 2]}, path)
    with pytest.raises(InputError, match="holds more than tensors"):
        load_resnet(str(path))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=rf"{re.escape(str(path))} is damaged"):
        load_resnet(str(path))
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(InputError, match="is damaged or not a plain state dict"):
        load_resnet(str(path))


def test_a_missing_file_and_a_missing_torch_are_input_errors(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no file .*none\.pth"):
        load_resnet(str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match=r"model\.safetensors is missing"):
        load_resnet(str(tmp_path))
    path = tmp_path / "resnet18.pth"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install torch"):
        load_resnet(str(path))
