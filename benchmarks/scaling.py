"""Memory and traffic of a training step from 1 to 1,024 chips, computed from the shapes of the state.

Nothing is run. Gradients travel by a ring all-reduce: each chip sends 2 (n - 1) / n times their bytes. With "fsdp"
parameters are gathered for the forward and the backward pass and gradients scattered: 3 (n - 1) / n times. BatchNorm
reduces a mean, a variance and, backward, two sums for each channel.
"""

import argparse
import json
import math
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from clipsep_jax.config import Config
from clipsep_jax.data.stored import PART_BYTES
from clipsep_jax.training.devices import state_sharding
from clipsep_jax.training.step import Trainer, TrainState

CHIPS = (1, 8, 64, 256, 1024)
STEPS_A_SECOND = 10  # assumed by the input figures


def abstract_mesh(num_chips: int, num_models: int = 1) -> AbstractMesh:
    """A mesh of chips that need not exist."""
    return AbstractMesh((num_chips // num_models, num_models), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def bytes_on_a_chip(state: TrainState, num_chips: int, kind: str) -> int:
    """Bytes of the part of a state that one chip holds."""
    places = state_sharding(state, abstract_mesh(num_chips), kind)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True)
    return sum(leaf.dtype.itemsize * math.prod(place.shard_shape(leaf.shape)) for leaf, place in pairs)


def _read_for(num_bytes: int) -> int:
    """What is read, on average, of the parts of a record that hold some bytes."""
    return num_bytes + PART_BYTES


def figures(config: Config, num_chips: int, chips_a_host: int) -> dict[str, Any]:
    """Memory and traffic of one step; megabytes are 10^6 bytes."""
    state = jax.eval_shape(Trainer(config).init)
    gradients, share = num_bytes(state.params), (num_chips - 1) / num_chips
    num_channels = sum(leaf.size for leaf in jax.tree.leaves(state.batch_stats)) // 2
    clips = config.data.batch_size * config.data.num_sources  # of one chip
    hosts_chips = min(num_chips, chips_a_host)
    audio = clips * config.spectrogram.num_samples * 2
    embeddings = config.data.frames_per_clip * config.model.query_size * 4
    read = clips * (_read_for(2 * config.spectrogram.num_samples) + _read_for(embeddings))
    return {
        "chips": num_chips,
        "global_batch": config.data.batch_size * num_chips,
        "state_megabytes_replicated": round(bytes_on_a_chip(state, num_chips, "replicated") / 1e6, 1),
        "state_megabytes_fsdp": round(bytes_on_a_chip(state, num_chips, "fsdp") / 1e6, 1),
        "gradient_megabytes": round(gradients / 1e6, 1),
        "sent_megabytes_replicated": round(2 * share * gradients / 1e6, 1),
        "sent_megabytes_fsdp": round(3 * share * gradients / 1e6, 1),
        "batchnorm_kilobytes": round(4 * 4 * num_channels / 1e3, 1) if num_chips > 1 else 0.0,
        "batch_megabytes_a_chip": round(audio / 1e6, 1),
        "read_megabytes_a_second_a_host": round(read * hosts_chips * STEPS_A_SECOND / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="examples per chip")
    parser.add_argument("--chips-a-host", type=int, default=4, help="default: 4, as on most TPU hosts")
    options = parser.parse_args()
    config = Config()
    model = replace(config.model, num_noise_heads=2)
    objective = replace(config.objective, name="noise_invariant")
    config = replace(config, model=model, objective=objective, data=replace(config.data, batch_size=options.batch))
    rows = [figures(config, num_chips, options.chips_a_host) for num_chips in CHIPS]
    print(json.dumps({"steps_a_second": STEPS_A_SECOND, "chips_a_host": options.chips_a_host, "rows": rows}))


if __name__ == "__main__":
    main()
