"""Sums and negatives of queries by their embeddings or by their masks: which brings the target out better.

    python -m benchmarks.query_arithmetic RECORDS MODEL_DIR ... --split test

Without: the target of two sounds, where the query for the other one is left out. Sum: two of three sounds. Each way is
compared with the plain query (or, for sums, with the mean of the embeddings), mixture by mixture, over all models.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import machine
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.evaluation.mixtures import MixtureReader
from clipsep_jax.evaluation.protocols import drawn_protocol
from clipsep_jax.metrics import sdr
from clipsep_jax.separation.separator import Separator, masked_clips

BATCH = 8
STRENGTH = 0.5  # of a negative query: q' = (1 + a) q - a n |q| / |n| (OmniSep, eq. 4)


def without_by_embedding(query: np.ndarray, other: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(query, axis=-1, keepdims=True) / np.linalg.norm(other, axis=-1, keepdims=True)
    return (1 + STRENGTH) * query - STRENGTH * length * other


def scores_of(separator: Separator, records: RecordSet, split: str, num_mixtures: int) -> dict[str, np.ndarray]:
    """SDR of each way, of every mixture."""
    found: dict[str, list[float]] = {}
    for num_sources in (2, 3):
        protocol = drawn_protocol(records, split, num_mixtures, num_sources)
        reader = MixtureReader(separator.config, protocol, None)
        for start in range(0, len(protocol.mixtures) - BATCH + 1, BATCH):
            mixtures = reader.read(protocol.mixtures[start : start + BATCH])
            rows = [separator.embed([separator.prompt(label) for label in labels]) for labels in mixtures.labels]
            queries = np.stack([row for row in rows if row is not None])
            target = mixtures.sources[:, 0] if num_sources == 2 else mixtures.sources[:, :2].sum(axis=1)
            for way, mask in masks_of(separator, mixtures.mixture, queries).items():
                stems = masked_clips(mask[:, None], jnp.asarray(mixtures.mixture), separator.config.spectrogram)
                found.setdefault(way, []).extend(sdr(target, np.asarray(stems)[:, 0]).tolist())
    return {way: np.array(values) for way, values in found.items()}


def masks_of(separator: Separator, mixture: np.ndarray, queries: np.ndarray) -> dict[str, jax.Array]:
    """The mask of each way."""

    def masks(queries: np.ndarray) -> jax.Array:
        return jax.nn.sigmoid(separator.logits_of_clips(mixture, queries).query)

    each = masks(queries)
    if queries.shape[1] == 2:
        wanted, other = each[:, 0], each[:, 1]
        return {
            "plain": wanted,
            "without by embedding": masks(without_by_embedding(queries[:, :1], queries[:, 1:]))[:, 0],
            "without by mask": wanted * (1 - other),
            "without by shares": by_shares(wanted, other),
        } | (by_trained(masks, queries) if separator.config.model.negative_query else {})
    return {
        "sum by embedding": masks(queries[:, :2].mean(axis=1, keepdims=True))[:, 0],
        "sum by mask": jnp.minimum(1, each[:, 0] + each[:, 1]),
        "sum by largest mask": jnp.maximum(each[:, 0], each[:, 1]),
        "sum by 1 - (1 - a)(1 - b)": 1 - (1 - each[:, 0]) * (1 - each[:, 1]),
    }


def by_shares(wanted: jax.Array, other: jax.Array) -> jax.Array:
    rest = jnp.maximum(0, 1 - wanted - other)
    return wanted**2 / (wanted**2 + other**2 + rest**2 + 1e-12)


def by_trained(masks: Callable[[np.ndarray], jax.Array], queries: np.ndarray) -> dict[str, jax.Array]:
    """By the negative query that the model was trained with, alone and followed by shares."""
    each = masks(np.concatenate([queries, queries[:, ::-1]], axis=-1))
    return {"without by trained query": each[:, 0], "without by both": by_shares(each[:, 0], each[:, 1])}


def measure(models: Sequence[Path], records: RecordSet, split: str, num_mixtures: int) -> dict[str, Any]:
    scores = [scores_of(Separator.load(model), records, split, num_mixtures) for model in models]
    results = {}
    for way in scores[0]:
        base = "plain" if not way.startswith("sum") else "sum by embedding"
        values = np.mean([one[way] for one in scores], axis=0)
        gains = values - np.mean([one[base] for one in scores], axis=0)
        kept = np.isfinite(gains)
        results[way] = {
            "sdr": round(float(values[kept].mean()), 3),
            "gain": round(float(gains[kept].mean()), 3),
            "gain_sem": round(float(gains[kept].std(ddof=1) / kept.sum() ** 0.5), 3),
            "mixtures": int(kept.sum()),
        }
    return {"ways": results, "models": len(models)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="with labels")
    parser.add_argument("models", type=Path, nargs="+", help="that take texts; one for each seed")
    parser.add_argument("--split", default="test", help="default: test")
    parser.add_argument("--mixtures", type=int, default=240, help="default: 240")
    options = parser.parse_args()
    print(json.dumps(measure(options.models, RecordSet(options.records), options.split, options.mixtures) | machine()))


if __name__ == "__main__":
    main()
