"""Held-out mixtures and their scores."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_model import write_random_model
from clipsep_jax.data.clips import ClipReader
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.demo.demo import separate_examples
from clipsep_jax.demo.page import write_report as write_demo_report
from clipsep_jax.encoders.clip import ClipEncoder
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.estimates import Ways
from clipsep_jax.evaluation.scores import Evaluation, evaluation_of
from clipsep_jax.evaluation.tables import table, write_scores
from clipsep_jax.metrics import METRICS, Metric, sdr
from clipsep_jax.separation.separator import Separator
from clipsep_jax.training.sweep_report import summarise_member, text_table
from clipsep_jax.training.sweep_report import write_report as write_sweep_report
from tests.small import small_config

OLD = Path(__file__).parents[1] / "old_files"


@pytest.fixture(scope="module")
def evaluation(trained, clip_records) -> Evaluation:
    return evaluation_of(Separator.load(trained), RecordSet(clip_records), "test", num_mixtures=10)


@pytest.mark.slow
def test_scores_are_those_of_the_estimates(evaluation):
    mixtures = evaluation.reader.read(evaluation.protocol.mixtures[:8])
    found, faults = zip(*evaluation.scores(mixtures), strict=True)
    assert not any(faults)
    scores = {way: np.array([each[way]["sdr"] for each in found]) for way in found[0]}
    of_queries = {"text", "image", "text_and_image", "wrong_query", "wrong_image_query"}
    assert set(scores) == {"mixture", "ideal_binary_mask", "ideal_ratio_mask"} | of_queries
    target, mixture = mixtures.sources[:, 0, :1792], mixtures.mixture[:, :1792]
    expected = 10 * np.log10((target**2).sum(-1) / ((target - mixture) ** 2).sum(-1))
    np.testing.assert_allclose(scores["mixture"], expected, rtol=1e-3, atol=1e-3)
    assert (scores["ideal_binary_mask"] > scores["mixture"]).all()
    assert (scores["ideal_ratio_mask"] > scores["mixture"]).all()
    text, image = (evaluation.model.queries(mixtures, kind) for kind in ("text", "image"))
    for way, queries, source in (("wrong_query", text, 1), ("text_and_image", (text + image) / 2, 0)):
        stems = np.asarray(evaluation.model.separator.separate_clips(mixtures.mixture, queries))
        np.testing.assert_allclose(scores[way], sdr(target, stems[:, source, :1792]), rtol=1e-4, atol=1e-4)


def plain_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / ((reference - estimate) ** 2).sum()))


def with_sources(separator: Separator, num_sources: int) -> Separator:
    separator.config = separator.config.replace(data={"num_sources": num_sources})
    return separator


@pytest.mark.slow
def test_mixtures_of_three_are_scored_as_by_a_plain_loop(trained, clip_records):
    separator = with_sources(Separator.load(trained), 3)
    evaluation = evaluation_of(separator, RecordSet(clip_records), "test", num_mixtures=3)
    summary, rows = evaluation.run(progress=False)
    wrong = []
    for mixture, row in zip(evaluation.protocol.mixtures, rows, strict=True):
        records = [clip.split[clip.number] for clip in mixture.clips]
        read = ClipReader(separator.config.data, separator.config.spectrogram, None)
        sources = [read(record, None)["sources"].astype(np.float32) / 32768 / 3 for record in records]
        target, mixed = sources[0][:1792], sum(sources)
        prompts = [f"a photo of {record.label}" for record in records]
        stems = np.asarray(separator.separate_clips(mixed[None], separator.embed(prompts)[None]))[0, :, :1792]
        assert [row["target"], *row["interferers"]] == [record.id for record in records]
        assert row["mixture"] == pytest.approx(plain_sdr(target, mixed[:1792]), abs=1e-3)
        assert row["text"] == pytest.approx(plain_sdr(target, stems[0]), abs=1e-3)
        wrong.append(np.mean([plain_sdr(target, stem) for stem in stems[1:]]))
        assert row["wrong_query"] == pytest.approx(wrong[-1], abs=1e-3)
        assert row["ideal_binary_mask"] > row["mixture"]
    assert summary["wrong_query"]["sdr_mean"] == pytest.approx(np.mean(wrong), abs=1e-3)


@pytest.mark.slow
def test_the_best_of_three_masks_is_scored(tmp_path, clip_records):
    config = small_config(clip_records).replace(
        query={"kind": "none"}, data={"num_sources": 3}, model={"num_noise_heads": 0, "num_learned_queries": 3}
    )
    config = config.replace(objective={"name": "permutation_invariant"})
    separator = Separator.load(write_random_model(tmp_path / "model", config))
    evaluation = evaluation_of(separator, RecordSet(clip_records), "test", num_mixtures=2)
    mixtures = evaluation.reader.read(evaluation.protocol.mixtures)
    stems = np.asarray(separator.separate_clips(mixtures.mixture, None))
    assert stems.shape[:2] == (2, 3)
    best = [
        max(plain_sdr(sources[0, :1792], stem) for stem in some[:, :1792])
        for sources, some in zip(mixtures.sources, stems, strict=True)
    ]
    found = [scores["best_mask"]["sdr"] for scores, _ in evaluation.scores(mixtures)]
    np.testing.assert_allclose(found, best, atol=1e-3)


def test_mixtures_with_a_silent_source_are_left_out(trained, clip_records, monkeypatch):
    """Also where another interferer is heard."""
    evaluation = evaluation_of(
        with_sources(Separator.load(trained), 3), RecordSet(clip_records), "test", num_mixtures=3
    )
    read = evaluation.reader.read

    def with_silence(held_out, num_real):
        mixtures = read(held_out, num_real)
        mixtures.sources[1, 2] = 0
        return mixtures

    monkeypatch.setattr(evaluation.reader, "read", with_silence)
    summary, rows = evaluation.run(progress=False)
    assert len(rows) == 3
    assert summary["skipped"] == {"num": 1}
    assert summary["text"]["sdr_mean"] == pytest.approx((rows[0]["text"] + rows[2]["text"]) / 2, rel=1e-5)


def test_a_model_of_one_source_is_scored_on_two(trained, clip_records):
    evaluation = evaluation_of(with_sources(Separator.load(trained), 1), RecordSet(clip_records), "test", 2)
    assert [len(mixture.clips) for mixture in evaluation.protocol.mixtures] == [2, 2]


def test_every_query_is_embedded_once(trained, clip_records, monkeypatch):
    """Texts once per label; pictures, if the records hold no embeddings of this encoder, once per clip."""
    texts, pictures = [], []
    embed_text, embed_frames = ClipEncoder.embed_text, ClipEncoder.embed_frames
    monkeypatch.setattr(ClipEncoder, "embed_text", lambda e, some: texts.extend(some) or embed_text(e, some))
    monkeypatch.setattr(ClipEncoder, "embed_frames", lambda e, some: pictures.append(some) or embed_frames(e, some))
    records = RecordSet(clip_records)
    expected, _ = evaluation_of(Separator.load(trained), records, "test", num_mixtures=10).run(progress=False)
    assert sorted(texts) == ["a photo of buzz", "a photo of hiss", "a photo of hum"]
    assert pictures == []
    records.encoder = replace(records.encoder, sha256="0" * 64)
    summary, _ = evaluation_of(Separator.load(trained), records, "test", num_mixtures=10).run(progress=False)
    assert len(pictures) == 6
    assert summary["image"]["sdr_mean"] == pytest.approx(expected["image"]["sdr_mean"], abs=1e-3)


def loudness(sources, estimates):
    return {"loudness": 10 * np.log10((estimates**2).sum(-1))}


@pytest.mark.slow
def test_a_metric_that_is_added_is_shown_everywhere(trained, clip_records, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "loudness", Metric("Loudness", "dB", loudness))
    ways = Ways(metrics=("sdr", "loudness"))
    evaluation = evaluation_of(Separator.load(trained), RecordSet(clip_records), "test", num_mixtures=10, ways=ways)
    summary, rows = evaluation.run(progress=False)
    mean = np.mean([row["loudness_image"] for row in rows])
    assert summary["image"]["loudness_mean"] == pytest.approx(mean, rel=1e-5)
    assert summary["image"]["sdr_mean"] != summary["image"]["loudness_mean"]
    lines = table(summary).splitlines()
    assert [line.split()[:3] for line in lines if line.startswith("estimate")] == [
        ["estimate", "SDR", "mean"],
        ["estimate", "Loudness", "mean"],
    ]
    assert [float(line.split()[1]) for line in lines if line.startswith("image ")] == [
        pytest.approx(summary["image"][name], abs=0.006) for name in ("sdr_mean", "loudness_mean")
    ]
    check_sweep_report(trained, summary, tmp_path / "sweep")
    check_demo_report(trained, evaluation, summary, tmp_path / "demo")


def check_sweep_report(trained: Path, summary: dict, folder: Path) -> None:
    shutil.copytree(trained, folder / "gamma=0.5")
    row = summarise_member(folder / "gamma=0.5", {"objective.gamma": 0.5}, summary)
    assert (row["sdr_image"], row["sdr_image_sem"]) == (summary["image"]["sdr_mean"], summary["image"]["sdr_sem"])
    assert row["loudness_image"] == summary["image"]["loudness_mean"]
    assert row["loudness_image_sem"] == summary["image"]["loudness_sem"]
    assert "loudness image" in text_table([row])
    page = write_sweep_report(folder, ["objective.gamma"], [row]).read_text()
    assert "loudness image" in page
    assert "loudness.png" in page
    assert "Loudness (in dB)" in page


def check_demo_report(trained: Path, evaluation: Evaluation, summary: dict, out: Path) -> None:
    shutil.copytree(trained, out / "run")
    examples = separate_examples(evaluation, out / "audio")
    page = write_demo_report(out, summary | {"seconds": {"total": 1.0}}, examples, "sounds").read_text()
    assert "Loudness mean ± s.e." in page
    assert f"{summary['image']['loudness_mean']:.2f} ± {summary['image']['loudness_sem']:.2f}" in page
    assert f"<p>Loudness: mixture {examples[0].scores['loudness']['mixture']:.1f} dB" in page


def test_run_scores_every_mixture_once(evaluation, tmp_path):
    summary, rows = evaluation.run(progress=False)
    assert summary["text"]["num"] + summary["skipped"]["num"] == len(rows) == 10
    assert summary["image"]["sdr_mean"] == pytest.approx(np.mean([row["image"] for row in rows]), rel=1e-5)
    path = write_scores(tmp_path / "scores", summary, rows)
    assert json.loads(path.read_text()) == summary
    assert len((tmp_path / "scores" / "mixtures.jsonl").read_text().splitlines()) == 10
    assert "wrong_query" in table(summary)
    by_label = summary["by_label"]
    assert sum(line["mixtures"] for line in by_label.values()) == 10
    of_buzz = [row["text"] for row in rows if row["target_label"] == "buzz"]
    assert by_label["buzz"]["sdr_means"]["text"] == pytest.approx(np.mean(of_buzz))


def test_scores_by_label_do_not_hide_labels():
    """A way of estimation is called "label", too."""
    evaluation = evaluation_of(Separator.load(OLD / "models" / "labelsep"), RecordSet(OLD / "records"), "test", 3)
    summary, rows = evaluation.run(progress=False)
    labels = {entry.label for entry in evaluation.protocol.mixtures[0].clips[0].split.entries}
    assert {row["target_label"] for row in rows} <= labels
    assert all(isinstance(row["label"], float) for row in rows)
    assert set(summary["by_label"]) <= labels


def test_unknown_split_is_refused(trained, clip_records):
    with pytest.raises(InputError, match="no split 'tset'; it has"):
        evaluation_of(Separator.load(trained), RecordSet(clip_records), "tset", 4)
