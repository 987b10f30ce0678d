"""Speed of evaluation, and of its metrics compared with museval's, the usual tool of the field.

`mixtures_per_second` is a whole evaluation by embeddings of pictures: reading records, separation, masks, plain SDR.
Then metrics alone are measured on the same mixtures of two sources with two estimates: plain SDR, and BSS Eval (SDR,
SIR and SAR). museval's `bss_eval`, with one infinite window, cannot compute one without the others.
`max_..._difference_db` are the largest differences from its values.
"""

import argparse
import json
import statistics
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from benchmarks.machine import machine
from benchmarks.random_model import write_random_model
from benchmarks.random_records import encoder_info, write_random_records
from benchmarks.train_step import nit_config, seconds_of
from clipsep_jax.config import Config
from clipsep_jax.evaluation.scores import evaluation_of
from clipsep_jax.metrics import bss_eval, sdr
from clipsep_jax.separation.separator import Separator
from tests.evaluation.bss_pairs import load_museval

TURNS = 5


class MusevalMissing(Exception):
    """museval is not installed."""


def estimates_of(sources: Float[np.ndarray, "B N L"]) -> Float[np.ndarray, "B N L"]:
    """The sources with some of each other and noise, at SDRs from about -5 to 15 dB."""
    rng = np.random.default_rng(1)
    share = rng.uniform(0.1, 0.8, (len(sources), 1, 1))
    noise = 0.02 * rng.normal(size=sources.shape)
    return (sources + share * sources[:, ::-1] + noise).astype(np.float32)


def compared_with_museval(
    museval: Any, sources: Float[np.ndarray, "B N L"], estimates: Float[np.ndarray, "B N L"]
) -> dict[str, Any]:
    """Ratios of time to museval's, mixture by mixture in turns, and the largest differences."""
    turns, differences = [], {"sdr": 0.0, "sir": 0.0, "sar": 0.0}
    for reference, estimate in zip(sources, estimates, strict=True):
        theirs: dict[str, Any] = {}
        seconds = {
            "museval": seconds_of(
                lambda r=reference, e=estimate, into=theirs: into.update(by_museval_v4(museval, r, e))
            ),
            "sdr": seconds_of(lambda r=reference, e=estimate: sdr(r, e)),
            "bss_eval": seconds_of(lambda r=reference, e=estimate: bss_eval(r, e)),
        }
        ours = bss_eval(reference, estimate)
        for name, values in (("sdr", sdr(reference, estimate)), ("sir", ours.sir), ("sar", ours.sar)):
            differences[name] = max(differences[name], float(np.abs(values - theirs[name]).max()))
        turns.append(seconds)
    return {
        "museval_mixtures_per_second": round(1 / statistics.median(turn["museval"] for turn in turns), 2),
        "sdr_ratio_to_museval": round(statistics.median(turn["museval"] / turn["sdr"] for turn in turns), 1),
        "bss_eval_ratio_to_museval": round(statistics.median(turn["museval"] / turn["bss_eval"] for turn in turns), 2),
        **{f"max_{name}_difference_db": float(f"{value:.2g}") for name, value in differences.items()},
    }


def by_museval_v4(museval: Any, sources: np.ndarray, estimates: np.ndarray) -> dict[str, np.ndarray]:
    arrays = [x.astype(np.float64)[..., None] for x in (sources, estimates)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = museval(*arrays, compute_permutation=False, window=np.inf, hop=np.inf)
    return {name: found[number][:, 0] for name, number in (("sdr", 0), ("sir", 2), ("sar", 3))}


def measure(config: Config, num_mixtures: int, *, museval: bool = True) -> dict[str, Any]:
    """Medians over TURNS, after one to warm up; without `museval` nothing is compared.

    Raises:
        MusevalMissing: it is requested, but not installed.
    """
    theirs = load_museval() if museval else None
    if museval and theirs is None:
        raise MusevalMissing("museval is missing: run `pip install -e .[bench]`, or leave it out with --no-museval.")
    with TemporaryDirectory() as temporary:
        separator = Separator.load(write_random_model(Path(temporary) / "model", config, encoder_info(config)))
        records = write_random_records(Path(temporary) / "records", config, num_mixtures, split="test")
        evaluation = evaluation_of(separator, records, "test", num_mixtures)
        runs = [seconds_of(lambda: evaluation.run(progress=False)) for _ in range(1 + TURNS)][1:]
        sources = evaluation.reader.read(evaluation.protocol.mixtures).sources
    estimates = estimates_of(sources)
    scoring = [seconds_of(lambda: sdr(sources, estimates)) for _ in range(TURNS)]
    facts = {
        "mixtures_per_second": round(num_mixtures / statistics.median(runs), 2),
        "sdr_mixtures_per_second": round(num_mixtures / statistics.median(scoring), 1),
        "bss_eval_mixtures_per_second": round(1 / seconds_of(lambda: bss_eval(sources[0], estimates[0])), 2),
    }
    compared = {} if theirs is None else compared_with_museval(theirs, sources, estimates)
    return (
        facts
        | compared
        | {
            "mixtures": num_mixtures,
            "width": config.model.width,
            "device": jax.devices()[0].device_kind,
            **machine(),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", type=int, default=16)
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first level")
    parser.add_argument("--no-museval", action="store_true", help="leave museval out")
    options = parser.parse_args()
    try:
        print(json.dumps(measure(nit_config(options.width), options.mixtures, museval=not options.no_museval)))
    except MusevalMissing as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
