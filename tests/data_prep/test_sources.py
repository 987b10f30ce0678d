"""Lists of data sets -> inputs, and the readers of those that are not plain videos."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipsep_jax.data.record import Record, decode_frame
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.data_prep.ledger import Rejection, read_ledger
from clipsep_jax.data_prep.sources.audio import find_audio, read_audio
from clipsep_jax.data_prep.sources.inputs import Input, Segment, hashed_split, mark_duplicates, video_of
from clipsep_jax.data_prep.sources.music import find_music
from clipsep_jax.data_prep.sources.official import find_official, read_official
from clipsep_jax.data_prep.sources.vggsound import find_vggsound
from clipsep_jax.data_prep.sources.videos import find_videos, read_video
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.errors import InputError, InputWarning
from tests.data_prep.made_media import assert_same_sound, grey_pictures, make_video, sweep, tone

HERE = PoolRunner(num_workers=0)


def write_wav(path: Path, seconds: float, rate: int = 16_000, hz: float = 440.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((tone(seconds, rate, hz, (0.4,))[0] * 32767).astype("<i2").tobytes())
    return path


@pytest.mark.parametrize(
    ("id", "video"),
    [
        ("--wYNWzqh3k_000030.mp4", "--wYNWzqh3k"),
        ("x/abc_def-hij_30_40.webm", "abc_def-hij"),
        ("a/abcdefghijk.mp4", "abcdefghijk"),
        ("abcdefghijk_30.0_40.0.webm", "abcdefghijk"),
        ("clip_0001.mp4", "clip_0001.mp4"),
        ("a/clip.mp4", "a/clip.mp4"),
    ],
)
def test_the_video_that_a_clip_was_cut_from(id, video):
    assert video_of(id) == video


def test_clips_of_one_video_are_never_in_two_splits(tmp_path):
    names = [f"{'abcdefghij'}{letter}_{start:06d}.mp4" for letter in "0123456789" for start in range(0, 100, 10)]
    for name in names:
        (tmp_path / name).touch()
    found = find_videos(tmp_path)
    by_video = {
        video: {source.split for source in found if video_of(source.id) == video} for video in {n[:11] for n in names}
    }
    assert all(len(splits) == 1 for splits in by_video.values())
    assert len({source.split for source in found}) > 1


def test_a_group_of_a_table_stays_together(tmp_path):
    table = tmp_path / "labels.csv"
    rows = [f"{n}.wav,dog,{'test' if n == 7 else ''},take{n % 4}" for n in range(40)]
    table.write_text("\n".join(["audio,label,split,group", *rows]))
    by_group: dict[str, set[str]] = {}
    for number, source in enumerate(find_audio(tmp_path, table)):
        by_group.setdefault(f"take{number % 4}", set()).add(source.split)
    assert by_group["take3"] == {"test"}  # stated for one of them
    assert all(by_group[f"take{n}"] == {hashed_split(f"take{n}")} for n in range(3))


def test_a_group_in_two_splits_is_refused(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("audio,label,split,group\na.wav,dog,train,x\nb.wav,dog,,x\nc.wav,dog,test,x\n")
    with pytest.raises(InputError, match="line 4: the group 'x' is in train and in test; give it one split"):
        find_audio(tmp_path, table)


def test_duplicates_are_the_same_part_of_the_same_bytes(tmp_path):
    for name, data in {"a": b"one", "b": b"two", "c": b"one", "d": b"one" * 9, "e": b"one"}.items():
        (tmp_path / name).write_bytes(data)
    first, second = Segment(0.0, 10.0), Segment(10.0, 10.0)
    parts = [("a", first), ("b", first), ("c", first), ("d", first), ("a", second), ("e", first), ("gone", first)]
    inputs = [Input(f"{n}-{name}", tmp_path / name, "", "train", part) for n, (name, part) in enumerate(parts)]
    assert [source.duplicate_of for source in mark_duplicates(inputs)] == ["", "", "0-a", "", "", "0-a", ""]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff", ".m4a", ".mp4"])
def test_recordings_become_records_without_pictures(tmp_path, suffix):
    import soundfile

    path = tmp_path / f"a{suffix}"
    if suffix in (".m4a", ".mp4"):
        make_video(path.with_suffix(".mp4"), tone(2.0)).rename(path)
    else:
        soundfile.write(path, tone(2.0).T, 44_100)
    record = read_audio(Input("a", path, "dog", "train"))
    assert isinstance(record, Record), record
    assert (record.label, record.frames, record.num_frames) == ("dog", (), 0)
    assert abs(len(record.audio) - 32_000) < 1_200
    assert np.abs(record.audio[8_000:24_000]).max() / 32768 == pytest.approx(0.4, abs=0.02)


def test_a_recording_that_was_cut_off_is_undecodable(tmp_path):
    import soundfile

    noise = np.random.default_rng(0).normal(0, 0.1, 64_000)
    for name in ("a.wav", "a.flac", "a.aiff"):
        soundfile.write(tmp_path / name, noise, 16_000)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        outcome = read_audio(Input(name, tmp_path / name, "", "train"))
        assert isinstance(outcome, Rejection), name
        assert outcome.reason == "undecodable"


@pytest.mark.parametrize("stated", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_wav_file_that_was_written_to_a_pipe_ends_with_its_file(tmp_path, stated):
    path = write_wav(tmp_path / "a.wav", 2.0)
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = stated.to_bytes(4, "little")
    path.write_bytes(data)
    record = read_audio(Input("a", path, "", "train"))
    assert isinstance(record, Record), record
    assert len(record.audio) == 32_000


def test_matroska_sound_that_was_cut_off_is_undecodable(tmp_path):
    path = make_video(tmp_path / "a.mkv", sound := tone(4.0))
    assert len(read_audio(Input("a", path, "", "train")).audio) == len(sound[0]) * 16_000 // 44_100
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    outcome = read_audio(Input("a", path, "", "train"))
    assert isinstance(outcome, Rejection), outcome
    assert outcome.reason == "undecodable"


def test_vggsound_takes_whole_and_cut_videos(tmp_path):
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    whole = make_video(folder / "sub" / "wholevideo0.mkv", sweep(14.0, 16_000), grey_pictures(35), rate=16_000, fps=2)
    make_video(folder / "cutoutvideo_000030.mp4", tone(10.0), grey_pictures(100))
    table = tmp_path / "vggsound.csv"
    rows = [
        'wholevideo0,3,"dog barking, howling",train',
        "cutoutvideo,30,playing harp,test",
        "gonegonegon,5,rain,train",
    ]
    table.write_text("\n".join([*rows, rows[0]]) + "\n")
    inputs = find_vggsound(table, folder, validation_share=0.0)
    assert [source.id for source in inputs[:3]] == ["wholevideo0_000003", "cutoutvideo_000030", "gonegonegon_000005"]
    write_records(inputs, read_video, tmp_path / "out", run=HERE, max_rejected=0.5)
    ledger = read_ledger(tmp_path / "out" / "ledger.jsonl")
    assert [line.reason for line in ledger] == ["", "", "missing", "duplicate"]
    assert ledger[3].detail == "it is listed again"
    assert [line.split for line in ledger[:3]] == ["train", "test", "train"]
    assert ledger[0].label == "dog barking, howling"
    assert (ledger[0].duration_seconds, ledger[0].num_frames) == (10.0, 10)
    record = RecordSet(tmp_path / "out").split("train")[0]
    assert_same_sound(record.audio, read_audio(Input("whole", whole, "", "train")).audio, 48_000)
    levels = [decode_frame(jpeg).mean() for jpeg in record.frames]
    np.testing.assert_allclose(levels, [20 + 7 * 2 * (3 + i) + 7 for i in range(10)], atol=3.4)


def test_vggsound_holds_out_some_training_videos_for_validation(tmp_path):
    rows = [f"video{n // 2:06d},{n % 2 * 10},rain,{'test' if n % 10 < 2 else 'train'}" for n in range(2_000)]
    (tmp_path / "vggsound.csv").write_text("\n".join(rows))
    inputs = find_vggsound(tmp_path / "vggsound.csv", tmp_path)
    splits = [source.split for source in inputs]
    assert splits.count("test") == 400
    assert 10 < splits.count("validation") < 60
    assert all(a.split == b.split for a, b in zip(inputs[::2], inputs[1::2], strict=True))


@pytest.mark.parametrize("row", ["id,dog,10,train", "id,10,dog", "id,10,dog,dev", "a/b,10,dog,train", ",10,dog,train"])
def test_a_list_that_is_not_vggsounds_is_refused(tmp_path, row):
    (tmp_path / "list.csv").write_text(f"good,10,dog,train\n{row}\n")
    with pytest.raises(InputError, match=r"list\.csv, line 2: expected a YouTube id, start second, label"):
        find_vggsound(tmp_path / "list.csv", tmp_path)


def test_music_solos_and_duets(tmp_path):
    solos, duets = tmp_path / "MUSIC_solo_videos.json", tmp_path / "MUSIC_duet_videos.json"
    solos.write_text(json.dumps({"version": 1.0, "videos": {"acoustic_guitar": ["aaa", "bbb"], "tuba": ["ccc"]}}))
    duets.write_text(json.dumps({"version": 1.0, "videos": {"acoustic_guitar violin": ["ddd", "aaa"]}}))
    (tmp_path / "solo" / "tuba").mkdir(parents=True)
    (tmp_path / "solo" / "tuba" / "ccc.webm").touch()
    inputs = find_music([solos, duets], tmp_path)
    assert [(source.id, source.label) for source in inputs] == [
        ("aaa", "acoustic guitar"),
        ("bbb", "acoustic guitar"),
        ("ccc", "tuba"),
        ("ddd", "acoustic guitar and violin"),
    ]
    assert inputs[2].path == tmp_path / "solo" / "tuba" / "ccc.webm"
    assert not inputs[0].path.exists()
    assert all(source.split == hashed_split(source.id) for source in inputs)


def test_of_two_files_of_one_name_the_first_is_used_and_told(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps({"videos": {"tuba": ["ccc"]}}))
    for name in ("a/ccc.webm", "b/ccc.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.warns(InputWarning, match=r"1 files have the name of another, .*a/ccc\.webm, not .*b/ccc\.mp4"):
        (source,) = find_music([tmp_path / "list.json"], tmp_path)
    assert source.path == tmp_path / "a" / "ccc.webm"


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"videos": 3}', '{"videos": {"tuba": [7]}}', '{"videos": {"a": ["../b"]}}', "no"]
)
def test_a_list_that_is_not_musics_is_refused(tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(InputError, match=r"list\.json is not a list of MUSIC"):
        find_music([tmp_path / "list.json"], tmp_path)


def make_official(root: Path, name: str, num_pictures: int, seconds: float) -> str:
    write_wav(root / "audio" / f"{name}.wav", seconds)
    folder = root / "frames" / name
    folder.mkdir(parents=True)
    for number in range(num_pictures):
        picture = Image.new("RGB", (320, 240), (20 * number + 10,) * 3)
        picture.save(folder / f"{number + 1:06d}.jpg", quality=95)
    return f"data/audio/{name}.wav,data/frames/{name},{num_pictures}"


def test_official_lists(tmp_path):
    root = tmp_path / "root"
    rows = {name: make_official(root, name, 4, 4.2) for name in "abc"}
    (tmp_path / "train.csv").write_text(f"{rows['a']}\n{rows['b']}\n")
    (tmp_path / "music-val.csv").write_text(f"{rows['b']},acoustic_guitar\n")
    (tmp_path / "music-test.csv").write_text(f"{rows['c']},tuba\ndata/audio/gone.wav,data/frames/gone,3,tuba\n")
    (root / "frames" / "c" / "000003.jpg").unlink()
    lists = [tmp_path / name for name in ("train.csv", "music-val.csv", "music-test.csv")]
    write_records(find_official(lists, root, "data"), read_official, tmp_path / "out", run=HERE, max_rejected=0.7)
    lines = {(line.input, line.split): line for line in read_ledger(tmp_path / "out" / "ledger.jsonl")}
    found = {key: (line.reason, line.detail, line.label) for key, line in lines.items()}
    assert found == {
        ("audio/c.wav", "test"): ("missing", "there is no picture 000003.jpg", "tuba"),
        ("audio/gone.wav", "test"): ("missing", "there is no such file", "tuba"),
        ("audio/b.wav", "validation"): ("", "", "acoustic_guitar"),
        ("audio/a.wav", "train"): ("", "", ""),
        ("audio/b.wav", "train"): ("duplicate", "it is listed again", ""),
    }
    record = RecordSet(tmp_path / "out").split("train")[0]
    assert len(record.audio) == 67_200
    levels = [decode_frame(jpeg).mean() for jpeg in record.frames]
    np.testing.assert_allclose(levels, [10, 30, 50, 70], atol=1)
    assert not record.still_picture


@pytest.mark.parametrize(
    ("name", "row", "options", "words"),
    [
        ("list.csv", "a.wav,a,3,dog", {}, "The split cannot be read from the name .*; give --split"),
        ("train-test.csv", "a.wav,a,3,dog", {}, "The split cannot be read from the name"),
        ("test.csv", "a.wav,a,many,dog", {}, "line 1: expected a number of pictures"),
        ("test.csv", "a.wav,a", {}, "line 1: expected a number of pictures"),
        ("test.csv", "../a.wav,a,3", {}, "line 1: '../a.wav' is not a path below"),
        ("test.csv", "/data/a.wav,a,3", {}, "line 1: '/data/a.wav' is not a path below"),
        ("test.csv", "data/a.wav,a,3", {"prefix": "data"}, "line 1: 'a' does not begin with data"),
        ("test.csv", "", {}, "is empty"),
    ],
)
def test_official_lists_that_are_refused(tmp_path, name, row, options, words):
    (tmp_path / name).write_text(row)
    with pytest.raises(InputError, match=words):
        find_official([tmp_path / name], tmp_path, **options)


@pytest.mark.slow
def test_the_real_lists_of_the_official_code_are_read(real_data, tmp_path):
    folder = real_data / "official-splits"
    for path in folder.glob("*.csv"):
        if path.name.startswith("pairs-"):  # pairs of clips, of another form
            continue
        inputs = find_official([path], tmp_path, split="test")
        assert len(inputs) == len(path.read_text().splitlines())
        assert all(source.label and source.frames and source.frames.count > 0 for source in inputs)


@pytest.mark.slow
def test_real_recordings_with_labels_are_all_accounted_for(real_data, tmp_path):
    folder = real_data / "esc10"
    inputs = find_audio(folder, folder / "index.csv")
    manifest = write_records(inputs, read_audio, tmp_path / "out", run=PoolRunner(2), audio_encoding="flac")
    assert manifest.counts == {"inputs": 320, "accepted": 320, "rejected": 0}
    assert len(manifest.labels) == 10
    assert set(manifest.labels.values()) == {32}
