"""Runs every benchmark and writes the table of docs/performance.md.

Each runs in its own process, one after the other; let nothing else run meanwhile.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import gpu
from benchmarks.machine import machine

DOCS = Path(__file__).resolve().parents[1] / "docs"
GPU_BEGIN = "<!-- begin: written by `make bench` from the results of `make bench-gpu` -->\n"
BEGIN, END = "<!-- begin: written by `make bench` -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Run:
    """A benchmark's command line, and the figures that the table shows, with their names."""

    command: str
    figures: dict[str, str]

    def execute(self) -> dict[str, Any]:
        finished = subprocess.run(
            [sys.executable, "-m", *self.command.split()], stdout=subprocess.PIPE, text=True, check=True
        )
        return json.loads(finished.stdout.splitlines()[-1])

    def rows(self, facts: dict[str, Any]) -> list[str]:
        return [f"| `{self.command}` | {words} | {_text(facts[name])} |" for name, words in self.figures.items()]


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_text(part)}" for name, part in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


STEP = {
    "seconds_per_step": "seconds a step",
    "gflop_per_example": "GFLOP an example, by XLA's count",
    "compile_seconds": "seconds to compile",
    "peak_bytes": "peak bytes, by XLA's analysis",
}
RATIOS = {
    f"{name}_{how}": f"times as fast as PyTorch{what}, {words}"
    for name, what in (("ratio", ""), ("ratio_with_clip", " with its CLIP"))
    for how, words in (("median", "median"), ("min", "least"), ("max", "most"))
}
RUNS = (
    Run("benchmarks.train_step --reference", STEP | RATIOS),
    Run("benchmarks.train_step --batch 32 --steps 3", STEP),
    Run("benchmarks.train_step --batch 32 --steps 3 --remat", STEP),
    Run("benchmarks.train_step --batch 32 --steps 3 --precision bfloat16", STEP),
    Run(
        "benchmarks.profile_step",
        {
            "products_share": "share of a step in matrix products",
            "products_gflop_per_second": "their GFLOP a second",
            "gemm_gflop_per_second": "GFLOP a second of a large square product",
            "kernel_share": "share of CPU time in the operating system",
            "share_of_the_rest": "shares of all else",
        },
    ),
    Run("benchmarks.strided_forms", {"milliseconds": "milliseconds of each form of a strided convolution, by size"}),
    Run(
        "benchmarks.input_pipeline",
        {
            "clips_per_second_per_core": "10 s clips a second on one core",
            "ratio_to_plain_read": "times the time of a plain read of the same bytes",
        },
    ),
    Run(
        "benchmarks.loop",
        {
            "clips_per_second": "10 s clips a second that the loop could feed a device, read by 2 processes",
            "ratio_to_one_worker": "times that by one process, median",
            "ratio_to_threads": "times that by threads of the training process, median",
            "start_seconds": "seconds to the first batch",
            "worker_megabytes": "MB of memory of each process that reads",
            "own_milliseconds": "milliseconds of the main thread a step, beside waiting for input",
            "p90_to_median": "the time of a slow step (the ninetieth percentile) over the median",
        },
    ),
    Run(
        "benchmarks.separate",
        {
            "real_time_factor": "seconds of audio a second, from file to file",
            "first_block_seconds": "seconds to the first block",
            "peak_bytes": "peak bytes of the process",
            "eight_queries_ratio": "times as long by eight queries as by one",
            "percent_per_extra_query": "percent more for an extra query's mask logits",
        },
    ),
    Run(
        "benchmarks.prepare",
        {
            "video_seconds_per_second_per_core": "video seconds a second on one core, without CLIP",
            "share_of_time": "shares of time",
        },
    ),
    Run(
        "benchmarks.evaluate",
        {
            "mixtures_per_second": "mixtures a second, separation included",
            "museval_mixtures_per_second": "mixtures of two estimates a second that museval scores",
            "sdr_ratio_to_museval": "times as many by plain SDR, median",
            "bss_eval_ratio_to_museval": "times as many by BSS Eval, median",
            "max_sdr_difference_db": "largest difference of SDR from museval's, dB",
            "max_sir_difference_db": "of SIR",
            "max_sar_difference_db": "of SAR",
        },
    ),
    Run(
        "benchmarks.members",
        {
            "map_ratio": "times the steps of 6 single runs, for one step of 6 members (`lax.map`), median",
            "vmap_ratio": "the same by `vmap`",
        },
    ),
    Run(
        "benchmarks.sweep --steps 100",
        {"ratio": "times the wall time of 6 single runs of 100 steps, for a sweep of 6 members, compilation included"},
    ),
    Run(
        f"benchmarks.growth --plot {DOCS.name}/growth.png",
        {"exponent": "exponent of growth (1: linear) between the two largest sizes"},
    ),
)


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown, in the order of RUNS."""
    place = machine()
    head = f"{place['cpu']}, {place['cores']} cores, {results[0]['device']}, {date.today().isoformat()}.\n"
    rows = [row for run, facts in zip(RUNS, results, strict=True) for row in run.rows(facts)]
    return "\n".join([head, "| `python -m ...` | figure | value |", "|---|---|---|", *rows, ""])


def replaced(document: str, part: str, begin: str = BEGIN) -> str:
    """The document with what is between the two marks replaced."""
    before, _, rest = document.partition(begin)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the marks {begin.strip()} and {END.strip()} are missing")
    return f"{before}{begin}{part}{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.parse_args()
    path = DOCS / "performance.md"
    results = [run.execute() for run in tqdm(RUNS, unit="benchmark")]
    text = replaced(path.read_text("utf-8"), table(results))
    if gpu.RESULTS.is_file():
        text = replaced(text, gpu.table(gpu.RESULTS), GPU_BEGIN)
    path.write_text(text, "utf-8")
    print(f"The table is in {path}.")


if __name__ == "__main__":
    main()
