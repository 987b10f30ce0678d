"""The means of image and text embeddings, which `query.centre` subtracts.

CLIP's embeddings of pictures and of texts lie in two cones that do not meet (Liang et al., 2022: "Mind the gap"), so a
model that is trained on pictures is asked from a place where it never was. Without its mean each modality lies around
zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipsep_jax.data.record import CorruptRecordError
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, RecordSet, RecordSplit
from clipsep_jax.errors import InputError
from clipsep_jax.queries.prompts import prompt_for
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.tensors import read_tensors, write_tensors

MOST_CLIPS = 4_096  # whose pictures are averaged, evenly spaced in the split

# Averaged where records have no labels.
COMMON_SOUNDS = (
    "dog", "cat", "bird", "cow", "horse", "insect", "child", "man", "woman", "crowd", "singer", "piano", "guitar",
    "violin", "drum", "flute", "trumpet", "accordion", "car", "train", "airplane", "motorcycle", "engine", "siren",
    "bell", "clock", "telephone", "keyboard", "door", "water", "rain", "sea", "wind", "fire", "hammer", "saw", "gun",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Centre:
    """The mean embedding of each modality."""

    image: Float32[np.ndarray, " Q"]
    text: Float32[np.ndarray, " Q"]

    def save(self, path: Path) -> None:
        """Writes a file of safetensors."""
        write_tensors(path, {"image": self.image, "text": self.text})

    @classmethod
    def load(cls, path: Path, query_size: int) -> "Centre":
        """Reads the file.

        Raises:
            InputError: it is missing or damaged, or of another size.
        """
        tensors = read_tensors(path)
        means = [tensors.get(name, np.empty(0, np.float32)) for name in ("image", "text")]
        if any(mean.shape != (query_size,) or mean.dtype != np.float32 for mean in means):
            raise InputError(f"{path} does not hold two means of size {query_size}; restore the file.")
        return cls(*means)


def measure_centre(
    records: RecordSet, split: str, embed_texts: Callable[[Sequence[str]], Float32[np.ndarray, "n Q"]]
) -> Centre:
    """The means over the pictures of a split, and over prompts with the labels of the records.

    Args:
        embed_texts: by the encoder of the records; only called where these have no labels.

    Raises:
        InputError: the split is missing, or its clips have no embeddings of pictures.
    """
    clips = records.split(split, with_frames=False)
    numbers = np.unique(np.linspace(0, len(clips) - 1, min(len(clips), MOST_CLIPS)).astype(int))
    means = [mean for number in numbers if (mean := _mean_of_pictures(clips, int(number))) is not None]
    if not means:
        raise InputError(f"The clips of the split {split!r} have no embeddings of pictures to centre queries by.")
    table = records.folder / LABEL_EMBEDDINGS_NAME
    has_labels = table.is_file() and len(EmbeddingTable.load(table).labels)
    texts = EmbeddingTable.load(table).vectors if has_labels else embed_texts(list(map(prompt_for, COMMON_SOUNDS)))
    return Centre(_mean(means), _mean(texts))


def _mean_of_pictures(clips: RecordSplit, number: int) -> np.ndarray | None:
    """None where there are none, or the record is damaged."""
    try:
        embeddings = clips.clip(number).frame_embeddings
        return None if embeddings is None or not len(embeddings) else np.asarray(embeddings[:]).mean(axis=0)
    except CorruptRecordError:
        return None


def _mean(vectors: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    return np.asarray(np.mean(vectors, axis=0, dtype=np.float64), np.float32)
