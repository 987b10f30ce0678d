"""Separation of a sound that comes block by block, at the model's rate, in memory that does not grow.

The sound has one grid of frames. Masks are made of chunks of frames and are cross-faded; then the frames of the sound
pass through them and are added up where they lie.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from clipsep_jax.config import SpectrogramConfig
from clipsep_jax.separation.chunks import ChunkPlan
from clipsep_jax.separation.masking import Masking
from clipsep_jax.spectrogram import divisors, squares_added

Gates = Callable[[int, int], Float32[np.ndarray, "N T"]]


@dataclass(frozen=True)
class Stems:
    """A further block of all stems, at the model's rate.

    Attributes:
        sounds: the samples.
        gains: of the highest bins, in frames that are new; frame t of all is centred at sample t * hop.
        gates: zeros in frames in which a stem is silent, ones elsewhere.
        presence: how likely the sounds are there, in these frames.
    """

    sounds: Float32[np.ndarray, "N C L"]
    gains: Float32[np.ndarray, "N T"]
    gates: Float32[np.ndarray, "N T"]
    presence: Float32[np.ndarray, "N T"]


@dataclass
class _State:
    pending: list[np.ndarray] = field(default_factory=list)  # samples, the first of which is number `first_sample`
    first_sample: int = 0
    num_samples: int = 0  # that were given
    num_chunks: int = 0  # that were masked, but for the last
    before: tuple[int, np.ndarray] | None = None  # the chunk that was masked before, and where it starts
    num_done: int = 0  # frames whose masks are complete; those after them follow
    faded: np.ndarray | None = None  # their masks so far
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))  # which these masks have so far
    tail: np.ndarray | None = None  # what the frames that are done add to samples that are not
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # under the tail


class MaskStream:
    """Separates a sound of C channels that is given in blocks."""

    def __init__(self, masking: Masking, config: SpectrogramConfig, plan: ChunkPlan, gates: Gates, chunks_at_once: int):
        """Prepare to separate.

        Args:
            masking: the model, told what is asked of it.
            config: of the model's spectrogram.
            plan: where chunks lie.
            gates: factors of the targets' masks in frames from one number up to another.
            chunks_at_once: the stream waits for so many chunks, which pass the network together.
        """
        self._masking, self._config, self._plan, self._gates = masking, config, plan, gates
        self._at_once = chunks_at_once
        self._half = config.fft_size // 2
        self._piece = chunks_at_once * plan.hop + plan.edge  # frames that pass their masks together
        self._state = _State()

    @property
    def latency_samples(self) -> int:
        """The most samples beyond one that must be known before it is given out."""
        frames = (self._at_once - 1) * self._plan.hop + self._plan.num_frames - 1
        beyond = max(self._half, 2 * self._half - self._plan.edge * self._config.hop_samples)
        return frames * self._config.hop_samples + beyond - 1

    def reset(self) -> None:
        """Forgets the sound so far."""
        self._state = _State()

    def push(self, samples: Float32[np.ndarray, "C L"]) -> Iterator[Stems]:
        """Takes the next samples, and gives what is complete by them."""
        state, plan = self._state, self._plan
        state.pending.append(samples)
        state.num_samples += samples.shape[-1]
        while True:
            numbers = range(state.num_chunks, state.num_chunks + self._at_once)
            if plan.hop * numbers[-1] + plan.num_frames > self._num_full_frames:
                return
            self._fade_in([plan.hop * number for number in numbers], [plan.weights(number) for number in numbers])
            state.num_chunks += self._at_once
            yield from self._complete(state.num_chunks * plan.hop + plan.edge)

    def finish(self) -> Iterator[Stems]:
        """Gives the rest, and forgets the sound."""
        state, plan, length = self._state, self._plan, self._state.num_samples
        if not length:
            return
        if length < self._config.num_samples:  # repeated to fill a chunk, as in training
            (whole,) = state.pending = [np.concatenate(state.pending, axis=-1)]
            state.pending = [np.tile(whole, -(-self._config.num_samples // length))[:, : self._config.num_samples]]
        num_frames = max(length, self._config.num_samples) // self._config.hop_samples + 1
        numbers = [n for n in range(state.num_chunks, num_frames) if plan.fits(n, num_frames)]
        self._fade_in([plan.hop * number for number in numbers], [plan.weights(number) for number in numbers])
        self._fade_in([num_frames - plan.num_frames], [None])
        given = max(0, state.num_done * self._config.hop_samples - self._half)
        frames = length // self._config.hop_samples + 1 - state.num_done  # that are not of repetitions
        for stems in (*self._complete(num_frames), self._rest()):
            rows = (row[:, : max(0, frames)] for row in (stems.gains, stems.gates, stems.presence))
            yield Stems(stems.sounds[..., : max(0, length - given)], *rows)
            frames -= stems.gains.shape[1]
            given += stems.sounds.shape[-1]
        self.reset()

    @property
    def _num_full_frames(self) -> int:
        """Frames all of whose samples were given, or lie before the first."""
        return max(0, self._state.num_samples - self._half) // self._config.hop_samples + 1

    def _fade_in(self, starts: Sequence[int], weights: Sequence[np.ndarray | None]) -> None:
        """Masks chunks and adds their masks, weighted; without weights they get what is left to one."""
        size = self._plan.num_frames
        for first in range(0, len(starts), self._at_once):
            some = list(starts[first : first + self._at_once])
            filled = some + some[-1:] * (self._at_once - len(some))
            all_masks = self._masking.masks(np.stack([self._samples(start, size) for start in filled]))
            for start, weight, masks in zip(some, weights[first:], all_masks, strict=False):
                self._add(start, weight, self._in_order(start, masks))

    def _in_order(self, start: int, masks: np.ndarray) -> np.ndarray:
        """The masks of a chunk in the order of those of the chunk before."""
        state = self._state
        if state.before:
            shift = start - state.before[0]
            masks = masks[
                list(self._masking.order(state.before[1][..., shift:], masks[..., : masks.shape[-1] - shift]))
            ]
        state.before = start, masks
        return masks

    def _add(self, start: int, weight: np.ndarray | None, masks: np.ndarray) -> None:
        state = self._state
        skip = max(0, state.num_done - start)
        place = slice(start + skip - state.num_done, start + masks.shape[-1] - state.num_done)
        missing = place.stop - len(state.weights)
        if missing > 0:
            state.weights = np.pad(state.weights, (0, missing))
            more = np.zeros((*masks.shape[:-1], missing), np.float32)
            state.faded = more if state.faded is None else np.concatenate([state.faded, more], axis=-1)
        weight = 1 - state.weights[place] if weight is None else weight[skip:]
        assert state.faded is not None
        state.faded[..., place] += weight.astype(np.float32) * masks[..., skip:]
        state.weights[place] += weight

    def _complete(self, end: int) -> Iterator[Stems]:
        """Passes the frames before `end` through their masks."""
        state = self._state
        while state.num_done < end:
            count = min(self._piece, end - state.num_done)
            stems = self._through(count)
            state.num_done += count
            assert state.faded is not None
            state.faded, state.weights = state.faded[..., count:], state.weights[count:]
            self._drop_samples()
            yield stems

    def _through(self, count: int) -> Stems:
        state, hop, start = self._state, self._config.hop_samples, self._state.num_done
        assert state.faded is not None
        filled = [(0, 0)] * (state.faded.ndim - 1) + [(0, self._piece - count)]
        masks = np.pad(state.faded[..., :count], filled)
        gates = np.pad(self._gates(start, start + count), ((0, 0), (0, self._piece - count)))
        sums, gains, gates, presence = self._masking.through(masks, self._samples(start, self._piece), gates)
        sums, squares = np.array(sums), squares_added(count, self._config)
        overlap = 2 * self._half - hop
        if state.tail is not None:
            sums[..., :overlap] += state.tail
            squares[:overlap] += state.squares
        end = count * hop
        state.tail, state.squares = sums[..., end : end + overlap].copy(), squares[end:]
        skip = max(0, self._half - start * hop)
        rows = (row[:, :count] for row in (gains, gates, presence))
        return Stems((sums[..., :end] / divisors(squares[:end]))[..., skip:], *rows)

    def _rest(self) -> Stems:
        """What the last frames reach."""
        state = self._state
        assert state.tail is not None
        none = np.zeros((len(state.tail), 0), np.float32)
        return Stems(state.tail / divisors(state.squares), none, none, none)

    def _samples(self, start: int, num_frames: int) -> np.ndarray:
        """The samples of frames, zeros where the sound is not."""
        state, hop = self._state, self._config.hop_samples
        if len(state.pending) > 1:
            state.pending = [np.concatenate(state.pending, axis=-1)]
        first = start * hop - self._half - state.first_sample
        end = first + (num_frames - 1) * hop + 2 * self._half
        samples = state.pending[0][:, max(0, first) : end]
        before = max(0, -first)
        return np.pad(samples, ((0, 0), (before, end - first - before - samples.shape[-1])))

    def _drop_samples(self) -> None:
        """Forgets samples that neither the next frames nor the last chunk need."""
        state, plan = self._state, self._plan
        frame = min(state.num_done, plan.hop * (state.num_chunks - 1))
        drop = frame * self._config.hop_samples - self._half - state.first_sample
        if drop > 0:
            state.pending = [state.pending[0][:, drop:].copy()]
            state.first_sample += drop
