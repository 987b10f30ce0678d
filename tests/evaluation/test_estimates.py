"""Ways of estimation, each by a plain form; and which source a query finds."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.random_model import write_random_model
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.estimates import Ways, ceilings, is_oracle
from clipsep_jax.evaluation.retrieval import Retrieval
from clipsep_jax.evaluation.scores import Evaluation, evaluation_of
from clipsep_jax.metrics import sdr
from clipsep_jax.mixing import ratio_masks
from clipsep_jax.queries.prompts import EVALUATION_PROMPTS, PROMPT_ENSEMBLE
from clipsep_jax.separation.separator import Separator
from clipsep_jax.spectrogram import apply_masks, stft, warp
from tests.evaluation.clips import write_clips
from tests.small import small_config

OLD = Path(__file__).parents[1] / "old_files"
TEMPLATES = ("a photo of {}", "the sound of {}")


@pytest.fixture(scope="module")
def made(trained, clip_records):
    """An evaluation by some ways, its mixtures, and its estimates."""

    def make(**how):
        evaluation = evaluation_of(
            Separator.load(trained), RecordSet(clip_records), "test", num_mixtures=4, ways=Ways(**how)
        )
        mixtures = evaluation.reader.read(evaluation.protocol.mixtures)
        return evaluation, mixtures, evaluation.model.estimates(mixtures, evaluation.retrieval)

    return make


def through(evaluation: Evaluation, mixtures, masks) -> np.ndarray:
    """The target through masks, in plain words."""
    spectrum = stft(jnp.asarray(mixtures.mixture), evaluation.config.spectrogram)
    sounds = apply_masks(masks[:, :1], spectrum, evaluation.config.spectrogram, mixtures.sources.shape[-1])
    return np.asarray(sounds)


def masks_of(evaluation: Evaluation, mixtures, queries):
    logits = evaluation.model.separator.logits_of_clips(mixtures.mixture, queries)
    return jax.nn.sigmoid(logits.query), jax.nn.sigmoid(logits.noise)


def embedded(evaluation: Evaluation, mixtures, template: str) -> np.ndarray:
    return np.stack(
        [evaluation.model.separator.embed([template.replace("{}", label) for label in row]) for row in mixtures.labels]
    )


def test_the_official_ensemble_counts_its_second_prompt_twice():
    assert len(EVALUATION_PROMPTS) == 5
    assert EVALUATION_PROMPTS.count("a photo of the small {}.") == 2
    assert set(EVALUATION_PROMPTS) == set(PROMPT_ENSEMBLE)


def test_prompts_are_scored_alone_and_by_the_mean_of_their_embeddings(made):
    evaluation, mixtures, estimates = made(prompts=TEMPLATES, each_prompt=True)
    each = [embedded(evaluation, mixtures, template) for template in TEMPLATES]
    for name, queries in (("prompt_1", each[0]), ("prompt_2", each[1]), ("text", (each[0] + each[1]) / 2)):
        expected = through(evaluation, mixtures, masks_of(evaluation, mixtures, queries)[0])
        np.testing.assert_allclose(estimates[name], expected, atol=1e-6)
    assert not np.allclose(estimates["prompt_1"], estimates["prompt_2"], atol=1e-6)
    assert {"prompt_1", "prompt_2", "text", "image"} <= set(evaluation.retrieval.summary())


def test_binary_masks_are_cut_at_a_half(made):
    evaluation, mixtures, estimates = made(masks="binary")
    masks, _ = masks_of(evaluation, mixtures, evaluation.model.queries(mixtures, "text"))
    expected = through(evaluation, mixtures, (masks > 0.5).astype(masks.dtype))
    np.testing.assert_allclose(estimates["text"], expected, atol=1e-6)


def test_the_first_noise_mask_is_added_as_the_official_code_does(made):
    evaluation, mixtures, estimates = made(noise="first")
    masks, noise = masks_of(evaluation, mixtures, evaluation.model.queries(mixtures, "text"))
    expected = through(evaluation, mixtures, jnp.minimum(1, masks + noise[:, :1]))
    np.testing.assert_allclose(estimates["text"], expected, atol=1e-6)


def test_the_best_noise_mask_is_an_oracle(made):
    evaluation, mixtures, estimates = made(noise="oracle")
    masks, noise = masks_of(evaluation, mixtures, evaluation.model.queries(mixtures, "text"))
    added = [0 * noise[:, :1], noise[:, :1], noise[:, 1:2]]
    candidates = [through(evaluation, mixtures, jnp.minimum(1, masks[:, :1] + each))[:, 0] for each in added]
    best = np.max([sdr(mixtures.sources[:, 0], candidate) for candidate in candidates], axis=0)
    found = estimates["text_with_best_noise"]
    np.testing.assert_allclose(sdr(mixtures.sources[:, 0], found[:, 0]), best, atol=1e-3)
    assert is_oracle("text_with_best_noise")
    assert not is_oracle("text")


def test_what_a_model_lacks_is_refused(clip_records, tmp_path):
    config = small_config(clip_records).replace(
        query={"kind": "none"}, model={"num_noise_heads": 0, "num_learned_queries": 2}
    )
    config = config.replace(objective={"name": "permutation_invariant"})
    separator = Separator.load(write_random_model(tmp_path / "model", config))
    for ways, words in (
        (Ways(noise="first"), "has no noise masks; leave out --noise"),
        (Ways(prompts=TEMPLATES), "is not scored by texts here; leave out --prompt"),
    ):
        with pytest.raises(InputError, match=words):
            evaluation_of(separator, RecordSet(clip_records), "test", 2, ways=ways)


def test_labels_that_a_model_does_not_know_are_refused(tmp_path):
    records = write_clips(tmp_path / "records", [("a", "zebra"), ("b", "yak")])
    with pytest.raises(InputError, match=r"takes one of its \d+ labels as a query, not '(zebra|yak)'"):
        evaluation_of(Separator.load(OLD / "models" / "labelsep"), records, "test", 2).run(progress=False)


def test_ideal_masks_find_their_sources_and_swapped_ones_do_not(made):
    evaluation, mixtures, _ = made()
    spectrogram = evaluation.config.spectrogram
    masks = ratio_masks(warp(jnp.abs(stft(jnp.asarray(mixtures.sources), spectrogram)), spectrogram))
    for order, right in ((masks, 1.0), (masks[:, ::-1], 0.0)):
        retrieval = Retrieval(spectrogram)
        retrieval.add("way", mixtures, order)
        found = retrieval.summary()["way"]
        assert (found["right"], found["num"]) == (right, 8)
        own = [line["share"] for line in found["let_through"] if line["asked"] == line["heard"]]
        other = [line["share"] for line in found["let_through"] if line["asked"] != line["heard"]]
        assert (min(own) > max(other)) == (right == 1.0)


def test_ceilings_need_just_the_sources(made):
    evaluation, mixtures, _ = made()
    for name, sounds in ceilings(mixtures, evaluation.config.spectrogram).items():
        assert is_oracle(name)
        assert sounds.shape == (4, 1, mixtures.sources.shape[-1])
        assert (sdr(mixtures.sources[:, 0], sounds[:, 0]) > sdr(mixtures.sources[:, 0], mixtures.mixture)).all()
