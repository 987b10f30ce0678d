"""Centred queries: measured on the training split, and applied wherever a query enters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import clipsep_jax
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.mixtures import MixtureReader
from clipsep_jax.evaluation.protocols import drawn_protocol
from clipsep_jax.model_dir import CENTRE_FILE, open_model_dir
from clipsep_jax.official.checkpoint import export_official_layout, export_torch
from clipsep_jax.queries.centre import COMMON_SOUNDS, Centre, measure_centre
from clipsep_jax.queries.kinds import IMAGE, KINDS
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.training.loop import train
from clipsep_jax.training.setup import Run
from tests.small import QUERY_SIZE, make_records, small_config
from tests.torch_twin import TorchCLIPSep


def centred_config(records, **query):
    config = small_config(records)
    config = replace(config, model=replace(config.model, num_levels=2))
    return replace(config, query=replace(config.query, centre=True, **query))


@pytest.fixture(scope="module")
def centred(made_once, clip_records):
    """The workdir of a model of centred queries."""
    return made_once("centred", lambda folder: train(centred_config(clip_records), folder))


def no_texts(texts):
    raise AssertionError("the records have labels")


def test_the_means_are_those_of_training_pictures_and_labels(clip_records):
    records = RecordSet(clip_records)
    centre = measure_centre(records, "train", no_texts)
    pictures = [clip.frame_embeddings.mean(axis=0) for clip in records.split("train")]
    np.testing.assert_allclose(centre.image, np.mean(pictures, axis=0), rtol=1e-4, atol=1e-6)
    table = EmbeddingTable.load(records.folder / LABEL_EMBEDDINGS_NAME)
    np.testing.assert_allclose(centre.text, table.vectors.mean(axis=0), rtol=1e-5)


def test_without_labels_common_sounds_are_averaged(tmp_path):
    records = RecordSet(make_records(tmp_path))
    (tmp_path / LABEL_EMBEDDINGS_NAME).unlink()
    asked = []

    def embed(texts):
        asked.extend(texts)
        return np.tile(np.arange(QUERY_SIZE, dtype=np.float32), (len(texts), 1))

    np.testing.assert_array_equal(measure_centre(records, "train", embed).text, np.arange(QUERY_SIZE))
    assert len(asked) == len(COMMON_SOUNDS)
    assert asked[0] == "a photo of dog"


@pytest.mark.parametrize("kind", ["image", "hybrid"])
@pytest.mark.parametrize("combine", ["mean", "mix_up"])
def test_what_training_and_validation_read_is_centred(clip_records, kind, combine):
    run = Run(centred_config(clip_records, kind=kind, combine=combine))
    plain = Run(replace(run.config, query=replace(run.config.query, centre=False)))
    assert run.centre is not None
    for step, mean in ((0, run.centre.image), (1, run.centre.text if kind == "hybrid" else run.centre.image)):
        found, before = run.train_batches[step].query, plain.train_batches[step].query
        if combine == "mean":
            np.testing.assert_allclose(found, before - mean, atol=1e-6)
        else:
            np.testing.assert_allclose(found[:, :, :3], before[:, :, :3] - run.centre.image, atol=1e-6)
            assert found.shape[2] == (4 if kind == "hybrid" else 3)
            np.testing.assert_allclose(found[:, :, 3:], before[:, :, 3:] - run.centre.text, atol=1e-6)
    for name, mean in (("image", run.centre.image), ("text", run.centre.text)):
        found, before = (r.validation_batches[name][0].query for r in (run, plain))
        np.testing.assert_allclose(found, before - mean, atol=1e-6)


@pytest.mark.slow
def test_what_users_ask_and_what_is_scored_is_centred(centred, clip_records):
    separator = clipsep_jax.load(centred)
    centre, encoder = separator.centre, separator.encoder
    assert centre is not None
    picture = Image.new("RGB", (224, 224), (200, 30, 90))
    text, image, raw = separator.embed(["a photo of hum", picture, np.ones(QUERY_SIZE, np.float32)])
    np.testing.assert_allclose(text, encoder.embed_text(["a photo of hum"])[0] - centre.text, rtol=1e-4, atol=1e-5)
    embedded = encoder.embed_frames(np.asarray(picture)[None])[0]
    np.testing.assert_allclose(image, embedded - centre.image, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(raw, 1)
    protocol = drawn_protocol(RecordSet(clip_records), "validation", 4, 2)
    scored = MixtureReader(separator.config, protocol, separator).read(protocol.mixtures).images
    uncentred = IMAGE.reader(separator.config, RecordSet(clip_records))
    clip = protocol.mixtures[0].clips[0]
    expected = uncentred(clip.split.clip(clip.number), None)["query"] - centre.image
    np.testing.assert_allclose(scored[0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["text", "image"])
def test_the_exported_model_takes_queries_as_they_are(centred, tmp_path, modality):
    separator, path = clipsep_jax.load(centred), tmp_path / "model.pt"
    with pytest.raises(InputError, match="give --modality text or image"):
        export_torch(centred, path)
    export_torch(centred, path, modality=modality)
    module = TorchCLIPSep(separator.config.model).eval()
    tensors = torch.load(path, weights_only=True)
    module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in tensors.items()})
    rng = np.random.default_rng(0)
    query = rng.normal(size=(1, 2, QUERY_SIZE)).astype(np.float32)
    inputs = rng.normal(size=(1, 256, 8)).astype(np.float32)
    with torch.no_grad():
        expected, _ = module(torch.tensor(inputs), torch.tensor(query))
    found = separator.logits_of_inputs(inputs, query - getattr(separator.centre, modality)).query
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_refused_layout_leaves_nothing(centred, tmp_path):
    with pytest.raises(InputError, match="official code"):
        export_official_layout(centred, tmp_path / "layout")
    assert not (tmp_path / "layout").exists()


def test_a_damaged_centre_is_refused(tmp_path):
    Centre(np.ones(3, np.float32), np.zeros(3, np.float32)).save(tmp_path / CENTRE_FILE)
    assert Centre.load(tmp_path / CENTRE_FILE, 3).image.tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="does not hold two means of size 4"):
        Centre.load(tmp_path / CENTRE_FILE, 4)


@pytest.mark.slow
def test_a_model_without_its_centre_is_refused(centred, tmp_path):
    model = open_model_dir(centred)
    with pytest.raises(InputError, match="query_centre"):
        replace(model, folder=tmp_path).load_centre()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"kind": "text"}, "config.query.centre changes stored embeddings of pictures"),
        ({"source": "frames"}, "config.query.centre changes stored embeddings of pictures"),
        ({"centre": False, "kind": "text", "noise": 0.5}, "config.query.noise changes stored embeddings"),
        ({"centre": False, "kind": "label", "combine": "compete"}, "config.query.combine changes stored embeddings"),
        ({"noise": -1.0}, "must be at least 0"),
    ],
)
def test_options_that_have_no_effect_are_refused(clip_records, query, message):
    config = small_config(clip_records)
    config = replace(config, query=replace(config.query, **({"centre": True} | query)))
    with pytest.raises(InputError, match=message):
        KINDS[config.query.kind].check(config)
