"""What stems should get of the band above the model's: SDR at the recordings' own rate, of all and of that band.

    python -m benchmarks.above MODEL_DIR FOLDER

The folder holds ESC-10 (index.csv with the columns audio,label,fold); pairs of different labels of fold 4 are mixed.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import scipy.signal
from tqdm import tqdm

from benchmarks.machine import machine
from clipsep_jax.config import SAMPLE_RATE_HZ
from clipsep_jax.metrics import sdr
from clipsep_jax.separation.options import Options
from clipsep_jax.separation.rates import Above
from clipsep_jax.separation.separator import Separator
from clipsep_jax.sound_files import open_sound

SECONDS = 5


def read_mono(path: Path) -> tuple[np.ndarray, int]:
    with open_sound(path) as sound:
        mono = np.concatenate([block.mean(axis=0) for block in sound])
        return mono[: SECONDS * sound.rate_hz], sound.rate_hz


def measure(separator: Separator, folder: Path, num_mixtures: int) -> dict[str, Any]:
    with (folder / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["fold"] == "4"]
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {above: [] for above in get_args(Above)}
    with tqdm(total=num_mixtures) as bar:
        while bar.n < num_mixtures:
            target, interferer = (rows[int(n)] for n in rng.choice(len(rows), 2, replace=False))
            if target["label"] == interferer["label"]:
                continue
            (wanted, rate), (other, _) = read_mono(folder / target["audio"]), read_mono(folder / interferer["audio"])
            length = min(len(wanted), len(other))
            wanted, other = wanted[:length] / 2, other[:length] / 2
            high = scipy.signal.butter(8, SAMPLE_RATE_HZ / 2, "highpass", fs=rate, output="sos")
            for above, scores in found.items():
                stem = separator.separate(
                    wanted + other, [target["label"]], rate=rate, options=Options(above=above, always=True)
                ).stems[0]
                of_band = sdr(scipy.signal.sosfilt(high, wanted), scipy.signal.sosfilt(high, stem))
                scores.append((float(sdr(wanted, stem)), float(of_band)))
            bar.update()
    results = {}
    for above, scores in found.items():
        values = np.array(scores)[np.isfinite(scores).all(axis=1)]
        results[above] = {"sdr": round(float(values[:, 0].mean()), 3), "above": round(float(values[:, 1].mean()), 3)}
    return {"sdr": results, "mixtures": num_mixtures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="whose queries are the labels")
    parser.add_argument("folder", type=Path, help="of ESC-10")
    parser.add_argument("--mixtures", type=int, default=120, help="default: 120")
    options = parser.parse_args()
    print(json.dumps(measure(Separator.load(options.model), options.folder, options.mixtures) | machine()))


if __name__ == "__main__":
    main()
