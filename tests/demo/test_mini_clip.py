import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipsep_jax.demo.toy import mini_clip
from clipsep_jax.demo.toy.mini_clip import TEMPLATES, build_tokenizer, contrastive_loss, train_mini_clip
from clipsep_jax.demo.toy.pictures import draw
from clipsep_jax.demo.toy.records import train_toy_clip
from clipsep_jax.demo.toy.sounds import KINDS
from clipsep_jax.encoders.clip import load_clip


def test_tokenizer_knows_every_word_of_the_prompts():
    tokenizer = build_tokenizer(KINDS)
    for kind in KINDS:
        assert tokenizer.tokenize(f"a photo of {kind}") == ["a</w>", "photo</w>", "of</w>", f"{kind}</w>"]
    assert tokenizer("dog")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer("dog")["input_ids"][-1] == tokenizer.eos_token_id == len(tokenizer) - 1


@pytest.mark.parametrize("text", ["zebra", "Ünïcödé 音 №5!", "", "a photo of {}"])
def test_tokenizer_takes_any_text_and_gives_it_back(text):
    tokenizer = build_tokenizer(KINDS)
    ids = tokenizer(text)["input_ids"][1:-1]
    assert tokenizer.eos_token_id not in ids
    # The decoder puts a blank after every run of one class of characters.
    assert tokenizer.decode(ids).replace(" ", "") == text.lower().replace(" ", "")


def test_tokenizer_takes_labels_of_any_script_and_is_the_same_every_time():
    names = ("playing the Guitar, loud", "aaa aaaa aaab", "犬の声", "dog's bark")
    first, second = build_tokenizer(names), build_tokenizer(names)
    assert first.get_vocab() == second.get_vocab()
    assert sorted(first.get_vocab().values()) == list(range(len(first)))


def test_loss_is_lowest_where_each_query_meets_the_text_of_its_kind():
    texts = 4 * jnp.eye(3)
    kinds = jnp.array([0, 1, 2, 2])
    met = contrastive_loss(texts[kinds], texts, kinds)
    assert met == pytest.approx(np.log(1 + 2 * np.exp(-10)), rel=1e-2)
    assert contrastive_loss(0.5 * texts[kinds], texts, kinds) > met
    assert contrastive_loss(texts[(kinds + 1) % 3], texts, kinds) > met + 5


@pytest.mark.slow
def test_pull_does_not_move_the_texts():
    texts, kinds = jnp.eye(3), jnp.array([0, 1, 2])
    gradient = jax.grad(contrastive_loss, argnums=1)(9 * texts, texts, kinds)
    # What is left is the cross-entropy's gradient, which is orthogonal to each text.
    np.testing.assert_allclose(jnp.diag(gradient), 0, atol=1e-6)


@pytest.mark.slow
def test_saved_network_embeds_as_the_one_for_shrunken_pictures(tmp_path):
    picture = draw("car", np.random.default_rng(0), "test")
    folder = train_mini_clip(tmp_path, [], np.array([], int), KINDS, 0, seed=5)
    model = mini_clip._start(load_clip(str(folder)).config, 5)
    shrunken = picture.reshape(56, 4, 56, 4, 3).mean(axis=(1, 3)) / 255
    expected = model.image_features(jnp.asarray((shrunken[None] - 0.5) / 0.25, jnp.float32))
    np.testing.assert_allclose(load_clip(str(folder)).embed_frames(picture[None]), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.soak
def test_a_few_steps_find_the_kinds_of_held_out_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("clipsep_jax.demo.toy.records.PICTURES_PER_KIND", 100)
    encoder = load_clip(str(train_toy_clip(tmp_path / "clip", 250)))
    rng = np.random.default_rng(99)
    kinds = np.repeat(np.arange(len(KINDS)), 20)
    images = encoder.embed_frames(np.stack([draw(KINDS[kind], rng, "test") for kind in kinds]))
    for template in TEMPLATES[:2]:
        texts = encoder.embed_text([template.format(kind) for kind in KINDS])
        distances = np.linalg.norm(images[:, None] - texts, axis=-1)
        assert (distances.argmin(axis=1) == kinds).mean() > 0.6  # chance: 0.1
        ratio = np.linalg.norm(images, axis=1).mean() / np.linalg.norm(texts, axis=1).mean()
        assert 0.7 < ratio < 1.3


@pytest.mark.slow
def test_hugging_face_loads_the_folder_and_agrees(tmp_path):
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    folder = train_mini_clip(tmp_path, [], np.array([], int), KINDS, 0)
    model, tokenizer = CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    ours = load_clip(str(folder))
    texts = ["a photo of dog", "something else"]
    picture = draw("dog", np.random.default_rng(0), "train")
    pixels = torch.tensor((picture / 255 - 0.5) / 0.25, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        text = model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
        image = model.get_image_features(pixel_values=pixels).pooler_output
    np.testing.assert_allclose(ours.embed_text(texts), text.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.embed_frames(picture[None]), image.numpy(), atol=1e-4)
