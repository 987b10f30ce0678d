"""Cuts, queries and the order of batches."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from clipsep_jax.config import Config
from clipsep_jax.data import reading
from clipsep_jax.data import record_set as record_sets
from clipsep_jax.data.batches import Damages
from clipsep_jax.data.clips import ClipReader, centre_range, centre_samples, crop_audio, pictures_around
from clipsep_jax.data.reading import TolerantReader
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, Contents, RecordSet, RecordSplit, write_shard
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.queries.kinds import KINDS
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.structures import Batch
from tests.small import LABELS, QUERY_SIZE, make_record, make_records, small_config


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> RecordSet:
    return RecordSet(make_records(tmp_path_factory.mktemp("records")))


def batches_of(
    records: RecordSet, *, kind: str = "image", training: bool = True, seed: int = 0, batch_size: int = 2, **kwargs
):
    config = small_config(records.folder, seed=seed)
    return KINDS[kind].batches(config, records, "train", training=training, batch_size=batch_size, **kwargs)


def assert_equal(a: Batch, b: Batch) -> None:
    np.testing.assert_array_equal(a.sources, b.sources)
    np.testing.assert_array_equal(a.gain, b.gain)
    np.testing.assert_array_equal(a.query, b.query)


@pytest.mark.parametrize(
    ("num_frames", "expected"), [(10, (4, 7)), (7, (4, 4)), (6, (3, 4)), (5, (3, 3)), (2, (1, 2)), (1, (1, 1))]
)
def test_centre_range_shrinks_for_short_clips(num_frames, expected):
    assert centre_range(num_frames, 3) == expected


def official_crop(raw: np.ndarray, centre: int, size: int) -> np.ndarray:
    """The official cut: tile, centre, zero outside."""
    if len(raw) < size:
        raw = np.tile(raw, int(size / len(raw)) + 1)
    out = np.zeros(size, raw.dtype)
    for i in range(size // 2 * 2):
        position = centre - size // 2 + i
        if 0 <= position < len(raw):
            out[i] = raw[position]
    return out


@pytest.mark.parametrize(("length", "centre"), [(500, 250), (500, 10), (500, 495), (60, 20), (101, 50), (100, 50)])
def test_crop_equals_the_official_one(length, centre):
    audio = np.random.default_rng(0).integers(-9, 9, length).astype(np.int16)
    crop = crop_audio(audio, centre, 101)
    np.testing.assert_array_equal(crop, official_crop(audio, centre, 101))
    assert crop[-1] == 0


def test_centre_is_the_middle_of_its_picture():
    assert centre_samples(4, 16_000) == 56_000


def test_pictures_around_repeat_at_the_ends():
    assert pictures_around(4, 9, 3).tolist() == [2, 3, 4]
    assert pictures_around(1, 2, 3).tolist() == [0, 0, 1]
    assert pictures_around(1, 1, 3).tolist() == [0, 0, 0]


def test_validation_takes_the_official_centre(records):
    reader = KINDS["image"].reader(small_config(records.folder), records)
    record = make_record(0, seconds=8.0)
    clip = reader(record, None)
    expected = crop_audio(record.audio, centre_samples(4, 16_000), 2047)
    np.testing.assert_array_equal(clip["sources"], expected)
    np.testing.assert_allclose(clip["query"], record.frame_embeddings[2:5].mean(axis=0))
    assert clip["gain"] == 1


def test_batches_are_a_function_of_the_step(records):
    batches, again = batches_of(records), batches_of(records)
    for step in (0, 3, 11):
        assert_equal(batches[step], again[step])
    iterator = batches.iterate(start=3)
    assert_equal(next(iterator), batches[3])
    assert_equal(next(iterator), batches[4])
    assert not np.array_equal(batches[3].sources, batches[4].sources)
    assert not np.array_equal(batches[3].sources, batches_of(records, seed=1)[3].sources)


def test_a_pass_holds_every_clip_once(records):
    batches = batches_of(records, training=False, batch_size=1)
    queries = np.concatenate([batches[i].query.reshape(-1, batches[i].query.shape[-1]) for i in range(9)])
    assert len(np.unique(queries, axis=0)) == 9
    assert (np.unique(queries, axis=0, return_counts=True)[1] == 2).all()


def test_the_ids_of_a_batch_are_those_of_its_clips(records):
    batches = batches_of(records, training=False)
    for step in (0, 1, 5):
        loud = {sound.tobytes(): True for sound in batches[step].sources.reshape(-1, batches[step].sources.shape[-1])}
        reader = KINDS["image"].reader(small_config(records.folder), records)
        split = records.split("train")
        numbers = {entry.id: number for number, entry in enumerate(split.entries)}
        for id, sound in zip(batches.ids(step), loud, strict=True):
            assert reader(split[numbers[id]], None)["sources"].tobytes() == sound


def test_processes_share_the_same_global_batch(records):
    whole = batches_of(records, batch_size=4)
    parts = [batches_of(records, batch_size=2, process_index=i, num_processes=2) for i in range(2)]
    for step in (0, 2):
        joined = np.concatenate([part[step].sources for part in parts])
        np.testing.assert_array_equal(joined, whole[step].sources)
        assert [part.ids(step) for part in parts] == [whole.ids(step)] * 2


def test_gains_lie_in_the_official_range(records):
    gains = np.concatenate([batches_of(records)[i].gain.ravel() for i in range(20)])
    assert gains.min() >= 0.5
    assert gains.max() <= 1.5
    assert gains.std() > 0.2


def test_text_queries_come_from_the_label_table(records):
    reader = KINDS["text"].reader(small_config(records.folder), records)
    record = make_record(1)
    table = EmbeddingTable.load(records.folder / LABEL_EMBEDDINGS_NAME)
    np.testing.assert_array_equal(reader(record, None)["query"], table.lookup("hiss"))


def test_frames_are_pictures_of_the_clip(records):
    reader = KINDS["image"].reader(small_config(records.folder), records, "frames")
    clip = reader(make_record(3), None)
    assert clip["frames"].shape == (3, 224, 224, 3)
    assert "query" not in clip


def test_wrong_query_size_is_refused(records):
    config = small_config(records.folder)
    config = replace(config, model=replace(config.model, query_size=512))
    with pytest.raises(InputError, match=r"set --config\.model\.query_size=6"):
        KINDS["image"].reader(config, records)


def test_a_split_of_one_clip_is_refused(tmp_path):
    small = RecordSet(make_records(tmp_path, {"train": 1}))
    with pytest.raises(InputError, match="too few"):
        batches_of(small)


def test_unknown_config_key_is_refused():
    with pytest.raises(InputError, match=r"config\.train\.stepz"):
        Config.from_config_dict({"train": {"stepz": 3}})


def test_hybrid_queries_alternate_between_image_and_text(records):
    hybrid, image, text = (batches_of(records, kind=kind) for kind in ("hybrid", "image", "text"))
    for step in (0, 1, 4, 7):
        expected = (image, text)[step % 2][step]
        assert_equal(hybrid[step], expected)
    assert_equal(next(hybrid.iterate(start=7)), text[7])


def test_label_queries_are_numbers_of_labels(records):
    record = make_record(1)
    reader = KINDS["label"].reader(small_config(records.folder), records)
    assert records.labels[reader(record, None)["query"]] == record.label == "hiss"
    assert batches_of(records, kind="label")[0].query.dtype == np.int32


def test_sentence_queries_come_from_their_file(records, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, QUERY_SIZE)).astype(np.float32)
    EmbeddingTable(("hum", "buzz", "hiss"), vectors).save(tmp_path / "table.safetensors")
    config = small_config(records.folder)
    config = replace(config, query=replace(config.query, kind="sentence", table=str(tmp_path / "table.safetensors")))
    reader = KINDS["sentence"].reader(config, records)
    np.testing.assert_array_equal(reader(make_record(1), None)["query"], vectors[2])


def test_no_query_gives_sound_alone(records):
    assert batches_of(records, kind="none")[0].query is None


def test_clips_without_labels_are_refused_where_labels_are_needed(tmp_path):
    folder = make_records(tmp_path, {"train": 4})
    index = folder / "train-00000.tfrecord.index.jsonl"
    index.write_text(index.read_text().replace('"hiss"', '""'))
    with pytest.raises(InputError, match=r"1 clips of the split 'train' have no label \(clip1.mp4 is one\)"):
        batches_of(RecordSet(folder), kind="label")


def test_embeddings_mode_decodes_no_picture(records, monkeypatch):
    def refuse(*_):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr("clipsep_jax.data.clips.decode_frame", refuse)
    monkeypatch.setattr("clipsep_jax.data.record.Image.open", refuse)
    batch = batches_of(records)[0]
    assert batch.frames is None
    assert batch.query.shape == (2, 2, QUERY_SIZE)


def damage(records: RecordSet, split: str, numbers: set[int]) -> None:
    for entry in records.split(split).entries:
        if entry.number in numbers:
            path = records.folder / entry.shard
            data = bytearray(path.read_bytes())
            data[entry.offset + 50] ^= 1
            path.write_bytes(data)


def test_a_damaged_record_is_replaced_by_the_next_whole_one(tmp_path):
    records = RecordSet(make_records(tmp_path))
    whole = batches_of(records, training=False)
    ids = [entry.id for entry in records.split("train").entries]
    wanted = {whole.ids(step)[i]: whole[step].sources.reshape(4, -1)[i] for step in range(5) for i in range(4)}
    damage(records, "train", {3})
    batches = batches_of(records, training=False)
    steps = [step for step in range(2) if ids[3] in batches.ids(step)]
    with pytest.warns(InputWarning, match=rf"record 3 is damaged \(its checksum is wrong\).* {ids[4]} is used"):
        batch = batches[steps[0]]
    for id, sound in zip(batches.ids(steps[0]), batch.sources.reshape(4, -1), strict=True):
        np.testing.assert_array_equal(sound, wanted[ids[4] if id == ids[3] else id])
    assert [one.reason for one in batches.damages.replaced.values()] == ["its checksum is wrong"]
    assert_equal(batches[steps[0]], batch)  # told once, though it is read again


def test_more_than_one_damaged_record_in_a_thousand_ends_the_run(tmp_path):
    records = RecordSet(make_records(tmp_path))
    damage(records, "train", {3, 6})
    batches = batches_of(records, training=False)
    with (
        pytest.warns(InputWarning, match="record [36] is damaged"),
        pytest.raises(
            InputError, match=r"More than 1 of 1000 records were damaged \(\d times: its checksum is wrong\)"
        ),
    ):
        list(islice(batches.iterate(), 5))


def test_two_damaged_records_far_apart_are_both_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "REPLACED_WINDOW", 5)
    records = RecordSet(make_records(tmp_path))
    split, reader = records.split("train"), KINDS["image"].reader(small_config(tmp_path), records)
    whole = [reader(split[number], None)["sources"] for number in range(7)]
    damage(records, "train", {1})
    read, damages = TolerantReader(split, reader), Damages()
    found = [read(number) for number in (1, 0, 2, 3, 4, 5, 6, 1)]
    np.testing.assert_array_equal(
        [clip.arrays["sources"] for clip in found], [whole[number] for number in (2, 0, 2, 3, 4, 5, 6, 2)]
    )
    assert [len(clip.replaced) for clip in found] == [1, 0, 0, 0, 0, 0, 0, 1]
    with pytest.warns(InputWarning, match="record 1 is damaged"):
        damages.add(0, found[0].replaced[0])
    damages.add(7, found[7].replaced[0])  # the same one again, which was told
    damages.add(8, read(1).replaced[0])
    other = replace(found[0].replaced[0], message="record 2 is damaged.")
    with pytest.warns(InputWarning, match="record 2 is damaged"):
        damages.add(13, other)
    with pytest.raises(InputError, match="More than 1 of 5"):
        damages.add(15, found[0].replaced[0])


def test_one_damaged_record_ends_no_run_however_often_it_comes(tmp_path):
    """Few clips come again within the window, and many do where two passes meet."""
    records = RecordSet(make_records(tmp_path))
    damage(records, "train", {3})
    batches = batches_of(records)
    with pytest.warns(InputWarning, match="record 3 is damaged") as told:
        list(map(batches.__getitem__, range(30)))
    assert len(told) == 1


@pytest.mark.parametrize("part", ["record", "picture"])
def test_what_was_written_wrong_is_replaced_too(tmp_path, monkeypatch, part):
    """Its checksum is right, but it does not decode."""
    broken = replace(make_record(0), frames=(b"no JPEG",) * 2)
    if part == "record":
        encode = record_sets.encode_record
        monkeypatch.setattr("clipsep_jax.data.index.parts_of", lambda *_: None)
        monkeypatch.setattr(record_sets, "encode_record", lambda r, *a: b"\xff" if r is broken else encode(r, *a))
    shard = write_shard(tmp_path / "a.tfrecord", [broken, make_record(1)])
    config = small_config(tmp_path)
    reader = ClipReader(config.data, config.spectrogram, None, frames=True)
    split = RecordSplit(tmp_path, "train", [shard], Contents(frozenset(LABELS), QUERY_SIZE))
    read = TolerantReader(split, reader)
    named = r"a\.tfrecord: record 0: The bytes" if part == "record" else r"clip0\.mp4, picture 1: A stored picture"
    found = read(0)
    with pytest.warns(InputWarning, match=rf"{named} .* [Pp]repare the records again\. clip1\.mp4 is used"):
        Damages().add(0, found.replaced[0])
    np.testing.assert_array_equal(found.arrays["frames"], reader(split[1], None)["frames"])
    reason = "it is not a readable record" if part == "record" else "a picture is not a readable JPEG"
    assert [one.reason for one in found.replaced] == [reason]


def test_gains_are_uniform_in_decibels_where_asked(records):
    config = small_config(records.folder)
    data = replace(config.data, gain_min=0.01, gain_max=1.0, gain_law="decibels")
    reader, record = ClipReader(data, config.spectrogram, None), make_record(0)
    rng = np.random.default_rng(0)
    gains = np.array([reader(record, rng)["gain"] for _ in range(300)])
    assert ((gains >= 0.01) & (gains <= 1)).all()
    assert 0.4 < (gains < 0.1).mean() < 0.6


def test_labels_of_an_example_differ_where_asked_and_batches_stay_the_same(records):
    config = small_config(records.folder)
    config = replace(config, data=replace(config.data, distinct_labels=True, num_sources=3))
    label_of = {entry.id: entry.label for entry in records.split("train").entries}

    def examples(**how):
        batches = KINDS["image"].batches(config, records, "train", training=True, batch_size=4, **how)
        return batches, [ids[i : i + 3] for step in range(9) for ids in [batches.ids(step)] for i in range(0, 12, 3)]

    batches, clips = examples()
    assert all(len({label_of[clip] for clip in example}) == 3 for example in clips)
    assert {clip for example in clips for clip in example} == set(label_of)
    plain = KINDS["image"].batches(small_config(records.folder), records, "train", training=True, batch_size=6)
    same = [a == b for step in range(9) for a, b in zip(plain.ids(step), batches.ids(step), strict=True)]
    assert 0.4 < np.mean(same) < 1
    assert_equal(batches[3], examples()[0][3])
    halves = [
        KINDS["image"].batches(config, records, "train", training=True, batch_size=2, process_index=i, num_processes=2)
        for i in range(2)
    ]
    np.testing.assert_array_equal(batches[3].sources, np.concatenate([half[3].sources for half in halves]))


def test_a_single_label_cannot_be_avoided(tmp_path):
    alone = RecordSet(make_records(tmp_path, {"train": 4}, labels=("buzz",)))
    config = small_config(alone.folder)
    config = replace(config, data=replace(config.data, distinct_labels=True))
    plain = replace(config, data=replace(config.data, distinct_labels=False))
    found, expected = (KINDS["image"].batches(c, alone, "train", training=True, batch_size=2) for c in (config, plain))
    assert found.ids(0) == expected.ids(0)
    assert len(set(found.ids(0))) == 4
