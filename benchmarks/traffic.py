"""Bytes that a train step moves through a GPU's memory, an example, by XLA's own kernels for an H100; no GPU is needed.

`make traffic` fetches JAX's plugin for CUDA into a folder and runs this. The step is compiled for the card, not run;
what each kernel of the compiled program has to read and write is counted (`benchmarks.hlo`). On a card XLA chooses some
kernels of products anew by trying them, which can change their number by a little.
"""

import argparse
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
from jax.experimental import topologies

from benchmarks.__main__ import DOCS, replaced
from benchmarks.hlo import Kernel, kernels
from benchmarks.train_step import nit_config, random_batch
from clipsep_jax.config import Config
from clipsep_jax.training.step import Trainer

FOLDER = Path(__file__).resolve().parents[1] / ".cuda"
BEGIN = "<!-- begin: written by `make traffic` -->\n"

# The same count, at batch 32 in bfloat16, of the code before its passes over memory were counted (commit d0e9151).
EARLIER = {
    "mixture": 18.4,
    "down 0": 6.7,
    "down 1": 29.5,
    "down 2": 10.7,
    "down 3": 6.1,
    "down 4": 4.4,
    "down 5": 3.0,
    "down 6": 2.7,
    "up 6": 2.1,
    "up 5": 5.8,
    "up 4": 12.2,
    "up 3": 24.7,
    "up 2": 48.0,
    "up 1": 86.9,
    "masks": 52.4,
    "loss": 42.0,
    "optimizer": 14.7,
    "rest": 30.7,
}

# What XLA has to know of an H100 (SXM, 80 GB) to compile for it.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_SCOPES = re.compile(r"(?:\b|_)(mixture|down_\d|up_\d|masks|loss|optimizer)\b")


def compiled_for_h100(config: Config) -> str:
    """XLA's text of the compiled train step."""
    topology = topologies.get_topology_desc(
        topology_name="H100", platform="cuda", target_config=_H100, topology="1x1x1"
    )
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    with patch("jax.default_backend", lambda: "gpu"):  # by which the forms of layers are chosen
        trainer = Trainer(config)
        arguments = (
            trainer.flat(jax.eval_shape(trainer.init)),
            jax.eval_shape(lambda: random_batch(config)),
            jax.eval_shape(lambda: trainer.recipe),
        )
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
        return trainer.compiled_train_step.lower(*shapes, None).compile().as_text()


def part_of(kernel: Kernel) -> str:
    """The part of the step that a kernel belongs to, by the name of what it computes last."""
    found = _SCOPES.findall(kernel.origin)
    return found[-1].replace("_", " ") if found else "rest"


def measure(config: Config, text: str) -> dict[str, Any]:
    """Megabytes an example, by part of the step and by kind of kernel."""
    parts, kinds = Counter[str](), Counter[str]()
    number = 0
    for kernel in kernels(text):
        megabytes = kernel.num_bytes / config.data.batch_size / 1e6
        parts[part_of(kernel)] += megabytes
        kinds[kernel.kind] += megabytes
        number += 1
    return {
        "batch": config.data.batch_size,
        "precision": config.train.precision,
        "megabytes": round(sum(parts.values()), 1),
        "kernels": number,
        "by_part": {name: round(value, 1) for name, value in sorted(parts.items())},
        "by_kind": {name: round(value, 1) for name, value in kinds.most_common()},
    }


def table(measured: dict[str, Any]) -> str:
    """A measurement beside the earlier one, as Markdown."""
    lines = ["| part of the step | MB an example, earlier | now |", "|---|---|---|"]
    lines += [f"| {name} | {earlier} | {measured['by_part'][name]} |" for name, earlier in EARLIER.items()]
    return "\n".join([*lines, f"| all | {round(sum(EARLIER.values()), 1)} | {measured['megabytes']} |", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="examples (default: 32)")
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level (default: 64)")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="print the N largest kernels too")
    options = parser.parse_args()
    sys.path.append(str(FOLDER))  # where JAX finds the plugin
    os.environ["JAX_PLATFORMS"] = "cpu"
    config = nit_config(options.width, options.batch, options.precision)
    text = compiled_for_h100(config)
    for kernel in sorted(kernels(text), key=lambda kernel: -kernel.num_bytes)[: options.kernels]:
        print(f"{kernel.num_bytes / options.batch / 1e6:8.2f} MB  {kernel.name:40} {kernel.origin[-70:]}")
    measured = measure(config, text)
    print(json.dumps(measured))
    if options.write:
        path = DOCS / "performance.md"
        path.write_text(replaced(path.read_text("utf-8"), table(measured), BEGIN), "utf-8")
        print(f"The table is in {path}.", file=sys.stderr)


if __name__ == "__main__":
    main()
