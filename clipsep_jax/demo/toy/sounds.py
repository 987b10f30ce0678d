"""Ten kinds of sounding objects, synthesised at 16 kHz.

They overlap in frequency, so timbre and rhythm distinguish them, not only the band. The pitch, tempo and timbre
of a clip are drawn by `Parameters`, so training and testing hear different ones.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.demo.toy.draws import Number, Parameters, Split

LOUDNESS_DBFS = (-26.0, -18.0)
OFF_SCREEN_DBFS = (-36.0, -28.0)
PEAK_LIMIT = 0.9
ROOM_NOISE = 1e-3  # of the RMS, so that pauses are not digital silence

Wave = Float[np.ndarray, " L"]


def synthesize(kind: str, rng: np.random.Generator, split: Split, num_samples: int) -> Float[np.ndarray, " L"]:
    """A clip of one object's sound: float32 in [-0.9, 0.9], its RMS in `LOUDNESS_DBFS` (or less, where the peak
    would pass the limit)."""
    wave = _SYNTHESIZERS[kind](Parameters(rng, split), num_samples)
    wave = wave + ROOM_NOISE * _rms(wave) * rng.standard_normal(num_samples)
    return _at_level(wave, rng.uniform(*LOUDNESS_DBFS))


def off_screen_noise(rng: np.random.Generator, num_samples: int) -> Float[np.ndarray, " L"]:
    """Float32 sound of something that no picture shows (wind, mains hum or a crowd), its RMS in `OFF_SCREEN_DBFS`."""
    make = (_wind, _hum, _crowd)[rng.integers(3)]
    return _at_level(make(rng, num_samples), rng.uniform(*OFF_SCREEN_DBFS))


def _at_level(wave: Wave, level_dbfs: float) -> Wave:
    """Scale to an RMS, sparing the peaks: they are rounded off at about six times the RMS."""
    wave = np.tanh(wave / (6 * _rms(wave)))
    gain = min(10 ** (level_dbfs / 20) / _rms(wave), PEAK_LIMIT / np.abs(wave).max())
    return (gain * wave).astype(np.float32)


def _rms(wave: Wave) -> float:
    return float(np.sqrt(np.mean(np.square(wave)))) + 1e-9


# Building blocks


def _seconds(num_samples: int) -> Wave:
    return np.arange(num_samples) / SAMPLE_RATE_HZ


def _phase(frequency_hz: Wave) -> Wave:
    return 2 * np.pi * np.cumsum(frequency_hz) / SAMPLE_RATE_HZ


def _harmonics(phase: Wave, amplitudes: Sequence[Number]) -> Wave:
    """sum over h of amplitudes[h - 1] * sin(h * phase), by the recurrence of sin(h * phase) in h."""
    previous, current, twice_cosine = np.zeros_like(phase), np.sin(phase), 2 * np.cos(phase)
    total = np.zeros_like(phase)
    for amplitude in amplitudes:
        total += amplitude * current
        previous, current = current, twice_cosine * current - previous
    return total


def _noise(rng: np.random.Generator, num_samples: int, low_hz: Number, high_hz: Number) -> Wave:
    """Noise of unit RMS with gentle slopes outside a band."""
    frequency = np.fft.rfftfreq(num_samples, 1 / SAMPLE_RATE_HZ) + 1.0
    gain = 1 / (1 + (low_hz / frequency) ** 4 + (frequency / high_hz) ** 4)
    wave = np.fft.irfft(np.fft.rfft(rng.standard_normal(num_samples)) * gain, num_samples)
    return wave / _rms(wave)


def _wobble(rng: np.random.Generator, num_samples: int, rate_hz: Number) -> Wave:
    """A slow random curve in [-1, 1] that turns about `rate_hz` times a second."""
    num_knots = int(num_samples / SAMPLE_RATE_HZ * rate_hz) + 3
    knots = np.arange(num_knots) / rate_hz
    return np.interp(_seconds(num_samples), knots, rng.uniform(-1, 1, num_knots))


def _onsets(p: Parameters, num_samples: int, interval: tuple[float, float]) -> Int[np.ndarray, " E"]:
    """Samples at which events start; every interval between two of them is drawn from `interval`, in seconds."""
    count = int(num_samples / SAMPLE_RATE_HZ / interval[0]) + 2
    gaps = p.several_between(*interval, count)
    onsets = ((np.cumsum(gaps) - gaps[0] * p.rng.random()) * SAMPLE_RATE_HZ).astype(int)
    return np.concatenate([[0], onsets[onsets < num_samples]])


def _beats(p: Parameters, num_samples: int, interval: tuple[float, float]) -> Int[np.ndarray, " E"]:
    """As `_onsets`, but in a steady rhythm, with a little human unevenness."""
    gap = p.between(*interval)
    count = int(num_samples / SAMPLE_RATE_HZ / gap)
    times = gap * (np.arange(count + 1) + p.rng.random() * 0.5 + p.rng.normal(0, 0.01, count + 1))
    onsets = np.maximum(times * SAMPLE_RATE_HZ, 0).astype(int)
    return onsets[onsets < num_samples]


def _envelope(onsets: Int[np.ndarray, " E"], num_samples: int, attack_s: float, release_s: float) -> Wave:
    """Notes that follow each other: each rises within `attack_s`, and falls within `release_s` before the next."""
    lengths = np.diff(onsets, append=num_samples)
    since = (np.arange(num_samples) - np.repeat(onsets, lengths)) / SAMPLE_RATE_HZ
    until = np.repeat(lengths, lengths) / SAMPLE_RATE_HZ - since
    return np.clip(since / attack_s, 0, 1) * np.clip(until / release_s, 0, 1)


def _each(values: Float[np.ndarray, " E"], onsets: Int[np.ndarray, " E"], num_samples: int) -> Wave:
    """The value of the note that sounds at each sample."""
    return np.repeat(values, np.diff(onsets, append=num_samples))


def _add_at(onsets: Int[np.ndarray, " E"], sounds: list[Float[np.ndarray, " _"]], num_samples: int) -> Wave:
    """The sum of short sounds, each from its onset; event i gets sound i modulo their number."""
    longest = max(len(sound) for sound in sounds)
    wave = np.zeros(num_samples + longest)
    for i, onset in enumerate(onsets):
        sound = sounds[i % len(sounds)]
        wave[onset : onset + len(sound)] += sound
    return wave[:num_samples]


# The ten kinds


def _flute(p: Parameters, num_samples: int) -> Wave:
    """A legato melody of nearly pure notes, with vibrato and breath."""
    onsets = _onsets(p, num_samples, (0.3, 0.9))
    pitch = _each(p.pitches(330, 1100, len(onsets)), onsets, num_samples)
    vibrato = np.sin(2 * np.pi * p.between(4.0, 7.0) * _seconds(num_samples))
    tone = _harmonics(_phase(pitch * (1 + p.between(0.004, 0.012) * vibrato)), [1, p.between(0.1, 0.4), 0.08])
    breath = p.between(0.02, 0.08) * _noise(p.rng, num_samples, 800, 4000)
    return (tone * (1 + 0.25 * vibrato) + breath) * _envelope(onsets, num_samples, 0.05, 0.06)


def _bell(p: Parameters, num_samples: int) -> Wave:
    """Strokes on one bell: inharmonic partials, the high ones dying first."""
    time = _seconds(int(1.6 * SAMPLE_RATE_HZ))
    base, decay = p.pitches(350, 1000, 1)[0], p.between(2.5, 5.0)
    ratios = np.array([0.5, 1.0, 1.19, 1.56, 2.0, 2.66, 3.46, 4.16]) * p.between(0.97, 1.03)
    loudness = np.array([0.4, 1.0, 0.6, 0.4, 0.7, 0.4, 0.3, 0.2]) * p.rng.uniform(0.5, 1.5, 8)
    stroke = np.zeros_like(time)
    for ratio, amplitude in zip(ratios, loudness, strict=True):
        stroke += amplitude * np.sin(2 * np.pi * base * ratio * time) * np.exp(-decay * (0.6 + 0.4 * ratio) * time)
    return _add_at(_beats(p, num_samples, (0.4, 0.8)), [stroke * np.linspace(1, 0, len(time))], num_samples)


def _drum(p: Parameters, num_samples: int) -> Wave:
    """A beat of falling thumps and rattling noise bursts."""
    time = _seconds(int(0.35 * SAMPLE_RATE_HZ))
    pitch = p.between(70, 160) * (1 + 1.5 * np.exp(-time * 40))
    thump = np.sin(_phase(pitch)) * np.exp(-time * p.between(10, 18))
    rattle = _noise(p.rng, len(time), p.between(200, 500), p.between(2000, 6000)) * np.exp(-time * p.between(18, 35))
    low, high = thump + 0.15 * rattle, 0.5 * thump + 0.7 * rattle
    patterns = ([low, high], [low, low, high], [low, high, high], [low, 0.5 * high, high, 0.5 * high])
    return _add_at(_beats(p, num_samples, (0.16, 0.34)), list(patterns[p.rng.integers(4)]), num_samples)


def _bird(p: Parameters, num_samples: int) -> Wave:
    """Quick chirps that sweep up or down, with a short trill inside."""
    onsets = _onsets(p, num_samples, (0.09, 0.26))
    center = _each(p.pitches(1100, 3000, len(onsets)), onsets, num_samples)
    sweep = _each(p.rng.choice([-1.0, 1.0], len(onsets)) * p.between(0.15, 0.4), onsets, num_samples)
    inside = _envelope(onsets, num_samples, 0.2, 1e-9)
    trill = 0.04 * np.sin(2 * np.pi * p.between(22, 45) * _seconds(num_samples))
    tone = _harmonics(_phase(center * (1 + sweep * (inside - 0.3) + trill)), [1, 0.12])
    return tone * _envelope(onsets, num_samples, 0.015, 0.05)


def _car(p: Parameters, num_samples: int) -> Wave:
    """An idling and revving engine: a low train of pulses, each with a puff of noise."""
    revs = 1 + p.between(0.1, 0.35) * _wobble(p.rng, num_samples, 0.8)
    phase = _phase(p.between(38, 80) * revs)
    firing = np.exp(p.between(40, 160) * (np.cos(phase) - 1))
    puffs = np.exp(6 * (np.cos(phase + 0.5) - 1)) * _noise(p.rng, num_samples, 250, p.between(1500, 3500))
    uneven = 1 + 0.4 * np.cos(phase / 2)
    return (firing - firing.mean() + p.between(0.2, 0.45) * puffs) * uneven * revs


def _siren(p: Parameters, num_samples: int) -> Wave:
    """A horn whose pitch wails up and down."""
    turns = p.between(0.35, 1.1) * _seconds(num_samples) + p.rng.random()
    wail = np.sin(2 * np.pi * turns) if p.rng.random() < 0.5 else 4 * np.abs(turns % 1 - 0.5) - 1
    pitch = p.pitches(550, 1000, 1)[0] * 2 ** (p.between(0.3, 0.55) * wail)
    return _harmonics(_phase(pitch), [1, p.between(0.3, 0.7), 0.5, 0.2, 0.2])


def _clock(p: Parameters, num_samples: int) -> Wave:
    """Sharp ticks and tocks: a click that rings in a wooden case for a moment."""
    time = _seconds(int(0.12 * SAMPLE_RATE_HZ))
    rings = p.pitches(500, 4000, 3)
    sounds = []
    for shift in (1.0, 0.84):
        case = sum(np.sin(2 * np.pi * ring * shift * time) for ring in rings) * np.exp(-time * p.between(35, 70))
        click = p.rng.standard_normal(len(time)) * np.exp(-time * 250)
        sounds.append(case + 1.5 * click)
    return _add_at(_beats(p, num_samples, (0.12, 0.26)), sounds, num_samples)


def _accordion(p: Parameters, num_samples: int) -> Wave:
    """Sustained chords of paired reeds, whose beating is the tremolo."""
    onsets = _onsets(p, num_samples, (0.7, 1.6))
    detune = p.between(2.0, 6.0)
    reed = [1 / h ** p.between(0.5, 1.0) for h in range(1, 11)]
    wave = np.zeros(num_samples)
    for low, high in ((170, 260), (270, 400), (400, 560)):
        pitch = _each(p.pitches(low, high, len(onsets)), onsets, num_samples)
        wave += _harmonics(_phase(pitch), reed) + _harmonics(_phase(pitch + detune), reed)
    return wave * _envelope(onsets, num_samples, 0.04, 0.04)


def _guitar(p: Parameters, num_samples: int) -> Wave:
    """Plucked strings (Karplus and Strong), a melody of ringing notes."""
    onsets = _onsets(p, num_samples, (0.16, 0.42))
    damping = p.between(0.988, 0.996)
    notes = [_pluck(p.rng, pitch, damping) for pitch in p.pitches(110, 440, len(onsets))]
    return _add_at(onsets, notes, num_samples)


def _pluck(rng: np.random.Generator, pitch_hz: float, damping: float) -> Wave:
    """One second of a string: a period of noise, averaged with its neighbour at every turn.

    All turns at once: averaging neighbours multiplies the period's spectrum by (1 + exp(-i w)) / 2.
    """
    period = round(SAMPLE_RATE_HZ / pitch_hz)
    turns = np.arange(round(pitch_hz))[:, None]
    omega = 2 * np.pi * np.fft.rfftfreq(period)
    spectrum = np.fft.rfft(rng.uniform(-1, 1, period)) * (omega > 0)
    wave = np.fft.irfft(spectrum * (damping * (1 + np.exp(-1j * omega)) / 2) ** turns, period).ravel()
    return wave * np.linspace(1, 0, len(wave)) / _rms(wave[:period])


def _dog(p: Parameters, num_samples: int) -> Wave:
    """Barks: short harmonic bursts that rise and fall, hoarse, with the vowel of a throat."""
    pitch, length = p.pitches(220, 480, 1)[0], p.between(0.13, 0.24)
    formant = p.between(800, 1500)
    barks = []
    for variation in p.rng.uniform(0.92, 1.08, 4):
        time = _seconds(int(length * SAMPLE_RATE_HZ)) / length
        contour = pitch * variation * (0.75 + 0.5 * np.sin(np.pi * time**0.7))
        throat = [1 / (1 + ((h * pitch - formant) / 500) ** 2) + 0.1 for h in range(1, 13)]
        voice = _harmonics(_phase(contour), throat) + 0.8 * _noise(p.rng, len(time), 500, 3000)
        barks.append(voice * np.sin(np.pi * time) ** 0.6 * np.exp(-1.5 * time))
    return _add_at(_onsets(p, num_samples, (0.28, 0.55)), barks, num_samples)


_SYNTHESIZERS: dict[str, Callable[[Parameters, int], Wave]] = {
    "accordion": _accordion,
    "bell": _bell,
    "bird": _bird,
    "car": _car,
    "clock": _clock,
    "dog": _dog,
    "drum": _drum,
    "flute": _flute,
    "guitar": _guitar,
    "siren": _siren,
}

KINDS: tuple[str, ...] = tuple(_SYNTHESIZERS)


# What sounds off the screen


def _wind(rng: np.random.Generator, num_samples: int) -> Wave:
    gusts = 1 + 0.6 * _wobble(rng, num_samples, 1.5)
    return _noise(rng, num_samples, rng.uniform(80, 200), rng.uniform(300, 1500)) * gusts


def _hum(rng: np.random.Generator, num_samples: int) -> Wave:
    phase = 2 * np.pi * rng.choice([50.0, 60.0]) * _seconds(num_samples)
    return _harmonics(phase, list(rng.uniform(0.05, 1, 16))) + 0.1 * _noise(rng, num_samples, 100, 4000)


def _crowd(rng: np.random.Generator, num_samples: int) -> Wave:
    voices = np.zeros(num_samples)
    for pitch in rng.uniform(90, 260, 6):
        pitch_curve = pitch * (1 + 0.15 * _wobble(rng, num_samples, 3.0))
        syllables = np.maximum(_wobble(rng, num_samples, rng.uniform(6, 10)), 0)
        voices += _harmonics(_phase(pitch_curve), [1 / h for h in range(1, 15)]) * syllables
    return voices + 0.3 * _noise(rng, num_samples, 200, 2500)
