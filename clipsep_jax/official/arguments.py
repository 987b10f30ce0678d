"""The files of an official run beside its checkpoint: `train-args.json`, the label map, the sentence embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import GenericAlias
from typing import Any, TypeVar

import numpy as np

from clipsep_jax.config import Config
from clipsep_jax.encoders.registry import split_name
from clipsep_jax.errors import InputError
from clipsep_jax.files import atomic_write, is_file_name, read_json, write_json
from clipsep_jax.model_dir import TABLE_FILE, ModelDir
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.schema import shown
from clipsep_jax.tensors import read_torch_tensors

ARGS_FILE = "train-args.json"

# Official arguments and the options that they are here.
_OPTIONS = {
    "audio_len": "spectrogram.num_samples",
    "n_fft": "spectrogram.fft_size",
    "hop_len": "spectrogram.hop_samples",
    "weighted_loss": "mixing.weighted",
    "n_mix": "data.num_sources",
    "batch_size": "data.batch_size",
    "frames": "data.frames_per_clip",
    "frame_margin": "data.frame_margin",
    "drop_closest_steps": "data.similar_pairs_from_step",
    "reg2_coef": "objective.regularizer_weight",
    "reg2_epsilon": "objective.gamma",
    "pit_warmup_steps": "objective.noise_warmup_steps",
    "steps": "train.steps",
    "valid_steps": "train.validate_every",
    "seed": "train.seed",
    "lr": "optimizer.learning_rate",
    "lr_warmup_steps": "optimizer.warmup_steps",
    "lr_decay_steps": "optimizer.decay_end_step",
    "lr_decay_multiplier": "optimizer.final_factor",
    "grad_norm_clip": "optimizer.max_gradient_norm",
}
# The sigmoid of a mask and the frequency warp are not optional here.
_FIXED = {"log_freq": True, "binary_mask": True}

_IMAGE_MODELS = {"clipsep_nit": "clipsepnit", "labelsep": "label_only", "bertsep": "bert", "sop": "sop", "pit": "pit"}

# Sizes that the official code fixes.
_OFFICIAL_WIDTH, _OFFICIAL_LEVELS, _OFFICIAL_BINS, _OFFICIAL_SOURCES = 64, 5, 256, 2


T = TypeVar("T")


@dataclass(frozen=True)
class TrainArgs:
    """What a run's `train-args.json` says; empty if there is none."""

    folder: Path = Path()
    values: dict[str, Any] = field(default_factory=dict)

    def changes(self, *, by_clip: bool) -> dict[str, Any]:
        """The options of our config that it sets; `by_clip` where CLIP encodes the queries."""
        read = _OPTIONS | {"audio_rate": "spectrogram.sample_rate_hz", "drop_closest": "data.drop_closest"}
        found = {path: self.values.get(name) for name, path in read.items()}
        if by_clip:
            found["query.kind"] = self.values.get("train_mode")
        return {path: value for path, value in found.items() if value is not None}

    def labels(self, count: int) -> list[str]:
        """The labels in the order of their numbers; the numbers themselves, if the label map cannot be found.

        Raises:
            InputError: the label map does not number that many labels.
        """
        path = self._file("label_map_filename")
        if path is None:
            return [str(i) for i in range(count)]
        numbers = _read_values(path, dict[str, int])
        if sorted(numbers.values(), key=str) != sorted(range(count), key=str):
            raise InputError(f"{path} does not number the checkpoint's {count} labels from 0 on; give the run's own.")
        return sorted(numbers, key=lambda label: numbers[label])

    def sentence_table(self, query_size: int) -> EmbeddingTable | None:
        """The embeddings of the labels, if their file can be found.

        Raises:
            InputError: it holds vectors of another size.
        """
        path = self._file("bert_embeddings")
        if path is None:
            return None
        tensors = read_torch_tensors(path)
        if not tensors or any(tensor.size != query_size for tensor in tensors.values()):
            raise InputError(f"{path} does not hold vectors of size {query_size}; give the run's own.")
        vectors = np.stack([tensor.reshape(-1) for tensor in tensors.values()])
        return EmbeddingTable(tuple(map(str, tensors)), vectors.astype(np.float32))

    def _file(self, name: str) -> Path | None:
        """A file that the arguments name, at its path or beside `train-args.json`."""
        text = self.values.get(name)
        if not isinstance(text, str) or not is_file_name(PurePath(text).name):
            return None
        path = Path(text)
        return next((place for place in (path, self.folder / path.name) if place.is_file()), None)


def read_train_args(path: Path) -> TrainArgs:
    """Reads a run's arguments.

    Raises:
        InputError: the file is not a `train-args.json`, or the run is of an unsupported kind.
    """
    values = _read_values(path, dict[str, Any])
    for name, value in (_FIXED | {"win_len": values.get("n_fft")}).items():
        if values.get(name, value) != value:
            raise InputError(
                f"{path} has {name} = {shown(values[name])}; only models with {name} = {value} can be read."
            )
    return TrainArgs(path.parent, values)


def _read_values(path: Path, kind: type[T] | GenericAlias) -> T:
    otherwise = "cannot be read as JSON, or holds no names and values; give the file of an official run."
    try:
        return read_json(path, otherwise, kind)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the file of an official run.") from error


def official_system(model: ModelDir) -> str:
    """The official system that a model is.

    Raises:
        InputError: it is not an official one, or has sizes that the official code does not support.
    """
    config = model.config
    encoder, _ = split_name(model.encoder.name if model.encoder else config.query.encoder)
    kinds = {"label": "labelsep", "sentence": "bertsep", "none": "pit"}
    parts = {
        f"clipsep_{config.model.fusion}": config.model.fusion != "late",
        "clipsep_nit": config.model.num_noise_heads > 0,
        kinds.get(config.query.kind, ""): config.query.kind in kinds,
        "sop": encoder.startswith("resnet18"),
    }
    systems = [name for name, present in parts.items() if present] or ["clipsep"]
    if len(systems) > 1:
        raise InputError(f"{model.folder} is {' and '.join(systems)} at once, which no official class is.")
    if systems == ["sop"] and encoder != "resnet18-clip":
        raise InputError(
            f"{model.folder} was not trained on CLIP's colours, which the official code gives a ResNet-18."
        )
    _check_sizes(model, systems[0])
    return systems[0]


def _check_sizes(model: ModelDir, system: str) -> None:
    config, network = model.config, model.config.model
    found = {
        "width": (network.width, _OFFICIAL_WIDTH),
        "number of levels": (min(network.num_levels, _OFFICIAL_LEVELS), _OFFICIAL_LEVELS),
        "number of frequency bins": (config.spectrogram.num_warped_bins, _OFFICIAL_BINS),
    }
    if system != "pit":
        found["query size"] = (network.query_size, 256 if system == "bertsep" else 512)
    if system in ("pit", "clipsep_nit"):
        masks = network.num_learned_queries if system == "pit" else network.num_noise_heads
        found["number of sources"] = (config.data.num_sources, _OFFICIAL_SOURCES)
        found["number of masks"] = (masks, _OFFICIAL_SOURCES)
    for name, (value, official) in found.items():
        if value != official:
            raise InputError(f"The {name} of {model.folder} is {value}, but the official code fixes it at {official}.")


def write_official_files(model: ModelDir, system: str, folder: Path) -> None:
    """Writes the files beside the checkpoint; the official code finds the other files by absolute paths.

    Raises:
        InputError: a model of sentences lacks their embeddings.
    """
    values = _official_args(model.config, system)
    if system == "labelsep":
        values["label_map_filename"] = _write_labels(folder, model.labels)
    if system == "bertsep":
        table = EmbeddingTable.load(model.folder / TABLE_FILE)
        values["label_map_filename"] = _write_labels(folder, table.labels)
        values["bert_embeddings"] = _write_table(folder / "bert_embeddings.pt", table)
    write_json(folder / ARGS_FILE, values)


def _official_args(config: Config, system: str) -> dict[str, Any]:
    groups = config.to_dict()
    values = {name: groups[path.split(".")[0]][path.split(".")[1]] for name, path in _OPTIONS.items()}
    by_clip = system.startswith("clipsep")
    return values | {
        **_FIXED,
        "audio_rate": config.spectrogram.sample_rate_hz,
        "drop_closest": {"keep": None, "downweight": -1}.get(config.data.similar_pairs, config.data.num_dropped_pairs),
        "win_len": config.spectrogram.fft_size,
        "image_model": _IMAGE_MODELS.get(system, "clip"),
        "train_mode": config.query.kind if by_clip else "image",
        "fusion": config.model.fusion,
        "channels": config.model.num_channels,
        "layers": config.model.num_levels,
        "n_labels": config.model.num_labels or None,
        "label_map_filename": None,
        "bert_embeddings": None,
        "loss": "bce",
        "img_size": 224,
        "fps": 1,
        "stride_frames": 1,
        "reg_coef": 0,
        "reg_epsilon": 0.1,
    }


def _write_labels(folder: Path, labels: Sequence[str]) -> str:
    path = folder / "labels.json"
    write_json(path, {label: number for number, label in enumerate(labels)})
    return str(path.resolve())


def _write_table(path: Path, table: EmbeddingTable) -> str:
    import torch

    with atomic_write(path) as file:
        rows = zip(table.labels, table.vectors, strict=True)
        torch.save({label: torch.from_numpy(vector.copy())[None] for label, vector in rows}, file)
    return str(path.resolve())
