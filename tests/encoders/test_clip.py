import hashlib
import json
import re
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from clipsep_jax.encoders.clip import load_clip, read_config, save_clip
from clipsep_jax.encoders.clip_network import CLIP_RULES, Clip, ClipConfig
from clipsep_jax.encoders.pixels import PictureConfig, preprocess
from clipsep_jax.errors import InputError
from clipsep_jax.hub import copy_folder
from clipsep_jax.tensors import export_tensors
from tests.encoders.tiny_clip import (
    IMAGE_MEAN,
    IMAGE_STD,
    make_tiny_clip_folder,
    make_tokenizer,
    random_clip,
    tiny_config,
)

TEXTS = ["the sound of rain", "", "a", "thunder and wind, and the ringing of many bells over the hills!"]
PICTURES = PictureConfig(IMAGE_MEAN, IMAGE_STD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny_clip_folder(tmp_path_factory.mktemp("clip"), image_size=32, patch_size=8)


@pytest.fixture(scope="module")
def encoder(folder):
    return load_clip(str(folder))


@pytest.fixture
def spoilt(folder, tmp_path):
    copy_folder(folder, tmp_path / "clip")
    return tmp_path / "clip"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def noise(*shape):
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


def shift_all_parameters(model):
    """Make biases and scales count too: they start at zero and one."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def torch_folder(path, config):
    """A folder as the `transformers` library itself writes it, with random weights, and its model."""
    model = CLIPModel(config).eval()
    shift_all_parameters(model)
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    size = config.vision_config.image_size
    sides = {"height": size, "width": size}
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=sides).save_pretrained(path)
    return model


def torch_pixels(frames, size):
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return processor(list(frames), return_tensors="pt")["pixel_values"]


def torch_images(model, frames):
    with torch.inference_mode():
        pixels = torch_pixels(frames, model.config.vision_config.image_size)
        return model.get_image_features(pixels).pooler_output.numpy()


def torch_texts(model, tokenizer, texts):
    with torch.inference_mode():
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        return model.get_text_features(**tokens).pooler_output.numpy()


def assert_same_features(found, expected):
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", ["old", "true"])
def test_both_towers_agree_with_transformers(tmp_path, activation, end):
    tokenizer = make_tokenizer()
    layers = {"num_hidden_layers": 2, "intermediate_size": 56, "hidden_act": activation, "layer_norm_eps": 1e-3}
    tokens = {"vocab_size": len(tokenizer), "eos_token_id": 2 if end == "old" else tokenizer.eos_token_id}
    text = layers | tokens | {"hidden_size": 32, "num_attention_heads": 2}
    vision = layers | {"hidden_size": 48, "num_attention_heads": 4, "image_size": 48, "patch_size": 16}
    model = torch_folder(tmp_path, CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    encoder = load_clip(str(tmp_path))
    assert (encoder.query_size, encoder.image_size) == (24, 48)
    frames = noise(3, 48, 48, 3)
    assert_same_features(encoder.embed_frames(frames, batch_size=2), torch_images(model, frames))
    assert_same_features(encoder.embed_text(TEXTS, batch_size=3), torch_texts(model, tokenizer, TEXTS))


@pytest.mark.soak
def test_both_towers_agree_at_the_size_of_vit_b_32(tmp_path):
    config = CLIPConfig(text_config={"vocab_size": 521, "eos_token_id": 2})
    model = torch_folder(tmp_path, config)
    encoder = load_clip(str(tmp_path))
    assert encoder.config.vision == ClipConfig().vision
    frames = noise(2, 224, 224, 3)
    assert_same_features(encoder.embed_frames(frames, batch_size=2), torch_images(model, frames))
    assert_same_features(encoder.embed_text(TEXTS, batch_size=4), torch_texts(model, make_tokenizer(), TEXTS))


@pytest.mark.slow
@pytest.mark.parametrize("eos_token_id", [2, 5])
def test_a_text_is_read_at_its_first_end_token_or_its_largest_id(tmp_path, eos_token_id):
    make_tiny_clip_folder(tmp_path, image_size=32, patch_size=16, eos_token_id=eos_token_id)
    ids = np.array([[1, 500, 300, 5, 9, 5], [5, 2, 3, 510, 4, 510]], np.int32)
    encoder = load_clip(str(tmp_path))
    with torch.inference_mode():
        model = CLIPModel.from_pretrained(tmp_path).eval()
        expected = model.get_text_features(torch.from_numpy(ids).long()).pooler_output.numpy()
    assert_same_features(jax.jit(encoder.encode_texts)(encoder.state, ids), expected)


def test_what_follows_the_end_token_does_not_count(encoder):
    ids, _ = encoder.tokenize(["the rain"])
    other = ids.copy()
    end = list(ids[0]).index(encoder.tokenizer.eos_token_id)
    other[0, end + 1 :] = 5
    assert not np.array_equal(ids, other)
    found = jax.jit(encoder.encode_texts)(encoder.state, np.concatenate([ids, other]))
    np.testing.assert_array_equal(found[0], found[1])


def test_pictures_of_the_right_size_are_normalised_as_transformers_does():
    frames = noise(2, 32, 32, 3)
    found = jax.jit(preprocess, static_argnums=(1, 2))(frames, 32, PICTURES)
    expected = torch_pixels(frames, 32).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(240, 320), (321, 201), (64, 64), (20, 33), (32, 57)])
def test_other_pictures_are_resized_and_cropped_as_transformers_does(shape):
    """Pillow weighs in fixed point, so a value halfway between two levels of 255 may fall to the other."""
    frames = noise(2, *shape, 3)
    found = jax.jit(preprocess, static_argnums=(1, 2))(frames, 32, PICTURES)
    expected = torch_pixels(frames, 32).permute(0, 2, 3, 1).numpy()
    levels = np.abs(np.asarray(found) - expected) * np.array(IMAGE_STD) * 255
    assert levels.max() < 1.01
    assert (levels > 0.01).mean() < 0.005


def test_squashed_pictures_keep_their_borders():
    frames = np.zeros((1, 64, 256, 3), np.uint8)
    frames[:, :, :16] = 255
    found = preprocess(jnp.asarray(frames), 32, PictureConfig((0.0,) * 3, (1.0,) * 3, squash=True))
    assert found.shape == (1, 32, 32, 3)
    np.testing.assert_allclose(found[0, :, 0], 1, atol=0.05)
    np.testing.assert_allclose(found[0, :, 4:], 0, atol=1e-6)


def test_frames_are_encoded_inside_a_jitted_function_without_constants(encoder):
    frames = noise(2, 40, 56, 3)
    step = jax.jit(encoder.encode_images)
    np.testing.assert_allclose(step(encoder.state, frames), encoder.embed_frames(frames), rtol=0, atol=1e-5)
    constants = jax.make_jaxpr(step)(encoder.state, frames).consts
    assert sum(np.size(constant) for constant in constants) < 100


def test_batches_change_nothing_and_compile_once(encoder):
    frames = noise(5, 32, 32, 3)
    whole = encoder.embed_frames(frames, batch_size=5)
    jax.clear_caches()
    for number in (1, 3, 4, 5):
        found = encoder.embed_frames(frames[:number], batch_size=2)
        np.testing.assert_allclose(found, whole[:number], rtol=0, atol=1e-5)
    assert encoder._encode_images._cache_size() == 1
    assert encoder.embed_frames(frames[:0]).shape == (0, 32)
    assert encoder.embed_text([]).shape == (0, 32)


def test_a_long_text_is_cut_with_a_warning(encoder):
    words = "rain " * 80
    ids, cut = encoder.tokenize(["rain", words])
    assert cut == [False, True]
    assert (ids.shape, ids.dtype) == ((2, 77), np.int32)
    expected = encoder.tokenizer([words], truncation=True, max_length=77)["input_ids"]
    np.testing.assert_array_equal(ids[1:], expected)
    with pytest.warns(UserWarning, match='the query "rain rain .*…" was cut at 77 tokens') as caught:
        encoder.embed_text(["rain", words])
    assert len(caught) == 1


def test_a_text_that_just_fits_is_not_cut(encoder):
    text = " ".join("a" * 75)
    ids, cut = encoder.tokenize([text])
    assert cut == [False]
    assert ids[0, -1] == encoder.tokenizer.eos_token_id
    assert ids[0, -2] != encoder.tokenizer.eos_token_id
    assert encoder.tokenize([text + " a"])[1] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.embed_text([text])


@pytest.mark.slow
def test_a_saved_folder_is_read_back_bit_for_bit_by_us_and_by_transformers(tmp_path):
    config = tiny_config(image_size=32, patch_size=16, hidden_act="gelu")
    model = random_clip(config, seed=5)
    save_clip(tmp_path, model, config, make_tokenizer(), IMAGE_MEAN, IMAGE_STD)
    encoder = load_clip(str(tmp_path))
    assert encoder.config == config
    assert encoder.pictures == PICTURES
    assert (encoder.name, encoder.folder) == (str(tmp_path), tmp_path)
    assert encoder.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    jax.tree.map(np.testing.assert_array_equal, encoder.state, nnx.state(model))

    theirs, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    frames = noise(2, 32, 32, 3)
    assert_same_features(encoder.embed_frames(frames), torch_images(theirs.eval(), frames))
    assert_same_features(encoder.embed_text(TEXTS), torch_texts(theirs, encoder.tokenizer, TEXTS))


@pytest.mark.slow
def test_the_gradient_reaches_every_tensor_of_a_new_network():
    config = tiny_config(image_size=32, patch_size=16)
    model = nnx.jit(lambda: Clip(config, nnx.Rngs(0)))()
    pixels = preprocess(jnp.asarray(noise(2, 32, 32, 3)), 32, PICTURES)
    ids = jnp.asarray(make_tokenizer()(["rain", "wind"], padding="max_length", max_length=77)["input_ids"])
    graphdef, state = nnx.split(model)

    def loss(state):
        clip = nnx.merge(graphdef, state)
        scores = jnp.exp(clip.logit_scale[...]) * clip.image_features(pixels) @ clip.text_features(ids).T
        return jnp.mean(jnp.square(scores))

    nnx.update(model, jax.jit(jax.grad(loss))(state))
    gradients = export_tensors(model, CLIP_RULES)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    idle = [name for name, gradient in gradients.items() if np.abs(gradient).max() == 0]
    assert [name for name in idle if "k_proj.bias" not in name] == []  # a softmax forgets the keys' bias


def test_the_copy_of_a_folder_is_a_whole_model(encoder, spoilt):
    copy = load_clip(str(spoilt))
    assert copy.sha256 == encoder.sha256
    np.testing.assert_array_equal(copy.embed_text(TEXTS), encoder.embed_text(TEXTS))


def test_the_first_published_form_of_a_folder_is_read(encoder, spoilt):
    """Half-precision weights with position buffers, separate vocabulary files, sizes as plain numbers."""
    path = spoilt / "model.safetensors"
    tensors = {name: tensor.astype(np.float16) for name, tensor in load_file(path).items()}
    buffers = {f"{tower}_model.embeddings.position_ids": np.arange(3)[None] for tower in ("text", "vision")}
    save_file(tensors | buffers, path)
    tokens = json.loads((spoilt / "tokenizer.json").read_text())["model"]
    (spoilt / "tokenizer.json").unlink()
    (spoilt / "vocab.json").write_text(json.dumps(encoder.tokenizer.get_vocab()))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in tokens["merges"])]
    (spoilt / "merges.txt").write_text("\n".join(merges))
    change(spoilt / "preprocessor_config.json", size=32, crop_size=32)
    old = load_clip(str(spoilt))
    np.testing.assert_array_equal(old.tokenize(TEXTS)[0], encoder.tokenize(TEXTS)[0])
    np.testing.assert_allclose(old.embed_text(TEXTS), encoder.embed_text(TEXTS), atol=0.05)


def test_defaults_may_be_left_out_of_the_config(tmp_path):
    large = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14}
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": large, "projection_dim": 768}))
    config = read_config(tmp_path)
    assert config.text == ClipConfig().text
    assert (config.vision.hidden_size, config.vision.patch_size, config.vision.image_size) == (1024, 14, 224)
    assert (config.vision.intermediate_size, config.projection_dim) == (3072, 768)
    theirs = CLIPConfig.from_pretrained(tmp_path)
    for ours, tower in ((config.text, theirs.text_config), (config.vision, theirs.vision_config)):
        assert vars(ours).items() <= tower.to_dict().items()


def test_the_older_tables_of_the_config_rule(tmp_path):
    values = {"text_config": {"hidden_size": 64, "eos_token_id": 2}, "text_config_dict": {"hidden_size": 128}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    theirs = CLIPConfig.from_pretrained(tmp_path).text_config
    ours = read_config(tmp_path).text
    assert (ours.hidden_size, ours.eos_token_id) == (128, 49407) == (theirs.hidden_size, theirs.eos_token_id)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"model_type": "siglip"}, "siglip"),
        ({"projection_dim": 0}, "projection_dim = 0"),
        ({"text_config": {"num_hidden_layers": 10_000_000}}, "num_hidden_layers = 10000000; .* at most 128"),
        ({"text_config": {"hidden_act": "relu"}}, "hidden_act 'relu'"),
        ({"text_config": {"hidden_act": ["gelu"]}}, "hidden_act"),
        ({"text_config": {"hidden_size": "512"}}, "hidden_size is '512', not a whole number"),
        ({"text_config": {"eos_token_id": [1, 2]}}, "eos_token_id"),
        ({"text_config": {"num_attention_heads": 7}}, "hidden_size in text_config"),
        ({"vision_config": {"patch_size": 32.0}}, "patch_size"),
        ({"vision_config": {"layer_norm_eps": float("nan")}}, "layer_norm_eps"),
        ({"vision_config": 3}, "vision_config"),
    ],
)
def test_a_config_that_we_cannot_run_is_refused(tmp_path, values, fault):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}.*{fault}"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"size": 64}, "size = 64"),
        ({"crop_size": {"height": 32, "width": 30}}, "crop_size"),
        ({"resample": 2}, "resample = 2"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_center_crop": False}, "do_center_crop"),
        ({"rescale_factor": 1}, "rescale_factor"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std"),
        ({"image_mean": [0.5, "0.5", 0.5]}, "image_mean"),
        ({"image_mean": 0.5}, "image_mean"),
        ({"image_mean": [10**400, 0, 0]}, "image_mean"),
    ],
)
def test_picture_settings_that_are_not_clip_s_are_refused(spoilt, values, fault):
    path = spoilt / "preprocessor_config.json"
    change(path, **values)
    with pytest.raises(InputError, match=rf"{re.escape(str(path))}.*{fault}"):
        load_clip(str(spoilt))


def test_free_sides_mean_squashing(spoilt):
    change(spoilt / "preprocessor_config.json", size={"height": 32, "width": 32}, do_center_crop=False)
    assert load_clip(str(spoilt)).pictures.squash


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("spoil", ["lost", "cut", "list"])
def test_a_lost_or_damaged_file_is_named(spoilt, name, spoil):
    path = spoilt / name
    whole = path.read_bytes()
    path.unlink()
    if spoil != "lost":
        path.write_bytes(whole[:-9] if spoil == "cut" else b"[1, 2]")
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))} is (missing|damaged)"):
        load_clip(str(spoilt))


def test_weights_of_another_network_are_refused(spoilt):
    values = json.loads((spoilt / "config.json").read_text())
    change(spoilt / "config.json", vision_config=values["vision_config"] | {"num_hidden_layers": 3, "patch_size": 16})
    with pytest.raises(
        InputError, match=r"missing: vision_model\.encoder\.layers\.2\..*another shape: .*position_embedding"
    ):
        load_clip(str(spoilt))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "other", "damaged", "end"])
def test_a_tokenizer_of_another_model_is_refused(spoilt, fault):
    path = spoilt / "tokenizer.json"
    if fault == "none":
        path.unlink()
        (spoilt / "tokenizer_config.json").unlink()
    elif fault == "other":
        tokenizer = make_tokenizer()
        tokenizer.add_tokens(["sound"])
        tokenizer.save_pretrained(spoilt)
    elif fault == "damaged":
        path.write_text(path.read_text()[:-50])
    else:
        text = json.loads((spoilt / "config.json").read_text())["text_config"]
        change(spoilt / "config.json", text_config=text | {"eos_token_id": 3})
    encoder = load_clip(str(spoilt))
    with pytest.raises(InputError, match=rf"the tokenizer of {re.escape(str(spoilt))}") as caught:
        encoder.embed_text(["rain"])
    assert "\n" not in str(caught.value)


def test_many_more_layers_than_there_are_weights_are_refused_at_once(spoilt):
    values = json.loads((spoilt / "config.json").read_text())
    change(spoilt / "config.json", text_config=values["text_config"] | {"num_hidden_layers": 128})
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"model\.safetensors does not fit the network; it has 2 text layers, not 128"):
        load_clip(str(spoilt))
    assert time.monotonic() - begin < 5


def test_a_text_that_is_no_unicode_is_embedded(spoilt):
    encoder = load_clip(str(spoilt))
    np.testing.assert_array_equal(encoder.embed_text(["\udce9"]), encoder.embed_text(["?"]))


def test_a_tokenizer_without_padding_pads_with_its_end(spoilt):
    wanted = load_clip(str(spoilt)).embed_text(["rain"])
    values = json.loads((spoilt / "tokenizer_config.json").read_text())
    change(spoilt / "tokenizer_config.json", pad_token=None)
    encoder = load_clip(str(spoilt))
    assert encoder.tokenizer.pad_token_id == encoder.tokenizer.eos_token_id, values
    np.testing.assert_allclose(encoder.embed_text(["rain"]), wanted, atol=1e-6)


@pytest.mark.slow
def test_saving_over_another_model_leaves_nothing_else_behind(folder, spoilt):
    names = sorted(path.name for path in folder.iterdir())
    make_tiny_clip_folder(spoilt, seed=1, image_size=32)
    assert sorted(path.name for path in spoilt.iterdir()) == names
    assert load_clip(str(spoilt)).sha256 != load_clip(str(folder)).sha256
