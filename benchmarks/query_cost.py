"""What a query costs by each way of fusion and each mask network: arithmetic, and time on this machine.

One chunk of the official length at the official size passes the network with one query and with several. `first` is the
cost of a chunk with one query, `further` that of each more.
"""

import argparse
import json
import statistics
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.machine import machine
from benchmarks.train_step import seconds_of
from clipsep_jax.config import Config
from clipsep_jax.models.clipsep import build_model
from clipsep_jax.training.arithmetic import count_flops

FORMS = {
    "late": {},
    "middle": {"fusion": "middle"},
    "early": {"fusion": "early"},
    "film": {"fusion": "film"},
    "late, tdf_unet": {"network": "tdf_unet"},
}
NUM_QUERIES = 4
TURNS = 5


def cost(changes: dict[str, str], width: int, num_queries: int) -> tuple[float, float]:
    """GFLOP and seconds of a chunk."""
    config = Config()
    network = replace(config.model, width=width, num_bins=config.spectrogram.num_warped_bins, **changes)
    model = build_model(network, nnx.Rngs(0))
    model.eval()
    graphdef, state = nnx.split(model)
    inputs = jnp.zeros((1, config.spectrogram.num_warped_bins, config.spectrogram.num_frames))
    query = jnp.ones((1, num_queries, network.query_size))

    @jax.jit
    def run(state: Any, inputs: jax.Array, query: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state)(inputs, query).query

    jax.block_until_ready(run(state, inputs, query))
    seconds = [seconds_of(lambda: jax.block_until_ready(run(state, inputs, query))) for _ in range(TURNS)]
    return count_flops(jax.make_jaxpr(run)(state, inputs, query)) / 1e9, statistics.median(seconds)


def measure(width: int) -> dict[str, Any]:
    found = {}
    for name, changes in FORMS.items():
        (one, one_s), (several, several_s) = (cost(changes, width, count) for count in (1, NUM_QUERIES))
        found[name] = {
            "first_gflop": round(one, 2),
            "further_gflop": round((several - one) / (NUM_QUERIES - 1), 2),
            "first_ms": round(1e3 * one_s, 1),
            "further_ms": round(1e3 * (several_s - one_s) / (NUM_QUERIES - 1), 1),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, help="of the network (default: 64, the official one)")
    options = parser.parse_args()
    print(json.dumps(measure(options.width) | machine()))


if __name__ == "__main__":
    main()
