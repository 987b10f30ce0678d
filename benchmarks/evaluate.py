"""Speed of evaluation, and of its SDR compared with museval, the usual tool of the field.

`mixtures_per_second` is a whole evaluation by embeddings of pictures: reading records, separation, masks, scores.
Then SDR alone is scored by both on the same mixtures of two sources: `sdr_mixtures_per_second` on our side, and
`museval_mixtures_per_second` by its `bss_eval` with one infinite window, which cannot compute SDR without
SIR, SAR and ISR. `max_sdr_difference_db` is the largest difference between the two SDRs.
"""

import argparse
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from benchmarks.machine import machine
from benchmarks.random_model import write_random_model
from benchmarks.random_records import encoder_info, write_random_records
from benchmarks.train_step import nit_config, seconds_of
from clipsep_jax.config import Config
from clipsep_jax.evaluation.scores import Evaluation
from clipsep_jax.metrics import sdr
from clipsep_jax.separation.separator import Separator

TURNS = 5


class MusevalMissing(Exception):
    """museval is not installed."""


def load_bss_eval() -> Callable[..., Any]:
    """museval's `bss_eval`.

    It is loaded by itself, as the package imports musdb, which cannot be imported without ffmpeg.

    Raises:
        MusevalMissing: it is not installed.
    """
    package = importlib.util.find_spec("museval")
    if package is None or package.origin is None:
        raise MusevalMissing("museval is missing: run `pip install -e .[bench]`, or leave it out with --no-museval.")
    spec = importlib.util.spec_from_file_location("museval_metrics", Path(package.origin).with_name("metrics.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.bss_eval


def estimates_of(sources: Float[np.ndarray, "B N L"]) -> Float[np.ndarray, "B N L"]:
    """The sources with some of each other and noise, at SDRs from about -5 to 15 dB."""
    rng = np.random.default_rng(1)
    share = rng.uniform(0.1, 0.8, (len(sources), 1, 1))
    noise = 0.02 * rng.normal(size=sources.shape)
    return (sources + share * sources[:, ::-1] + noise).astype(np.float32)


def museval_sdr(
    bss_eval: Callable[..., Any], sources: Float[np.ndarray, "B N L"], estimates: Float[np.ndarray, "B N L"]
) -> Float[np.ndarray, "B N"]:
    scores = [
        bss_eval(reference[..., None], estimate[..., None], window=np.inf, hop=np.inf)[0][:, 0]
        for reference, estimate in zip(sources.astype(np.float64), estimates.astype(np.float64), strict=True)
    ]
    return np.array(scores)


def measure(config: Config, num_mixtures: int, *, museval: bool = True) -> dict[str, Any]:
    """Medians over TURNS, after one to warm up; without `museval` its figures are None.

    Raises:
        MusevalMissing: it is requested, but not installed.
    """
    bss_eval = load_bss_eval() if museval else None
    with TemporaryDirectory() as temporary:
        separator = Separator.load(write_random_model(Path(temporary) / "model", config, encoder_info(config)))
        records = write_random_records(Path(temporary) / "records", config, num_mixtures, split="test")
        evaluation = Evaluation(separator, records, "test", num_mixtures)
        runs = [seconds_of(lambda: evaluation.run(progress=False)) for _ in range(1 + TURNS)][1:]
        sources = evaluation.read(evaluation.drawn).sources
    estimates = estimates_of(sources)
    compiled = jax.jit(sdr)
    ours = np.asarray(compiled(jnp.asarray(sources), jnp.asarray(estimates)))  # compiles
    # From arrays of the host, as in the evaluation.
    scoring = [seconds_of(lambda: np.asarray(compiled(sources, estimates))) for _ in range(TURNS)]
    facts: dict[str, Any] = {
        "mixtures_per_second": round(num_mixtures / statistics.median(runs), 2),
        "sdr_mixtures_per_second": round(num_mixtures / statistics.median(scoring), 1),
        "museval_mixtures_per_second": None,
        "max_sdr_difference_db": None,
    }
    if bss_eval is not None:
        theirs = museval_sdr(bss_eval, sources, estimates)
        seconds = seconds_of(lambda: museval_sdr(bss_eval, sources, estimates))
        facts["museval_mixtures_per_second"] = round(num_mixtures / seconds, 2)
        facts["max_sdr_difference_db"] = float(f"{np.abs(ours - theirs).max():.2g}")
    return facts | {
        "mixtures": num_mixtures,
        "width": config.model.width,
        "device": jax.devices()[0].device_kind,
        **machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", type=int, default=16)
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level")
    parser.add_argument("--no-museval", action="store_true", help="leave museval out; its figures are null")
    options = parser.parse_args()
    try:
        print(json.dumps(measure(nit_config(options.width), options.mixtures, museval=not options.no_museval)))
    except MusevalMissing as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
