"""Everything about one GPU in at most four minutes, the most valuable first: a JSON line for each result.

It needs jax, flax, optax and numpy; parts that need more (PyTorch, the training's packages) say so in their line. Each
part has a process and a time limit of its own, so that a slow compilation loses nothing else. `make bench` puts the
lines of benchmarks/gpu.jsonl into docs/performance.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("gpu.jsonl")
SECONDS = 240

# The words after a part's name are its arguments; the number is its limit in seconds.
PLAN = (
    ("step bfloat16 32", 60),
    ("torch tuned bfloat16 32", 120),
    ("train bfloat16 32 400", 60),
    ("profile bfloat16 32", 60),
    ("step bfloat16 128", 60),
    ("step float32 32", 60),
    ("torch official float32 32", 60),
    ("strided bfloat16 32", 40),
    ("up bfloat16 32", 40),
    ("ceilings", 30),
    ("strided float32 32", 40),
    ("up float32 32", 40),
    ("step bfloat16 512", 60),
    ("step float32 128", 60),
    ("members", 60),
)


def run_part(part: str, seconds: float) -> list[dict[str, Any]]:
    """The results of a part in a process of its own; one with "error" if it gives none."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", *part.split()]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # leaves PyTorch room
    begin = time.monotonic()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
            why = (errors.strip().splitlines() or ["no output"])[-1] if process.returncode else ""
        except subprocess.TimeoutExpired:
            process.kill()
            output, why = process.communicate()[0], f"more than {seconds:.0f} s"
    results = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if why:
        results.append({"error": why[:300]})
    taken = round(time.monotonic() - begin, 1)
    return [{"part": part, **result, "part_seconds": taken} for result in results]


def run_all(plan: tuple[tuple[str, float], ...], seconds: float, path: Path) -> None:
    """Run the parts of a plan in turn, as far as the time goes, and write each result at once."""
    end = time.monotonic() + seconds
    with path.open("w") as file:
        for part, limit in plan:
            left = end - time.monotonic()
            results = run_part(part, min(limit, left)) if left > 5 else [{"part": part, "error": "no time was left"}]
            for result in results:
                print(json.dumps(result), file=file, flush=True)
                print(json.dumps(result), flush=True)


def table(path: Path) -> str:
    """The results of a file as Markdown."""
    results = [json.loads(line) for line in path.read_text().splitlines()]
    device = next((f"{result['device']}, jax {result['jax']}" for result in results if "device" in result), "no device")
    lines = [f"{device}.", "", "| `python -m benchmarks.gpu --part ...` | figures |", "|---|---|"]
    for result in results:
        figures = {name: value for name, value in result.items() if name not in ("part", "device", "jax")}
        lines.append(f"| `{result['part']}` | {_text(figures)} |")
    return "\n".join([*lines, ""])


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')}: {_text(part)}" for name, part in value.items())
    return str(value).replace("|", "\\|")


def _one_part(name: str, *arguments: str) -> None:
    import jax

    from benchmarks.gpu_parts import PARTS

    device = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    for result in PARTS[name](*arguments):
        print(json.dumps(result | device), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for all parts together (default: {SECONDS})")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name} beside this"
    )
    parser.add_argument("--part", nargs="+", metavar="WORD", help="run this part alone: its name and its arguments")
    options = parser.parse_args()
    if options.part:
        _one_part(*options.part)
    else:
        run_all(PLAN, options.seconds, options.out)


if __name__ == "__main__":
    main()
