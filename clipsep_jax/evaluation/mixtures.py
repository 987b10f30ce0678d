"""Held-out mixtures as sounds and queries."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from clipsep_jax.config import Config
from clipsep_jax.data.clips import ClipReader
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.evaluation.protocols import HeldOutClip, HeldOutMixture, Protocol
from clipsep_jax.queries.base import Example, Kind
from clipsep_jax.queries.kinds import AUDIO, IMAGE, kind_of
from clipsep_jax.separation.separator import Separator


@dataclass(frozen=True)
class Mixtures:
    """A batch of held-out mixtures; the target comes first of the sources."""

    held_out: tuple[HeldOutMixture, ...]
    num_real: int  # what follows fills the batch up
    sources: Float[np.ndarray, "B N L"]  # divided by N, so that they add up to the mixture
    images: Float[np.ndarray, "B N Q"] | None  # embeddings of the pictures, for models that take them
    examples: Float[np.ndarray, "B N Q"] | None = None  # embeddings of such sounds, for models that take them

    @property
    def labels(self) -> list[list[str]]:
        return [[clip.label for clip in mixture.clips] for mixture in self.held_out]

    @property
    def mixture(self) -> Float[np.ndarray, "B L"]:
        return self.sources.sum(axis=1)


def needs_pictures(separator: Separator, record_sets: Sequence[RecordSet]) -> bool:
    """Whether pictures must be read to score a model: it takes them, and records hold no embeddings by its encoder."""
    encoder = separator.model_dir.encoder
    has_embeddings = encoder and all(
        records.encoder and records.encoder.sha256 == encoder.sha256 for records in record_sets
    )
    return kind_of(separator.config).has_encoder and not has_embeddings


class MixtureReader:
    """Reads the mixtures of a protocol, cut in the middle of their clips.

    Attributes:
        kinds: of queries that the model is scored by.
        prompts: templates of texts.
        num_samples: of a mixture.
        num_scored: of which the first are scored.
    """

    def __init__(self, config: Config, protocol: Protocol, separator: Separator | None):
        spectrogram = config.spectrogram
        self.num_samples = spectrogram.num_samples
        self.num_scored = spectrogram.hop_samples * (spectrogram.num_frames - 1)
        self.prompts = protocol.prompts
        self._separator = separator
        clips = {clip.id: clip for mixture in protocol.mixtures for clip in mixture.clips}
        kinds = kind_of(config).scored_by([clip.entry for clip in clips.values()]) if separator else ()
        self.kinds: dict[str, Kind] = {kind.score_name: kind for kind in kinds}
        self._reads_images = IMAGE in kinds
        self._reader = ClipReader(config.data, spectrogram, None)
        if separator and self._reads_images:
            source = "frames" if needs_pictures(separator, protocol.record_sets) else "embeddings"
            for records in protocol.record_sets:
                self._reader = IMAGE.reader(config, records, source, separator.centre)
        self._embedded_frames: dict[HeldOutClip, np.ndarray] = {}
        self._embedded_examples: dict[HeldOutClip, np.ndarray] = {}
        self._example_reader = AUDIO.reader(config, protocol.record_sets[0]) if AUDIO in kinds else None

    def read(self, held_out: Sequence[HeldOutMixture], num_real: int | None = None) -> Mixtures:
        """Some of the mixtures, of which the first `num_real` count (default: all)."""
        read = {
            clip: self._reader(clip.split.clip(clip.number), None, clip.num_frames)
            for clip in dict.fromkeys(clip for mixture in held_out for clip in mixture.clips)
        }
        sources = np.array([[read[clip]["sources"] for clip in row.clips] for row in held_out], np.float32) / 32768
        images = None
        if self._reads_images:
            images = np.array([[self._image(clip, read[clip]) for clip in row.clips] for row in held_out])
        examples = None
        if self._example_reader:
            examples = np.array([[self._example(clip) for clip in row.clips] for row in held_out])
        num_real = len(held_out) if num_real is None else num_real
        return Mixtures(tuple(held_out), num_real, sources / sources.shape[1], images, examples)

    def _example(self, clip: HeldOutClip) -> np.ndarray:
        """The embedding of an example: the next clip of the same label, or else another segment of the clip itself."""
        if clip not in self._embedded_examples:
            assert self._separator is not None
            assert self._example_reader is not None
            entries = clip.split.entries
            later = (number % len(entries) for number in range(clip.number + 1, clip.number + len(entries)))
            same = (number for number in later if clip.label and entries[number].label == clip.label)
            number = next(same, clip.number)
            read = self._example_reader(clip.split.clip(number), None)
            sound = read["examples" if number == clip.number else "sources"]
            embedded = self._separator.embed([Example(sound.astype(np.float32) / 32768)])
            assert embedded is not None
            (self._embedded_examples[clip],) = embedded
        return self._embedded_examples[clip]

    def _image(self, clip: HeldOutClip, read: dict) -> np.ndarray:
        """The stored embedding of a clip's pictures, or else that of the model's encoder, made once per clip."""
        if "query" in read:
            return read["query"]
        if clip not in self._embedded_frames:
            assert self._separator is not None
            embedded = self._separator.embed([read["frames"]])
            assert embedded is not None
            (self._embedded_frames[clip],) = embedded
        return self._embedded_frames[clip]
