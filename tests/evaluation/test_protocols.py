"""Which mixtures are scored."""

from dataclasses import replace

import numpy as np
import pytest

from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.protocols import OFFICIAL, PAIRS_FOLDER, draw_mixtures, drawn_protocol, listed_protocol
from clipsep_jax.files import sha256_of
from tests.evaluation.clips import write_clips


@pytest.fixture(scope="module")
def entries(clip_records):
    return RecordSet(clip_records).split("test").entries


@pytest.mark.parametrize("num_sources", [2, 3])
def test_mixtures_are_seeded_and_of_different_labels(entries, num_sources):
    drawn = draw_mixtures(entries, 20, num_sources, seed=3)
    assert drawn == draw_mixtures(entries, 20, num_sources, seed=3)
    assert drawn != draw_mixtures(entries, 20, num_sources, seed=4)
    assert all(len({entries[clip].label for clip in clips}) == num_sources for clips in drawn)
    assert {clips[0] for clips in drawn[: len(entries)]} == set(range(len(entries)))


def test_clips_without_a_label_differ_from_all_others(entries):
    entries = [replace(entry, label="") if i < 2 else entry for i, entry in enumerate(entries)]
    drawn = draw_mixtures(entries, 20, 5, seed=0)
    assert all({0, 1} < set(clips) and len(set(clips)) == 5 for clips in drawn)


def test_too_few_labels_are_refused(entries):
    words = "A mixture of 4 needs clips of as many labels, but the split has only 'buzz', 'hiss', 'hum'"
    with pytest.raises(InputError, match=words):
        draw_mixtures(entries, 1, 4, seed=0)


def many(entries):
    return [replace(entries[i % 6], id=f"clip{i}", label=f"label {i % 7}") for i in range(60)]


@pytest.mark.parametrize("num_sources", [2, 3])
def test_a_clip_that_is_taken_away_changes_only_its_own_mixtures(entries, num_sources):
    entries = many(entries)

    def drawn(entries, number=60):
        return {
            tuple(entries[clip].id for clip in clips) for clips in draw_mixtures(entries, number, num_sources, seed=0)
        }

    before = drawn(entries)
    for gone in range(0, 60, 7):
        after = drawn(entries[:gone] + entries[gone + 1 :], 59)
        kept = {ids for ids in before if f"clip{gone}" not in ids}
        assert kept <= after
        assert len(kept) >= 50


def test_no_mixture_comes_twice(entries):
    drawn = draw_mixtures(entries, 256, 2, seed=0)
    assert len(drawn) == len(set(drawn)) == 24  # of six clips, each with four of other labels


def test_interferers_are_spread(entries):
    drawn = draw_mixtures(many(entries), 60, 2, seed=0)
    assert len({clips[1] for clips in drawn}) > 30


def test_official_pairs_are_frozen():
    shas = {"music+": "4d395f0309e66e0b", "vggsound-clean+": "2a25ca2c4a740a52"}
    for name, file in OFFICIAL.items():
        assert sha256_of(PAIRS_FOLDER / file).startswith(shas[name])


OFFICIAL_CLIPS = {
    "targets": [("data/MUSIC/solo/audio/acoustic_guitar/ZeQPNWdFs_4.wav", "acoustic_guitar"), ("w81p5ty4OZc", "")],
    "interferers": [("vgg/1p8GXBIollA_000030", "child singing"), ("sbVM9JWv4ME_1.5_11.5.wav", "driving motorcycle")],
}


def test_listed_pairs_are_found_by_name_and_the_missing_ones_counted(tmp_path):
    sets = [write_clips(tmp_path / name, clips) for name, clips in OFFICIAL_CLIPS.items()]
    protocol = listed_protocol("music+", *sets)
    assert [mixture.ids for mixture in protocol.mixtures] == [
        (target, interferer)
        for (target, _), (interferer, _) in zip(OFFICIAL_CLIPS["targets"], OFFICIAL_CLIPS["interferers"], strict=True)
    ]
    (first, _), (second, _) = (mixture.clips for mixture in protocol.mixtures)
    assert (first.label, first.num_frames) == ("acoustic_guitar", 212)
    assert (second.label, second.num_frames) == ("violin", 131)  # by the list, which knows what the records do not
    assert protocol.num_listed == 46
    assert len(protocol.missing) == 79  # some interferers are listed twice
    assert str(protocol) == "2 of 46 pairs of music+ (sha256 4d395f0309e6)"


def test_a_list_of_ones_own_needs_just_ids(tmp_path):
    records = write_clips(tmp_path / "records", [("a", "dog"), ("b", "cat"), ("c", "cow")])
    path = tmp_path / "list.csv"
    path.write_text("interferer,target\nb,a\nnone,a\na,c\n")
    protocol = listed_protocol(f"pairs:{path}", records, records)
    assert [mixture.ids for mixture in protocol.mixtures] == [("a", "b"), ("c", "a")]
    assert [clip.label for clip in protocol.mixtures[0].clips] == ["dog", "cat"]
    assert protocol.missing == ("none",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("target\na\n", "lacks a column"),
        ("target,interferer\na,\n", "line 2: the column interferer is empty"),
        ("target,interferer,target_frames\na,b,many\n", "line 2: 'many' is not a number of pictures"),
        ("target,interferer\na,a\n", "line 2: a is mixed with itself"),
        ("target,interferer\ntwice,b\n", "line 2: twice is the name of one/twice.wav and two/twice"),
        ("target,interferer\nx,y\n", r"No pair of .* has both clips .* \(x is missing\)"),
    ],
)
def test_bad_lists_are_refused(tmp_path, text, words):
    clips = [("a", "dog"), ("b", "cat"), ("one/twice.wav", "cow"), ("two/twice", "pig")]
    records = write_clips(tmp_path / "records", clips)
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        listed_protocol(f"pairs:{tmp_path / 'list.csv'}", records, records)


def test_a_clip_of_a_like_name_is_no_other(tmp_path):
    """Eleven letters and a number look like a YouTube id with a time; an exact id comes before a name."""
    clips = [("guitar_solo_1", "guitar"), ("clip.1", "dog"), ("x/bird.wav", "bird"), ("bird", "owl")]
    records = write_clips(tmp_path / "records", clips)
    path = tmp_path / "list.csv"
    path.write_text("target,interferer\nguitar_solo_3,clip.1\nguitar_solo_1,clip.2\nbird,clip.1\n")
    protocol = listed_protocol(f"pairs:{path}", records, records)
    assert [mixture.ids for mixture in protocol.mixtures] == [("bird", "clip.1")]
    assert protocol.missing == ("guitar_solo_3", "clip.2")


def test_unknown_protocols_are_refused(tmp_path):
    records = write_clips(tmp_path / "records", [("a", "dog"), ("b", "cat")])
    with pytest.raises(InputError, match=r"no protocol 'music'; give music\+, vggsound-clean\+, drawn or pairs:FILE"):
        listed_protocol("music", records, records)
    with pytest.raises(InputError, match="no split 'tset'"):
        drawn_protocol(records, "tset", 2, 2)


def test_the_listed_number_of_pictures_sets_the_cut(tmp_path):
    """12 pictures: the centre is the sixth, so 5.5 s; a count from the duration would give 4.5 s."""
    from clipsep_jax.config import Config
    from clipsep_jax.evaluation.mixtures import MixtureReader

    records = write_clips(tmp_path / "records", [("a", "dog"), ("b", "cat")], seconds=10)
    path = tmp_path / "list.csv"
    path.write_text("target,interferer,target_frames,interferer_frames\na,b,12,10\n")
    protocol = listed_protocol(f"pairs:{path}", records, records)
    sources = MixtureReader(Config(), protocol, None).read(protocol.mixtures).sources[0] * 2 * 32768
    for source, clip, centre in zip(sources, protocol.mixtures[0].clips, (5.5, 4.5), strict=True):
        start = int(centre * 16000) - 32767
        expected = np.append(clip.split[clip.number].audio[start : start + 65534], 0)
        np.testing.assert_array_equal(source, expected)
