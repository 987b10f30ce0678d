import numpy as np
import pytest
from safetensors.numpy import save_file

from clipsep_jax.encoders.clip import ClipEncoder
from clipsep_jax.encoders.registry import KINDS, copy_encoder, load_encoder, moved_name, split_name
from clipsep_jax.encoders.resnet import PICTURES, ResnetEncoder
from clipsep_jax.errors import InputError
from tests.encoders.random_resnet import random_tensors
from tests.encoders.tiny_clip import make_tiny_clip_folder


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    return make_tiny_clip_folder(tmp_path_factory.mktemp("clip") / "tiny", image_size=32, patch_size=16)


@pytest.fixture(scope="module")
def resnet_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "resnet18.safetensors"
    save_file(random_tensors(), path)
    return path


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("openai/clip-vit-base-patch32", ("clip", "openai/clip-vit-base-patch32")),
        ("clip:a/b", ("clip", "a/b")),
        ("resnet18:/x/y.pth", ("resnet18", "/x/y.pth")),
        ("resnet18-clip:a:b", ("resnet18-clip", "a:b")),
        ("resnet18", ("clip", "resnet18")),
        ("a:b", ("clip", "a:b")),
    ],
)
def test_a_name_is_a_kind_and_a_place(name, parts):
    assert split_name(name) == parts
    assert parts[0] in KINDS


@pytest.mark.slow
def test_a_clip_needs_no_kind(clip_path, monkeypatch):
    bare, named = load_encoder(str(clip_path)), load_encoder(f"clip:{clip_path}")
    assert isinstance(bare, ClipEncoder)
    assert (bare.name, bare.sha256) == (named.name, named.sha256)
    assert load_encoder(named.name).sha256 == bare.sha256


@pytest.mark.slow
def test_both_kinds_of_resnet(resnet_path, monkeypatch):
    monkeypatch.chdir(resnet_path.parent)
    for kind, pictures in (("resnet18", "imagenet"), ("resnet18-clip", "clip")):
        encoder = load_encoder(f"{kind}:resnet18.safetensors")
        assert isinstance(encoder, ResnetEncoder)
        assert encoder.name == f"{kind}:{resnet_path.resolve()}"
        assert encoder.pictures == PICTURES[pictures]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_found_and_is_the_same_encoder(kind, clip_path, resnet_path, tmp_path):
    name = f"{kind}:{clip_path if kind == 'clip' else resnet_path}"
    copy_encoder(name, tmp_path / "copy")
    encoder, copy = load_encoder(name), load_encoder(moved_name(name, tmp_path / "copy"))
    assert copy.folder == tmp_path / "copy"
    assert copy.sha256 == encoder.sha256
    assert split_name(copy.name)[1] == str(tmp_path / "copy")


def test_an_encoder_of_the_hub_is_not_copied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", "resnet18:owner/name"):
        copy_encoder(name, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_encoder_is_an_input_error(clip_path, tmp_path):
    with pytest.raises(InputError, match="'resnet50:x' names no known kind of encoder; the kinds are clip:, resnet18:"):
        load_encoder("resnet50:x")
    with pytest.raises(InputError, match="does not fit the network"):
        load_encoder(f"resnet18:{clip_path}")
    with pytest.raises(InputError, match="neither a folder nor a Hugging Face id"):
        load_encoder(str(tmp_path / "none"))


@pytest.mark.slow
def test_a_folder_may_have_a_colon_in_its_name(tmp_path):
    folder = make_tiny_clip_folder(tmp_path / "a:b", image_size=32, patch_size=16)
    frames = np.zeros((1, 32, 32, 3), np.uint8)
    assert load_encoder(str(folder)).embed_frames(frames, 1).shape == (1, 32)
