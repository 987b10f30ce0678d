"""Sixteen mixtures of two sources with estimates, and what museval 0.4.1 and mir_eval 0.8.2 say of them.

`python -m tests.evaluation.bss_pairs` writes the scores anew, where both packages are installed.
"""

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

SCORES = Path(__file__).with_name("bss_scores.json")
NUM_PAIRS, NUM_SAMPLES, RATE = 16, 16_000, 16_000


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Sources [2 L] and estimates [2 L]; the last four pairs of sources are nearly dependent, or hardly noisy tones."""
    rng = np.random.RandomState(0)  # whose numbers are the same for ever
    made = []
    for number in range(NUM_PAIRS):
        sources = np.stack([_sound(rng, number + i) for i in range(2)])
        if number in (12, 13):
            sources[1] = np.convolve(sources[0], [0.5, 0.3, -0.2])[:NUM_SAMPLES] + 1e-5 * rng.normal(size=NUM_SAMPLES)
        if number in (14, 15):
            time = np.arange(NUM_SAMPLES) / RATE
            tones = np.sin(2 * np.pi * np.array([[440.0], [441.0 + number]]) * time)
            sources = 0.3 * tones + 1e-4 * rng.normal(size=tones.shape)
        leak, shift = rng.uniform(0.02, 0.7), rng.uniform(-0.4, 0.4)
        noise = 10 ** rng.uniform(-4, -1.5) * rng.normal(size=sources.shape)
        estimates = sources + leak * sources[::-1] + shift * np.roll(sources, 3, axis=1) + noise
        made.append((sources.astype(np.float32), estimates.astype(np.float32)))
    return made


def _sound(rng: np.random.RandomState, kind: int) -> np.ndarray:
    """A tone with overtones, a burst of coloured noise, or clicks."""
    time = np.arange(NUM_SAMPLES) / RATE
    envelope = np.exp(-3 * np.abs(time - rng.uniform(0.2, 0.8)))
    if kind % 3 == 0:
        pitch = rng.uniform(100, 800)
        sound = sum(rng.uniform(0.2, 1) / k * np.sin(2 * np.pi * k * pitch * time) for k in range(1, 8))
    elif kind % 3 == 1:
        sound = np.convolve(rng.normal(size=NUM_SAMPLES), np.hanning(rng.randint(4, 40)), "same")
    else:
        sound = np.convolve((rng.uniform(size=NUM_SAMPLES) < 0.002).astype(float), rng.normal(size=200), "same")
        envelope = np.ones(NUM_SAMPLES)
    sound = sound * envelope
    return 0.5 * sound / np.abs(sound).max()


def load_museval() -> Any:
    """museval's `bss_eval` alone, as the package imports musdb, which needs ffmpeg; None where it is not installed."""
    package = importlib.util.find_spec("museval")
    if package is None or package.origin is None:
        return None
    spec = importlib.util.spec_from_file_location("museval_metrics", Path(package.origin).with_name("metrics.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module.bss_eval


def by_museval(bss_eval: Any, sources: np.ndarray, estimates: np.ndarray) -> dict[str, list[float]]:
    """museval's scores, with one infinite window: the plain SDR, and SDR, SIR and SAR of BSS Eval v3."""
    arrays = [x.astype(np.float64)[..., None] for x in (sources, estimates)]
    how = {"compute_permutation": False, "window": np.inf, "hop": np.inf}
    plain, _, sir, sar, _ = bss_eval(*arrays, **how)
    v3 = bss_eval(*arrays, **how, bsseval_sources_version=True)[0]
    return {name: x[:, 0].tolist() for name, x in (("sdr", plain), ("sdr_v3", v3), ("sir", sir), ("sar", sar))}


def main() -> None:
    from mir_eval.separation import bss_eval_sources

    warnings.simplefilter("ignore")
    scores = []
    for sources, estimates in pairs():
        theirs = bss_eval_sources(*(x.astype(np.float64) for x in (sources, estimates)), compute_permutation=False)
        mir_eval = {name: list(x) for name, x in zip(("sdr_v3", "sir", "sar"), theirs, strict=False)}
        scores.append({"museval 0.4.1": by_museval(load_museval(), sources, estimates), "mir_eval 0.8.2": mir_eval})
    SCORES.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
