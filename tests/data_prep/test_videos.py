from pathlib import Path

import numpy as np
import pytest

from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep.ledger import read_ledger
from clipsep_jax.data_prep.sources.inputs import hashed_split
from clipsep_jax.data_prep.sources.videos import find_videos, read_video
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.errors import InputError
from tests.data_prep.fakes import files_of
from tests.data_prep.made_media import grey_pictures, make_video, tone


def test_find_lists_videos_sorted_and_ignores_other_files(tmp_path):
    for name in ("b.MP4", "a/z.webm", "a/notes.txt", "README.md", "labels.csv", "c.mkv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    inputs = find_videos(tmp_path)
    assert [source.id for source in inputs] == ["a/z.webm", "b.MP4", "c.mkv"]
    assert all(source.path.is_file() and source.label == "" for source in inputs)
    assert all(source.split == hashed_split(source.id) for source in inputs)


def test_hashed_splits_have_their_shares_and_never_change():
    splits = [hashed_split(f"clip{number}.mp4") for number in range(5_000)]
    shares = [splits.count(name) / 5_000 for name in ("train", "validation", "test")]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)
    assert [hashed_split(id) for id in ("clip0.mp4", "clip2.mp4", "a.mp4")] == ["train", "validation", "test"]


def test_find_takes_rows_of_a_csv_file(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("\ufeffvideo,label,split,source\nx/a.mp4,dog,test,me\nb.mp4, cat ,,you\n", encoding="utf-8")
    first, second = find_videos(tmp_path, table)
    assert (first.id, first.label, first.split, first.path) == ("x/a.mp4", "dog", "test", tmp_path / "x/a.mp4")
    assert (second.id, second.label, second.split) == ("b.mp4", "cat", hashed_split("b.mp4"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"file,label\na.mp4,dog\n", "video,label"),
        (b"", "video,label"),
        (b"video,label\n", "holds no videos"),
        (b"video,label,split\na.mp4,dog,train\nb.mp4,cat,dev\n", "line 3: the split 'dev'"),
        (b"video,label\n../a.mp4,dog\n", "line 2: '../a.mp4'"),
        (b"video,label\n/etc/a.mp4,dog\n", "line 2: '/etc/a.mp4'"),
        (b"video,label\n,dog\n", "line 2: ''"),
        (b"video,label\na.mp4,dog\nx.mp4,dog\na.mp4,cat\n", "line 4: a.mp4 is listed twice"),
        (b"video,label\n\xff.mp4,dog\n", "UTF-8"),
    ],
)
def test_a_bad_csv_file_is_an_input_error(tmp_path, content, words):
    table = tmp_path / "labels.csv"
    table.write_bytes(content)
    with pytest.raises(InputError, match=words):
        find_videos(tmp_path, table)


def test_missing_and_empty_folders_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        find_videos(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no videos"):
        find_videos(tmp_path)
    with pytest.raises(InputError, match="no file"):
        find_videos(tmp_path, tmp_path / "labels.csv")


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    for number in range(4):
        audio = tone(1.5, hz=300 + 100 * number)
        make_video(folder / f"clip{number}.mkv", audio, grey_pictures(15))
    (folder / "notes.mp4").write_text("no video")
    return folder


def test_prepare_writes_records_ledger_and_manifest(tmp_path):
    folder = make_folder(tmp_path / "in")
    table = tmp_path / "labels.csv"
    rows = [f"clip{n}.mkv,{label},{split}" for n, (label, split) in enumerate([("dog", "train"), ("cat", "test")] * 2)]
    table.write_text("\n".join(["video,label,split", *rows, "notes.mp4,dog,train", "gone.mp4,cat,train"]))
    run = PoolRunner(num_workers=0)
    write_records(find_videos(folder, table), read_video, tmp_path / "out", run=run, max_rejected=0.5)
    records = RecordSet(tmp_path / "out")
    assert records.manifest.counts == {"inputs": 6, "accepted": 4, "rejected": 2}
    assert records.manifest.labels == {"cat": 2, "dog": 2}
    assert records.splits == ("train", "test")
    assert [record.id for record in records.split("test")] == ["clip1.mkv", "clip3.mkv"]
    ledger = read_ledger(tmp_path / "out" / "ledger.jsonl")
    assert [line.reason for line in ledger] == ["", "", "", "", "undecodable", "missing"]
    assert (ledger[0].num_frames, ledger[0].duration_seconds) == (2, 1.5)
    assert ledger[0].peak_dbfs == pytest.approx(20 * np.log10(0.4), abs=0.05)


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
    folder = make_folder(tmp_path / "in")
    for num_workers in (0, 1, 2, 4):
        run = PoolRunner(num_workers)
        write_records(find_videos(folder), read_video, tmp_path / f"out{num_workers}", run=run, block_size=2)
    here = files_of(tmp_path / "out0")
    assert "manifest.json" in here
    assert all(files_of(tmp_path / f"out{num_workers}") == here for num_workers in (1, 2, 4))


@pytest.mark.slow
def test_real_videos_are_all_accounted_for(tmp_path, real_data):
    folder = real_data / "sounding-photos"
    inputs = find_videos(folder / "videos", folder / "index.csv")
    write_records(inputs, read_video, tmp_path / "out", run=PoolRunner(2))
    records = RecordSet(tmp_path / "out")
    counts = records.manifest.counts
    assert counts["accepted"] + counts["rejected"] == counts["inputs"] == 121
    assert len(read_ledger(tmp_path / "out" / "ledger.jsonl")) == 121
    assert sum(len(records.split(name)) for name in records.splits) == counts["accepted"]
    assert counts["accepted"] > 115
    entries = [entry for name in records.splits for entry in records.split(name).entries]
    assert {entry.num_frames for entry in entries} == {8}
