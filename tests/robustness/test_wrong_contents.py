"""Records whose checksums are right and whose contents are wrong: named alike by verify, embed, train and evaluate."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import clipsep_jax
from clipsep_jax.data.record import CorruptRecordError
from clipsep_jax.data.record_set import RecordSet, read_manifest, write_manifest, write_shard
from clipsep_jax.data_prep.embed_set import embed_record_set
from clipsep_jax.data_prep.verify import verify
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.evaluation.scores import evaluation_of
from clipsep_jax.queries.kinds import KINDS
from tests.data.test_record import jpeg_of
from tests.small import QUERY_SIZE, small_config

LARGE = jpeg_of(Image.new("RGB", (4096, 4096)))


# What is wrong with a record, as it is told; the last needs its pictures decoded.
WRONG = {
    "it holds no audio": {"audio": np.zeros(0, np.int16)},
    "it holds no embeddings": {"frame_embeddings": None},
    "its embeddings have size 7, not 6": {"frame_embeddings": np.ones((2, 7), np.float32)},
    "its embeddings hold numbers that are not finite": {"frame_embeddings": np.full((2, QUERY_SIZE), np.nan, "f")},
    "its label 'dog' is not in the manifest": {"label": "dog"},
    "4096 x 4096 pixels, not 224 x 224": {"frames": (LARGE, LARGE)},
}


@pytest.fixture
def wrong(request, clip_records, tmp_path):
    """Records of which one of each split is wrong, with a right index and manifest around it."""
    folder = tmp_path / "records"
    shutil.copytree(clip_records, folder)
    manifest, splits = read_manifest(folder), {}
    for name in manifest.splits:
        records = list(RecordSet(folder).split(name))
        records[1] = replace(records[1], **WRONG[request.param])
        splits[name] = (write_shard(folder / f"{name}-00000.tfrecord", records),)
    write_manifest(folder, replace(manifest, splits=splits))
    return folder, request.param


everything_wrong = pytest.mark.parametrize("wrong", WRONG, indirect=True)


@everything_wrong
def test_verify_names_it(wrong):
    folder, fault = wrong
    assert [fault in problem and "record 1" in problem for problem in verify(folder)] == [True] * 3


@everything_wrong
def test_embedding_names_it_and_changes_nothing(wrong, clip_folder, capsys):
    folder, fault = wrong
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    encoder = replace(load_clip(str(clip_folder)))
    encoder.__dict__["sha256"] = "1" * 64  # another one
    with pytest.raises(InputError, match="3 records are damaged"):
        embed_record_set(folder, encoder)
    assert capsys.readouterr().err.count(fault) == 3
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@everything_wrong
def test_training_uses_another_and_names_it(wrong):
    folder, fault = wrong
    records, config = RecordSet(folder), small_config(folder)
    source = "frames" if "pixels" in fault else "embeddings"
    config = config.replace(query={"source": source})
    batches = KINDS["image"].batches(config, records, "train", training=False, batch_size=2)
    wrong_id = records.split("train").entries[1].id
    step = next(step for step in range(9) if wrong_id in batches.ids(step))
    with pytest.warns(InputWarning, match=f"{re.escape(fault)}.* is used instead"):
        batches[step]


@everything_wrong
def test_evaluation_names_it(wrong, trained):
    folder, fault = wrong
    if "pixels" in fault:  # evaluation by stored embeddings reads no pictures
        manifest = read_manifest(folder)
        write_manifest(folder, replace(manifest, encoder=replace(manifest.encoder, sha256="1" * 64)))
    with pytest.raises(CorruptRecordError, match=re.escape(fault)):
        evaluation_of(clipsep_jax.load(trained), RecordSet(folder), "test", 12).run(progress=False)
