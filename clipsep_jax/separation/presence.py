"""Whether a sound is there: from the share of a chunk's energy that its mask lets through.

Shares of different queries differ by more than those of sounds that are there and sounds that are not. So a query's
share is compared with its shares in reference mixtures, which a model directory holds, and a logistic function makes a
probability of it. `evaluation.calibration` makes these files.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipsep_jax.errors import InputError
from clipsep_jax.files import decode_json, encode_json
from clipsep_jax.tensors import read_metadata, read_tensors, write_tensors

PRESENCE_FILE = "presence.safetensors"  # in a model directory

_NAME = "references"
_OTHERWISE = "is not the calibration of a model; make it again by `clipsep calibrate`"


@dataclass(frozen=True)
class Fit:
    """The probability that a sound is there: 1 / (1 + exp(-(slope * z + intercept))).

    z is how far the log odds of a share lie above their mean in the references, in standard deviations.

    Attributes:
        threshold: the probability below which a stem is silent; nineteen of twenty sounds that were there are above.
        auc: area under the ROC curve, of targets that were there and of others, with this fit.
        energy_auc: the same by the energy of the stem alone.
        num_present, num_absent: of these targets.
    """

    slope: float
    intercept: float
    threshold: float
    auc: float
    energy_auc: float
    num_present: int
    num_absent: int


@dataclass(frozen=True, eq=False)
class Presence:
    """The calibration of a model.

    Attributes:
        references: network inputs of mixtures (`log_warped_magnitude`).
        fit: of the probability.
    """

    references: Float32[np.ndarray, "R K T"]
    fit: Fit

    def probability(
        self, odds: Float32[np.ndarray, "B A"], reference_odds: Float32[np.ndarray, "R A"]
    ) -> Float32[np.ndarray, "B A"]:
        """Of sounds with these log odds of their shares, each query with its own in the references."""
        z = standardised(odds, reference_odds)
        return (1 / (1 + np.exp(-(self.fit.slope * z + self.fit.intercept)))).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write the calibration into a model directory."""
        # As 16-bit floats: shares differ by 1e-3 of what sounds do.
        metadata = {"fit": encode_json(asdict(self.fit)).decode().strip()}
        write_tensors(folder / PRESENCE_FILE, {_NAME: self.references.astype(np.float16)}, metadata)

    @classmethod
    def load(cls, folder: Path, shape: tuple[int, int]) -> "Presence | None":
        """The calibration of a model directory, if it has one, for spectrograms [K T] of this shape.

        Raises:
            InputError: the file is damaged, or of another model.
        """
        path = folder / PRESENCE_FILE
        if not path.is_file():
            return None
        fit = decode_json(read_metadata(path).get("fit", ""), path, f"{_OTHERWISE}.", Fit)
        references = read_tensors(path).get(_NAME)
        if references is None or references.ndim != 3 or references.shape[1:] != shape or len(references) < 2:
            raise InputError(f"{path} {_OTHERWISE}.")
        return cls(references.astype(np.float32), fit)


def standardised(odds: Float32[np.ndarray, "B A"], reference_odds: Float32[np.ndarray, "R A"]) -> np.ndarray:
    """How far log odds lie above their means in the references, in standard deviations."""
    return (odds - reference_odds.mean(axis=0)) / np.maximum(reference_odds.std(axis=0), 1e-3)
