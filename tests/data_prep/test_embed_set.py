import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.data.record import CorruptRecordError, Record, decode_record, encode_record
from clipsep_jax.data.record_set import EncoderInfo, RecordSet, RecordSplit, read_manifest, write_manifest, write_shard
from clipsep_jax.data_prep import embed_set
from clipsep_jax.data_prep.embed import embed_records, label_table
from clipsep_jax.data_prep.embed_set import embed_record_set
from clipsep_jax.data_prep.ledger import read_ledger
from clipsep_jax.data_prep.verify import verify
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.encoders.base import NoTextError
from clipsep_jax.encoders.clip import load_clip
from clipsep_jax.errors import InputError
from clipsep_jax.queries.table import EmbeddingTable
from tests.data_prep.fakes import FakeEncoder, files_of, make_inputs, read_fake, read_sound_alone
from tests.data_prep.killing import finishes_before


class PlacedEncoder(FakeEncoder):
    """The embedding of a picture encodes its row in the batch, so a shifted batch changes the bytes."""

    name = "placed"
    sha256 = "1" * 64

    def embed_frames(self, frames: np.ndarray) -> np.ndarray:
        embeddings = super().embed_frames(frames)
        embeddings[:, 2] = np.arange(len(frames))
        return embeddings


class PictureEncoder(FakeEncoder):
    """Takes no text."""

    name = "resnet18:there"
    sha256 = "2" * 64

    def embed_text(self, texts: list[str]) -> np.ndarray:
        raise NoTextError(f"{self.name} takes no text.")


def prepare(out: Path, encoder=None, num_inputs: int = 10, block_size: int = 4) -> Path:
    run = PoolRunner(num_workers=0)
    write_records(make_inputs(num_inputs), read_fake, out, run=run, block_size=block_size, max_rejected=0.5)
    if encoder:
        embed_record_set(out, encoder)
    return out


def read_all(folder: Path) -> list[Record]:
    records = RecordSet(folder)
    return [record for name in records.splits for record in records.split(name)]


def without_manifest(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if name != "manifest.json"}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Records without embeddings, several shards a split."""
    return prepare(tmp_path_factory.mktemp("plain") / "records")


@pytest.fixture
def records(plain, tmp_path):
    return shutil.copytree(plain, tmp_path / "records")


def assert_embedded(records: Path, encoder, plain: Path) -> None:
    """Embed `records`, a copy of `plain` or that embedded before; compare with embedding each shard in memory."""
    manifest, bare = embed_record_set(records, encoder), read_manifest(plain)
    info = EncoderInfo(encoder.name, encoder.sha256, encoder.query_size)
    assert manifest == read_manifest(records)
    assert manifest == replace(bare, splits=manifest.splits, encoder=info, other_files=manifest.other_files)
    assert set(manifest.other_files) == {"ledger.jsonl", "label_embeddings.safetensors"}
    for name, shards in bare.splits.items():
        for old, new in zip(shards, manifest.splits[name], strict=True):
            wanted = embed_records(list(RecordSplit(plain, name, [old], bare.contents)), encoder)
            found = RecordSplit(records, name, [new], manifest.contents)
            assert [encode_record(record) for record in found] == [encode_record(record) for record in wanted]
    table, wanted = EmbeddingTable.load(records / "label_embeddings.safetensors"), label_table(("cat", "dog"), encoder)
    assert table.labels == wanted.labels
    np.testing.assert_array_equal(table.vectors, wanted.vectors)


def test_every_shard_and_label_is_embedded(records, plain):
    assert_embedded(records, PlacedEncoder(), plain)


@pytest.mark.slow
def test_so_they_are_by_a_clip(records, plain, clip_folder):
    assert_embedded(records, load_clip(str(clip_folder)), plain)


def test_recordings_get_the_embeddings_of_their_labels(tmp_path):
    write_records(make_inputs(6), read_sound_alone, tmp_path, run=PoolRunner(num_workers=0))
    manifest = embed_record_set(tmp_path, FakeEncoder())
    assert EmbeddingTable.load(tmp_path / "label_embeddings.safetensors").labels == ("cat", "dog")
    assert manifest.encoder == EncoderInfo("fake", "0" * 64, 3)
    for record in read_all(tmp_path):
        assert (record.num_frames, record.frame_embeddings.shape) == (0, (0, 3))
    before = files_of(tmp_path)
    assert embed_record_set(tmp_path, FakeEncoder()) == manifest
    assert files_of(tmp_path) == before


def test_dropping_leaves_all_but_the_pictures(records, tmp_path):
    with_frames = shutil.copytree(records, tmp_path / "with frames")
    embed_record_set(with_frames, PlacedEncoder())
    manifest = embed_record_set(records, PlacedEncoder(), drop_frames=True)
    assert manifest.encoder == EncoderInfo("placed", "1" * 64, 3)
    for bare, full in zip(read_all(records), read_all(with_frames), strict=True):
        assert bare.frames == ()
        assert (bare.id, bare.label, bare.num_frames) == (full.id, full.label, len(full.frames))
        np.testing.assert_array_equal(bare.audio, full.audio)
        np.testing.assert_array_equal(bare.frame_embeddings, full.frame_embeddings)
    for name in manifest.splits:
        entries = [RecordSet(folder).split(name).entries for folder in (records, with_frames)]
        assert [e.num_frames for e in entries[0]] == [e.num_frames for e in entries[1]]
        assert RecordSet(records).split(name, with_frames=False)[0].num_frames == entries[1][0].num_frames


def test_pictures_can_be_dropped_later_without_the_encoder_at_work(records, tmp_path):
    at_once = shutil.copytree(records, tmp_path / "at once")
    embed_record_set(at_once, PlacedEncoder(), drop_frames=True)
    embed_record_set(records, PlacedEncoder())
    encoder = PlacedEncoder()
    embed_record_set(records, encoder, drop_frames=True)
    assert files_of(records) == files_of(at_once)
    assert encoder.shapes == set()


@pytest.mark.parametrize("drop_frames", [False, True])
def test_what_is_done_is_left_alone(records, capsys, drop_frames):
    done = embed_record_set(records, FakeEncoder(), drop_frames=drop_frames)
    before = {path: path.stat().st_mtime_ns for path in records.iterdir()}
    assert embed_record_set(records, FakeEncoder(), drop_frames=drop_frames) == done
    assert {path: path.stat().st_mtime_ns for path in records.iterdir()} == before
    assert "nothing to do" in capsys.readouterr().err


def test_another_encoder_takes_the_place_of_the_first(records, plain):
    embed_record_set(records, FakeEncoder())
    assert_embedded(records, PlacedEncoder(), plain)


def test_an_encoder_of_pictures_alone_leaves_no_table_of_another(records):
    embed_record_set(records, FakeEncoder())
    assert EmbeddingTable.load(records / "label_embeddings.safetensors").labels == ("cat", "dog")
    embed_record_set(records, PictureEncoder())
    assert not (records / "label_embeddings.safetensors").exists()
    assert RecordSet(records).encoder == EncoderInfo("resnet18:there", "2" * 64, 3)


def finishes(number: int, monkeypatch, folder: Path, encoder, **options) -> bool:
    return finishes_before(number, monkeypatch, lambda: embed_record_set(folder, encoder, **options))


def assert_readable_or_refused(folder: Path, wholes: list[list[bytes]]) -> None:
    """What a reader sees meanwhile: all of the old records, all of the new ones, or an InputError."""
    try:
        seen = [encode_record(record) for record in read_all(folder)]
    except InputError as error:
        assert "holds no complete records" in str(error)  # noqa: PT017
    else:
        assert seen in wholes


@pytest.mark.parametrize(
    ("first", "encoder", "drop_frames"),
    [
        pytest.param(None, PlacedEncoder, True, marks=pytest.mark.soak),
        pytest.param(None, PlacedEncoder, False, marks=pytest.mark.slow),
        # shards of equal sizes, and a table to remove
        pytest.param(FakeEncoder, PictureEncoder, False, marks=pytest.mark.slow),
        pytest.param(FakeEncoder, FakeEncoder, True, marks=pytest.mark.soak),
    ],
)
def test_a_run_killed_twice_between_any_operations_is_continued_to_the_same_bytes(
    tmp_path, monkeypatch, first, encoder, drop_frames
):
    options = {"drop_frames": drop_frames, "batch_size": 2}
    start = prepare(tmp_path / "start", first and first(), num_inputs=3, block_size=2)
    whole = shutil.copytree(start, tmp_path / "whole")
    embed_record_set(whole, encoder(), **options)
    expected = files_of(whole)
    known = [[encode_record(record) for record in read_all(folder)] for folder in (start, whole)]
    number, finished = 0, False
    while not finished:
        folder = shutil.copytree(start, tmp_path / f"killed {number}")
        finished = finishes(number, monkeypatch, folder, encoder(), **options)
        assert_readable_or_refused(folder, known)
        finishes(7 * number % 31, monkeypatch, folder, encoder(), **options)
        assert_readable_or_refused(folder, known)
        embed_record_set(folder, encoder(), **options)
        assert files_of(folder) == expected
        shutil.rmtree(folder)
        number += 1
    assert number > 30


def test_a_rerun_embeds_only_what_is_missing(records, monkeypatch):
    encoder, calls = PlacedEncoder(), []

    def embed(frames: np.ndarray) -> np.ndarray:
        calls.append(len(frames))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return PlacedEncoder.embed_frames(encoder, frames)

    monkeypatch.setattr(encoder, "embed_frames", embed, raising=False)
    with pytest.raises(KeyboardInterrupt):
        embed_record_set(records, encoder)
    embed_record_set(records, encoder)
    num_shards = sum(map(len, read_manifest(records).splits.values()))
    assert len(calls) == num_shards + 1  # one batch holds a shard, and one was in vain


def test_a_stopped_run_leaves_the_old_set_and_gives_way_to_another(records, tmp_path, monkeypatch, capsys):
    other = shutil.copytree(records, tmp_path / "other")
    before = [encode_record(record) for record in read_all(records)]
    assert not finishes(20, monkeypatch, records, PlacedEncoder(), drop_frames=True)
    assert [encode_record(record) for record in read_all(records)] == before
    assert list(verify(records)) == []
    embed_record_set(records, FakeEncoder())
    assert "is of an unfinished run with other options: started anew" in capsys.readouterr().err
    embed_record_set(other, FakeEncoder())
    assert files_of(records) == files_of(other)


def test_records_whose_pictures_were_dropped_are_refused(records):
    embed_record_set(records, FakeEncoder(), drop_frames=True)
    before = files_of(records)
    with pytest.raises(InputError, match="holds clips without pictures"):
        embed_record_set(records, PlacedEncoder())
    assert files_of(records) == before


def test_what_is_no_whole_set_of_records_is_refused_untouched(records, tmp_path):
    with pytest.raises(InputError, match="no complete records"):
        embed_record_set(tmp_path / "none", FakeEncoder())
    (records / "train-00001.tfrecord").write_bytes(b"")
    before = files_of(records)
    with pytest.raises(InputError, match=r"train-00001\.tfrecord has .* restore"):
        embed_record_set(records, FakeEncoder())
    assert files_of(records) == before


def test_a_failing_text_tower_is_known_before_a_file_is_touched(records):
    class Broken(FakeEncoder):
        def embed_text(self, texts: list[str]) -> np.ndarray:
            raise InputError("the tokenizer is missing.")

    before = files_of(records)
    with pytest.raises(InputError, match="the tokenizer is missing"):
        embed_record_set(records, Broken())
    assert files_of(records) == before


def flip(path: Path) -> bytes:
    """Change some bytes of a shard's last record; gives what was there."""
    good = path.read_bytes()
    path.write_bytes(good[:-100] + bytes(100))
    return good


def spoil_pictures(folder: Path, *ids: str) -> None:
    """Give some records a picture that is none, under a right checksum."""
    manifest, splits = read_manifest(folder), {}
    for name, shards in manifest.splits.items():
        new = []
        for shard in shards:
            old = list(RecordSplit(folder, name, [shard], manifest.contents))
            spoilt = [replace(record, frames=(b"J",) * len(record.frames)) for record in old]
            pairs = zip(old, spoilt, strict=True)
            new.append(write_shard(folder / shard.name, [bad if bad.id in ids else good for good, bad in pairs]))
        splits[name] = tuple(new)
    write_manifest(folder, replace(manifest, splits=splits))


@pytest.mark.parametrize("kind", ["flipped", "no picture"])
def test_damage_stops_the_run_with_every_name_and_changes_nothing(records, plain, tmp_path, capsys, kind):
    ids = [RecordSet(records).split(name)[-1].id for name in ("train", "test")]
    if kind == "flipped":
        paths = [sorted(records.glob(f"{split}-*.tfrecord"))[-1] for split in ("train", "test")]
        good = [flip(path) for path in paths]
    else:
        spoil_pictures(records, *ids)
    before = files_of(records)
    with pytest.raises(InputError, match=r"2 records are damaged, named above, and nothing was changed"):
        embed_record_set(records, FakeEncoder())
    told = capsys.readouterr().err
    for split in ("train", "test"):
        assert re.search(rf"{records}/{split}-\d+\.tfrecord: record \d", told), told
    assert "BytesIO" not in told
    assert {name: data for name, data in files_of(records).items() if not name.startswith("embedding.")} == before
    if kind == "flipped":
        for path, data in zip(paths, good, strict=True):
            path.write_bytes(data)
        embed_record_set(records, FakeEncoder())
        other = shutil.copytree(plain, tmp_path / "other")
        embed_record_set(other, FakeEncoder())
        assert files_of(records) == files_of(other)


@pytest.mark.parametrize("kind", ["flipped", "no picture"])
def test_damaged_records_are_left_out_on_request(records, plain, kind):
    lost = RecordSet(records).split("train")[-1]
    if kind == "flipped":
        flip(sorted(records.glob("train-*.tfrecord"))[-1])
    else:
        spoil_pictures(records, lost.id)
    with pytest.raises(InputError, match="1 records are damaged"):
        embed_record_set(records, FakeEncoder())
    manifest = embed_record_set(records, FakeEncoder(), leave_out_damaged=True)
    assert [record.id for record in read_all(records)] == [r.id for r in read_all(plain) if r.id != lost.id]
    assert list(verify(records)) == []
    old = read_manifest(plain)
    assert manifest.counts == old.counts | {
        name: old.counts[name] + n for name, n in (("accepted", -1), ("rejected", 1))
    }
    assert sum(manifest.labels.values()) == sum(old.labels.values()) - 1
    (line,) = [line for line in read_ledger(records / "ledger.jsonl") if line.reason == "damaged"]
    assert (line.input, line.status, line.label) == (lost.id, "rejected", lost.label)
    assert "record" in line.detail


@pytest.mark.parametrize("num_frames", [1, 4])
def test_a_record_of_embeddings_alone_knows_how_many_pictures_there_were(num_frames):
    embeddings = np.arange(3 * num_frames, dtype=np.float32).reshape(num_frames, 3)
    record = Record("a", "", np.zeros(5, np.int16), (), embeddings)
    for with_frames in (True, False):
        found = decode_record(encode_record(record), with_frames=with_frames)
        assert (found.frames, found.num_frames) == ((), num_frames)
        np.testing.assert_array_equal(found.frame_embeddings, embeddings)
    more = replace(record, frames=(b"J",) * (num_frames + 1), frame_embeddings=None)
    with pytest.raises(CorruptRecordError, match=f"{num_frames} embeddings for {num_frames + 1} pictures"):
        decode_record(encode_record(record) + encode_record(more))  # messages that follow one another are merged


def test_what_an_earlier_version_left_is_given_back_or_refused(records, plain):
    """It moved the manifest away, and then replaced the shards one by one."""
    (records / "embedding.partial").mkdir()
    for name in ("manifest.json", "options.json"):
        (records / "embedding.partial" / name).write_bytes((records / "manifest.json").read_bytes())
    (records / "manifest.json").unlink()
    half = shutil.copytree(records, records.with_name("half"))
    embed_record_set(records, FakeEncoder())
    other = shutil.copytree(plain, records.with_name("other"))
    embed_record_set(other, FakeEncoder())
    assert files_of(records) == files_of(other)
    for name in ("train-00000.tfrecord", "train-00000.tfrecord.index.jsonl"):
        shutil.copy(other / name, half / name)
    before = files_of(half)
    with pytest.raises(InputError, match="was left half embedded by an earlier version; prepare the records anew"):
        embed_record_set(half, FakeEncoder())
    assert files_of(half) == before


def test_a_record_that_is_restored_meanwhile_is_not_left_out(records, plain, tmp_path, monkeypatch):
    path = sorted(records.glob("train-*.tfrecord"))[0]
    good = flip(path)
    with monkeypatch.context() as patch:
        patch.setattr(embed_set, "write_manifest", lambda *_: 1 / 0)  # all shards are written
        with pytest.raises(ZeroDivisionError):
            embed_record_set(records, FakeEncoder(), leave_out_damaged=True)
    path.write_bytes(good)
    embed_record_set(records, FakeEncoder(), leave_out_damaged=True)
    other = shutil.copytree(plain, tmp_path / "other")
    embed_record_set(other, FakeEncoder())
    assert files_of(records) == files_of(other)


def test_the_work_folder_is_gone_and_the_manifest_tells_the_hashes(records):
    embed_record_set(records, FakeEncoder())
    assert not list(records.glob("*.partial"))
    fields = json.loads((records / "manifest.json").read_text())
    assert fields["encoder"] == {"name": "fake", "sha256": "0" * 64, "query_size": 3}


@pytest.mark.parametrize("name", ["", "records"])
def test_files_behind_a_link_are_not_moved(records, tmp_path, name):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "keep.txt").write_text("mine")
    link = records / "embedding.partial" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(theirs)
    with pytest.raises(InputError, match="is a link"):
        embed_record_set(records, PlacedEncoder())
    assert [path.name for path in theirs.iterdir()] == ["keep.txt"]
