"""How much chunks may overlap and how they fade: SDR of long mixtures, all of them and near the borders of chunks.

    python -m benchmarks.chunks MODEL_DIR RECORDS --split test

A mixture is made of recordings of one label, one after the other, and of those of another label. The cost is how many
chunks the network sees, relative to chunks without overlap. Borders are the first and last frames of chunks.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.machine import machine
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.evaluation.protocols import draw_mixtures
from clipsep_jax.metrics import sdr
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.separation.chunks import ChunkPlan
from clipsep_jax.separation.separator import Options, Separator

OVERLAPS, FADES = (0.125, 0.25, 0.5), ("linear", "cosine")
BORDER_SECONDS = 0.05


def long_sounds(records: RecordSet, split: str, numbers: tuple[int, int], num_samples: int, seed: int) -> np.ndarray:
    """Two sounds [2 L], each of the recordings of one label in an order of its own."""
    clips, rng = records.split(split, with_frames=False), np.random.default_rng(seed)
    sounds = []
    for number in numbers:
        same = [n for n, entry in enumerate(clips.entries) if entry.label == clips.entries[number].label]
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < num_samples:
            parts += [np.asarray(clips[int(n)].audio, np.float32) / 32_768 for n in rng.permutation(same)]
        sounds.append(np.concatenate(parts)[:num_samples] / 2)
    return np.stack(sounds)


def near_borders(plan: ChunkPlan, separator: Separator, num_samples: int) -> np.ndarray:
    """Which samples lie near the beginning or the end of a chunk."""
    config = separator.config.spectrogram
    near = np.zeros(num_samples, bool)
    reach = int(BORDER_SECONDS * config.sample_rate_hz)
    for start in range(plan.hop, num_samples // config.hop_samples - plan.num_frames, plan.hop):
        for frame in (start, start + plan.num_frames - plan.hop):  # of this chunk, and the end of the one before
            near[max(0, frame * config.hop_samples - reach) : frame * config.hop_samples + reach] = True
    return near


def measure(separator: Separator, records: RecordSet, split: str, num_mixtures: int, seconds: float) -> dict[str, Any]:
    """For each overlap and fade: mean SDR, that near borders less that elsewhere, and the cost."""
    entries = records.split(split, with_frames=False).entries
    num_samples = int(seconds * separator.sample_rate_hz)
    plans = list(itertools.product(OVERLAPS, FADES))
    scores: dict[tuple[float, str], list[tuple[float, float]]] = {plan: [] for plan in plans}
    kind = kind_of(separator.config)
    for seed, numbers in enumerate(tqdm(draw_mixtures(entries, num_mixtures, 2, seed=0))):
        target, interferer = long_sounds(records, split, numbers, num_samples, seed)
        label = entries[numbers[0]].label
        query = separator.prompt(label) if kind.has_encoder else label
        for overlap, fade in plans:
            options = Options(overlap=overlap, fade=fade)
            stem = separator.separate(target + interferer, [query], options=options).stems[0]
            plan = ChunkPlan(separator.config.spectrogram.num_frames, overlap, fade)
            near = near_borders(plan, separator, num_samples)
            at_border = float(sdr(target[near], stem[near]) - sdr(target[~near], stem[~near]))
            scores[overlap, fade].append((float(sdr(target, stem)), at_border))
    first = np.array([score for score, _ in scores[plans[0]]])
    results = {}
    for (overlap, fade), found in scores.items():
        values, borders = np.array(found).T
        gain = values - first
        results[f"{overlap:g} {fade}"] = {
            "sdr": round(values.mean(), 3),
            "gain": round(gain.mean(), 3),
            "gain_sem": round(gain.std(ddof=1) / len(gain) ** 0.5, 3),
            "borders": round(borders.mean(), 3),
            "borders_sem": round(borders.std(ddof=1) / len(borders) ** 0.5, 3),
            "cost": round(1 / (1 - overlap), 2),
        }
    return {"plans": results, "mixtures": num_mixtures, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model directory or training workdir")
    parser.add_argument("records", type=Path, help="with labels")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--mixtures", type=int, default=32, help="default: 32")
    parser.add_argument("--seconds", type=float, default=60, help="of a mixture (default: 60)")
    options = parser.parse_args()
    separator, records = Separator.load(options.model), RecordSet(options.records)
    print(json.dumps(measure(separator, records, options.split, options.mixtures, options.seconds) | machine()))


if __name__ == "__main__":
    main()
