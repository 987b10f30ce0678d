"""Streams of stems against a plain form in memory: the grid, chunks, cross-fades, channels, rates and targets."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import clipsep_jax
from clipsep_jax.errors import InputError
from clipsep_jax.separation.chunks import ChunkPlan
from clipsep_jax.separation.masking import Masking, Recipe, _of_targets
from clipsep_jax.separation.options import Options
from clipsep_jax.separation.rates import Queue, Resampler
from clipsep_jax.separation.separator import Separator
from clipsep_jax.separation.targets import Target
from clipsep_jax.spectrogram import istft, stft, unwarp
from tests.separation.inputs import noise, query

CHUNK = 2047


@pytest.fixture(scope="module")
def separator(trained) -> Separator:
    return clipsep_jax.load(trained)


def let_all_through(monkeypatch) -> None:
    """From now on all masks are ones."""

    def masks(self, chunks):
        return np.ones((len(chunks), self._recipe.plus.shape[1], 257, 8), np.float32)

    monkeypatch.setattr(Masking, "masks", masks)


def weights_of(plan: ChunkPlan, num_frames: int) -> list[tuple[int, np.ndarray]]:
    """Starts of the chunks of a recording, and their weights."""
    found, total = [], np.zeros(num_frames)
    for number in range(num_frames):
        if plan.fits(number, num_frames):
            found.append((number * plan.hop, plan.weights(number)))
            total[number * plan.hop :][: plan.num_frames] += plan.weights(number)
    start = num_frames - plan.num_frames
    return [*found, (start, 1 - total[start:])]


@pytest.mark.parametrize("fade", ["linear", "cosine"])
@pytest.mark.parametrize("overlap", [0.125, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("num_frames", [8, 256])
def test_weights_of_chunks_add_up_to_one(num_frames, overlap, fade):
    plan = ChunkPlan(num_frames, overlap=overlap, fade=fade)
    for length in (num_frames, num_frames + 1, *range(2 * num_frames, 4 * num_frames, 7)):
        total = np.zeros(length)
        for start, weights in weights_of(plan, length):
            assert (weights >= -1e-9).all()
            assert (weights <= 1 + 1e-9).all()
            assert not start or (np.abs(weights[: plan.edge]) < 1e-9).all()  # where the network knows least
            total[start : start + num_frames] += weights
        np.testing.assert_allclose(total, 1, atol=1e-9)
        assert weights_of(plan, length)[-1][0] + num_frames == length


def plain_stems(separator: Separator, waveform: np.ndarray, queries: list[np.ndarray], plan: ChunkPlan) -> np.ndarray:
    """All frames at once: masks chunk by chunk, cross-faded, on the spectrum of the whole recording."""
    config = separator.config.spectrogram
    spectrum = np.asarray(stft(jnp.asarray(waveform), config))
    magnitude = np.sqrt((np.abs(spectrum) ** 2).mean(axis=0))
    masks = np.zeros((len(queries), config.num_warped_bins, spectrum.shape[-1]))
    for start, weights in weights_of(plan, spectrum.shape[-1]):
        logits = separator.mask_logits(magnitude[:, start : start + plan.num_frames], np.stack(queries)).query
        masks[..., start : start + plan.num_frames] += weights / (1 + np.exp(-np.asarray(logits, np.float64)))
    linear = unwarp(jnp.asarray(masks, jnp.float32), config)[:, None]
    return np.asarray(istft(linear.astype(jnp.complex64) * jnp.asarray(spectrum)[None], config, waveform.shape[-1]))


@pytest.mark.parametrize("options", [Options(), Options(overlap=0.75, fade="cosine")])
@pytest.mark.parametrize(
    ("length", "block", "at_once"), [(2047, 5000, 1), (2048, 100, 4), (9_999, 1_000, 1), (20_000, 7_000, 3)]
)
def test_a_stream_equals_the_same_chunks_in_memory(separator, options, length, block, at_once):
    waveform, queries = noise(2, length), [query(0), query(1)]
    blocks = (waveform[:, start : start + block] for start in range(0, length, block))
    found = list(separator.stream(blocks, queries, options=options, chunks_at_once=at_once))
    stems = np.concatenate([part.stems for part in found], axis=-1)
    plan = ChunkPlan(8, overlap=options.overlap, fade=options.fade)
    np.testing.assert_allclose(stems, plain_stems(separator, waveform, queries, plan), atol=1e-6)
    residual = np.concatenate([part.residual for part in found], axis=-1)
    np.testing.assert_allclose(stems.sum(axis=0) + residual, waveform, atol=1e-6)


@pytest.mark.parametrize("length", [1, 100, CHUNK])
def test_a_sound_within_a_chunk_is_separated_as_a_clip(separator, length):
    waveform, queries = noise(length), np.stack([query(0), query(1)])
    whole = separator.separate_clips(np.resize(waveform, CHUNK)[None], queries[None])[0]
    np.testing.assert_allclose(separator.separate(waveform, list(queries)).stems, whole[:, :length], atol=1e-6)


@pytest.mark.parametrize("rate", [None, 8_000, 16_000, 22_050, 44_100, 192_000])
@pytest.mark.parametrize("length", [1, 10, 2047, 30_001])
def test_full_masks_give_the_sound_back_in_place(separator, monkeypatch, rate, length):
    let_all_through(monkeypatch)
    waveform = noise(2, length)
    separation = separator.separate(waveform, [query()], rate=rate, options=Options(above="keep"))
    assert separation.stems.shape == (1, 2, length)
    np.testing.assert_allclose(separation.stems[0], waveform, atol=2e-6)
    np.testing.assert_allclose(separation.residual, 0, atol=2e-6)


@pytest.mark.parametrize("above", ["keep", "mute", "scale"])
@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_stems_and_residual_add_up_at_any_rate(separator, rate, above):
    waveform = noise(2, 40_000)
    separation = separator.separate(waveform, [query(0), query(1)], rate=rate, options=Options(above=above))
    assert separation.stems.shape == (2, 2, 40_000)
    np.testing.assert_allclose(separation.stems.sum(axis=0) + separation.residual, waveform, atol=1e-6)


def tone(hz: float, rate: int, length: int) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hz * np.arange(length) / rate)).astype(np.float32)


def test_the_bands_above_the_models_are_kept_muted_or_scaled(separator, monkeypatch):
    rate, length = 48_000, 96_000
    high = tone(15_000, rate, length)
    let_all_through(monkeypatch)
    middle = slice(10_000, -10_000)
    for above, wanted in (("keep", 1.0), ("mute", 0.0)):
        stem = separator.separate(high, [query()], rate=rate, options=Options(above=above)).stems[0]
        np.testing.assert_allclose(stem[middle], wanted * high[middle], atol=1e-3)
    monkeypatch.setattr(Masking, "masks", lambda self, chunks: np.full((len(chunks), 1, 257, 8), 0.25, np.float32))
    both = high + tone(6_000, rate, length)
    stem = separator.separate(both, [query()], rate=rate).stems[0]
    np.testing.assert_allclose(stem[middle], 0.25 * both[middle], atol=1e-3)


def test_blocks_of_any_size_resample_alike():
    waveform = noise(2, 10_000)
    whole = Resampler(44_100, 16_000)
    expected = np.concatenate([whole(waveform), whole(waveform[:, :0], last=True)], axis=-1)
    stream = Resampler(44_100, 16_000)
    parts = [stream(waveform[:, start : start + 333]) for start in range(0, 10_000, 333)]
    found = np.concatenate([*parts, stream(waveform[:, :0], last=True)], axis=-1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_queue_gives_what_it_took():
    queue = Queue()
    for start in (0, 3, 7):
        queue.add(np.arange(start, start + 4)[None].astype(np.float32))
    assert queue.length == 12
    np.testing.assert_array_equal(queue.take(5), [[0, 1, 2, 3, 3]])
    queue.fill(9)
    np.testing.assert_array_equal(queue.take(9), [[4, 5, 6, 7, 8, 9, 10, 0, 0]])


def test_channels_that_cancel_each_other_out_are_separated(separator):
    one = noise(9_000)
    alone = separator.separate(one, [query()]).stems
    assert np.abs(alone).max() > 0.01
    opposite = separator.separate(np.stack([one, -one]), [query()]).stems
    np.testing.assert_allclose(opposite[:, 0], alone, atol=1e-6)
    np.testing.assert_allclose(opposite[:, 1], -alone, atol=1e-6)


def test_digital_silence_stays_silent(separator):
    waveform = noise(2, 40_000)
    waveform[:, 10_000:30_000] = 0
    for rate in (16_000, 44_100):
        separation = separator.separate(waveform, [query()], rate=rate)
        for sound in (separation.stems, separation.residual):
            assert np.abs(sound[..., 14_000:26_000]).max() < 1e-15  # resampling rounds


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_nothing_waits_longer_than_the_latency(separator, at_once, rate):
    stream = separator.open_stream([query()], rate=rate, chunks_at_once=at_once)
    chunk = 8 * 256 / 16_000
    if at_once == 1:
        assert stream.latency_seconds <= chunk + 0.032 + 0.1 * (rate != 16_000)  # and the window of a frame
    pushed = given = 0
    longest = 0
    for _ in range(400):
        given += sum(part.residual.shape[-1] for part in stream.push(noise(100)))
        pushed += 100
        longest = max(longest, pushed - given)
    assert longest <= stream.latency_seconds * rate + 100  # a block
    assert longest >= (stream.latency_seconds - 0.1) * rate
    assert given + sum(part.residual.shape[-1] for part in stream.finish()) == pushed


def test_a_reset_stream_begins_anew(separator):
    stream = separator.open_stream([query()], rate=44_100)
    wanted = separator.separate(noise(20_000), [query()], rate=44_100).stems
    list(stream.push(noise(5_000)))
    stream.reset()
    for _ in range(2):  # `finish` resets too
        parts = [*stream.push(noise(20_000)), *stream.finish()]
        np.testing.assert_allclose(np.concatenate([part.stems for part in parts], axis=-1), wanted, atol=1e-6)


def test_blocks_of_other_shapes_and_values_are_refused(separator):
    stream = separator.open_stream([query()])
    list(stream.push(noise(2, 100)))
    with pytest.raises(InputError, match="the same for all blocks"):
        list(stream.push(noise(100)))
    with pytest.raises(InputError, match="not finite"):
        list(stream.push(np.full((2, 10), np.inf, np.float32)))
    with pytest.raises((InputError, TypeCheckError)):
        list(separator.open_stream([query()]).push(noise(1, 2, 3)))


def as_written(masks: np.ndarray, recipe: Recipe) -> np.ndarray:
    """The masks of targets, one by one."""
    targets = []
    for plus, minus in zip(recipe.plus, recipe.minus, strict=True):
        mask = np.minimum(1, sum(weight * one for weight, one in zip(plus, masks, strict=True)))
        if minus.any():
            other = np.minimum(1, sum(weight * one for weight, one in zip(minus, masks, strict=True)))
            rest = np.maximum(0, 1 - mask - other)
            mask = mask**2 / (mask**2 + other**2 + rest**2)
        targets.append(mask)
    if recipe.form == "binary":
        return np.array([mask > 0.5 for mask in targets], np.float32)
    if recipe.form == "wiener":
        rest = np.maximum(0, 1 - sum(targets))
        return np.array([mask**2 / (sum(one**2 for one in targets) + rest**2) for mask in targets])
    return np.array(targets)


@pytest.mark.parametrize("form", ["soft", "binary", "wiener"])
def test_masks_of_targets_are_sums_without_others(form):
    masks = np.random.default_rng(0).uniform(size=(3, 5, 6)).astype(np.float32)
    recipe = Recipe(np.float32([[1, 1, 0], [0, 0, 1]]), np.float32([[0, 0, 1], [0, 0, 0]]), form)
    found = _of_targets(jnp.asarray(masks), jnp.asarray(recipe.plus), jnp.asarray(recipe.minus), form)
    np.testing.assert_allclose(found, as_written(masks, recipe), atol=1e-6)
    if form == "wiener":
        assert (np.asarray(found).sum(axis=0) <= 1 + 1e-6).all()


def test_targets_sum_and_leave_out_queries(separator):
    waveform, (a, b) = noise(9_000), (query(0), query(1))
    alone = separator.separate(waveform, [a, b]).stems
    summed, without, same = separator.separate(
        waveform, [Target((a, b)), Target((a,), without=(a, b)), Target((a,))]
    ).stems
    np.testing.assert_allclose(same, alone[0], atol=1e-6)
    assert np.sum(summed**2) > np.sum(alone**2, axis=-1).max()
    assert np.sum(without**2) < np.sum(alone[0] ** 2)


def test_a_span_limits_a_target(separator):
    waveform = noise(32_000)
    whole, part = separator.separate(waveform, [Target((query(),)), Target((query(),), span=(0.5, 1.25))]).stems
    assert not part[: 8_000 - 1024].any()
    assert not part[20_000 + 1024 :].any()
    np.testing.assert_allclose(part[8_000 + 1024 : 20_000 - 1024], whole[8_000 + 1024 : 20_000 - 1024], atol=1e-6)
    with pytest.raises(InputError, match="from a second to a later one"):
        Target(("a",), span=(3.0, 2.0))


@pytest.mark.parametrize("above", ["keep", "scale"])
def test_a_span_limits_the_band_above_too(separator, above):
    waveform = noise(96_000)
    target = Target((query(),), span=(0.5, 1.0))
    (stem,) = separator.separate(waveform, [target], rate=48_000, options=Options(above=above)).stems
    assert np.abs(stem[: 24_000 - 4_000]).max() < 1e-6
    assert np.abs(stem[48_000 + 4_000 :]).max() < 1e-6
    assert np.abs(stem[28_000:44_000]).max() > 0.01


def test_a_short_sound_has_the_seconds_that_it_lasts(separator):
    for length, seconds in ((100, 1), (2_047, 1), (20_000, 1), (24_500, 2)):
        assert separator.separate(noise(length), [query()]).presence.shape == (1, seconds)


def test_noise_masks_give_stems_on_request(separator):
    waveform = noise(9_000)
    num_heads = separator.config.model.num_noise_heads
    assert num_heads
    with_noise = separator.separate(waveform, [query()], options=Options(noise=True)).stems
    assert len(with_noise) == 1 + num_heads
    np.testing.assert_allclose(with_noise[:1], separator.separate(waveform, [query()]).stems, atol=1e-6)


def test_masks_without_names_go_on_in_the_order_of_the_chunk_before(separator):
    masks = np.random.default_rng(0).uniform(size=(3, 16, 8)).astype(np.float32)
    recipe = Recipe(np.eye(3, dtype=np.float32), np.zeros((3, 3), np.float32))
    network, config = separator._network, separator.config.spectrogram
    masking = Masking(network, None, config, recipe, ordered=False)
    mixed = masks[[2, 0, 1]] + 0.01
    assert masking.order(masks, mixed) == [1, 2, 0]
    np.testing.assert_allclose(mixed[masking.order(masks, mixed)], masks, atol=0.02)
    assert list(Masking(network, None, config, recipe, ordered=True).order(masks, mixed)) == [0, 1, 2]
