"""How good a separation is, in dB.

To add a metric: a function that measures it and its entry in `METRICS`. Every table and report shows it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.linalg
from jaxtyping import Float, Float64

NUM_TAPS = 512  # of the filters that BSS Eval allows

Decibels = Float64[np.ndarray, "..."]


@dataclass(frozen=True)
class BssScores:
    """BSS Eval v3 of several estimates (Vincent, Gribonval and Févotte, 2006).

    Attributes:
        sdr: signal to distortion, where a filtered source counts as the source; not the plain ratio of `sdr`.
        sir: signal to interference.
        sar: signal to artifacts.
    """

    sdr: Float64[np.ndarray, " N"]
    sir: Float64[np.ndarray, " N"]
    sar: Float64[np.ndarray, " N"]


def sdr(reference: Float[np.ndarray, "*#b L"], estimate: Float[np.ndarray, "*#b L"]) -> Decibels:
    """Signal-to-distortion ratio: 10 log10(|s|^2 / |s - s_hat|^2).

    This is museval's SDR with one infinite window; BSS Eval v3 (`bss_eval`) allows a filter and differs by decibels.
    Sums are float64: in float32 they differ by some 2e-6 dB. A silent reference gives -inf or nan, a perfect estimate
    inf.
    """
    reference, estimate = (np.asarray(x, np.float64) for x in (reference, estimate))
    return _decibels(_energy(reference), _energy(reference - estimate))


def si_sdr(reference: Float[np.ndarray, "*#b L"], estimate: Float[np.ndarray, "*#b L"]) -> Decibels:
    """Scale-invariant SDR: that of the reference scaled to fit the estimate best (Le Roux et al., 2019)."""
    reference, estimate = (np.asarray(x, np.float64) for x in (reference, estimate))
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (reference * estimate).sum(-1, keepdims=True) / _energy(reference)[..., None]
    return sdr(scale * reference, estimate)


def bss_eval(reference: Float[np.ndarray, "..."], estimate: Float[np.ndarray, "..."]) -> BssScores:
    """BSS Eval v3 of N estimates of N sources of one mixture, in their order.

    Args:
        reference: the sources, [N L], or one of them, [L].
        estimate: of the same shape.

    Raises:
        ValueError: the shapes differ or are others, or the sounds are too short for the filters.
    """
    if reference.shape != estimate.shape or reference.ndim not in (1, 2):
        raise ValueError(
            f"sources and estimates must have one shape, [N, L] or [L], not {reference.shape} and {estimate.shape}"
        )
    references, estimates = np.atleast_2d(reference), np.atleast_2d(estimate)
    of_all = _Projection(references)
    scores = [
        of_all.scores(_Projection(references[j : j + 1]), estimates[j : j + 1], projected)
        for j, projected in enumerate(of_all(estimates)[:, None])
    ]
    return BssScores(*(np.concatenate([getattr(each, name) for each in scores]) for name in ("sdr", "sir", "sar")))


class _Projection:
    """Least squares by delayed copies of sources, as museval 0.4.1 solves it: by LU in float64, regularised by eps."""

    def __init__(self, references: Float[np.ndarray, "N L"]):
        self._num_samples = references.shape[1]
        if self._num_samples < NUM_TAPS:
            raise ValueError(f"sounds must have at least {NUM_TAPS} samples, not {self._num_samples}")
        self._fft_size = scipy.fft.next_fast_len(self._num_samples + NUM_TAPS - 1, real=True)
        self._spectra = self._fft(references)
        correlations = self._correlations(self._spectra)  # [N N fft_size]
        size = len(references)
        self._matrix = np.block([[_toeplitz(correlations[i, j]) for j in range(size)] for i in range(size)])

    def __call__(self, estimates: Float[np.ndarray, "E L"]) -> Float64[np.ndarray, "E M"]:
        """The part of each estimate that filtered sources make up, NUM_TAPS - 1 samples longer."""
        right = np.concatenate(list(self._correlations(self._fft(estimates))[..., :NUM_TAPS]), axis=-1)  # [E N * taps]
        try:
            filters = np.linalg.solve(self._matrix + np.finfo(float).eps * np.eye(len(self._matrix)), right.T)
        except np.linalg.LinAlgError:
            filters = np.linalg.lstsq(self._matrix, right.T)[0]
        filters = filters.T.reshape(len(estimates), len(self._spectra), NUM_TAPS)
        projected = (self._fft(filters) * self._spectra).sum(axis=1)
        return scipy.fft.irfft(projected, self._fft_size)[:, : self._num_samples + NUM_TAPS - 1]

    def _fft(self, sounds: np.ndarray) -> np.ndarray:
        return scipy.fft.rfft(np.asarray(sounds, np.float64), self._fft_size)

    def _correlations(self, spectra: np.ndarray) -> Float64[np.ndarray, "N E n"]:
        """Of each source with each sound, by the delay of the source."""
        return scipy.fft.irfft(self._spectra.conj()[:, None] * spectra[None], self._fft_size)

    def scores(self, of_target: "_Projection", estimates: np.ndarray, projected: np.ndarray) -> BssScores:
        """The scores of estimates of one source, from their projection on all."""
        target = of_target(estimates)
        longer = np.pad(np.asarray(estimates, np.float64), [(0, 0), (0, NUM_TAPS - 1)])
        return BssScores(
            sdr=_decibels(_energy(target), _energy(longer - target)),
            sir=_decibels(_energy(target), _energy(projected - target)),
            sar=_decibels(_energy(projected), _energy(longer - projected)),
        )


def _toeplitz(correlation: np.ndarray) -> np.ndarray:
    """The matrix of correlations by the delays of both, from those by their difference."""
    return scipy.linalg.toeplitz(correlation[:NUM_TAPS], [correlation[0], *correlation[:-NUM_TAPS:-1]])


def _energy(sound: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(sound).sum(axis=-1))


def _decibels(above: np.ndarray, below: np.ndarray) -> Decibels:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(10 * np.log10(above / below))


# From the sources of one mixture [N L], the target first, and estimates of the target [E L], to values [E] by name.
Measure = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


def _plain(sources: np.ndarray, estimates: np.ndarray) -> dict[str, np.ndarray]:
    return {"sdr": sdr(sources[:1], estimates)}


def _scale_invariant(sources: np.ndarray, estimates: np.ndarray) -> dict[str, np.ndarray]:
    return {"si_sdr": si_sdr(sources[:1], estimates)}


def _bss_eval_of_target(sources: np.ndarray, estimates: np.ndarray) -> dict[str, np.ndarray]:
    of_all = _Projection(sources)
    scores = of_all.scores(_Projection(sources[:1]), estimates, of_all(estimates))
    return {"sdr_v3": scores.sdr, "sir": scores.sir, "sar": scores.sar}


@dataclass(frozen=True)
class Metric:
    """A number that is higher the more an estimate is like the true sound.

    Attributes:
        title: its usual name.
        unit: of the number.
        measure: gives it, maybe with others.
    """

    title: str
    unit: str
    measure: Measure


# By name: the keys of scores.json, the columns of sweep.csv and the figures' files begin with it.
METRICS = {
    "sdr": Metric("SDR", "dB", _plain),
    "si_sdr": Metric("SI-SDR", "dB", _scale_invariant),
    "sdr_v3": Metric("SDR (BSS Eval v3)", "dB", _bss_eval_of_target),
    "sir": Metric("SIR", "dB", _bss_eval_of_target),
    "sar": Metric("SAR", "dB", _bss_eval_of_target),
}
CHIEF = "sdr"  # in rows of mixtures its columns are named by the estimate only


def score(
    names: Iterable[str], sources: Float[np.ndarray, "N L"], estimates: Float[np.ndarray, "E L"]
) -> dict[str, Float64[np.ndarray, " E"]]:
    """Metrics of several estimates of the first source of one mixture."""
    names = list(names)
    found: dict[str, np.ndarray] = {}
    for measure in dict.fromkeys(METRICS[name].measure for name in names):
        found |= measure(sources, estimates)
    return {name: found[name] for name in names}


def summarise(values: Mapping[str, Float[np.ndarray, " n"]]) -> dict[str, float | int]:
    """Mean, median and standard error of the mean of each metric's values, and their number."""
    summary: dict[str, float | int] = {}
    for name, numbers in values.items():
        error = numbers.std(ddof=1) / np.sqrt(len(numbers)) if len(numbers) > 1 else 0.0
        summary |= {
            f"{name}_mean": float(numbers.mean()),
            f"{name}_median": float(np.median(numbers)),
            f"{name}_sem": float(error),
        }
    return summary | {"num": len(numbers)}
