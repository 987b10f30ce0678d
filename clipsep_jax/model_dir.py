"""A model directory: what `separate` and `evaluate` need of a trained model, without pickle.

config.json        format, the whole config, the query encoder's name and hash
model.safetensors  parameters and running statistics; its metadata holds the step and the validation loss
query_encoder/     a copy of the query encoder, where that was a local folder

and where the config needs them query_table.safetensors (`query.table`) and query_centre.safetensors (`query.centre`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flax import nnx

from clipsep_jax.config import Config
from clipsep_jax.data.record_set import EncoderInfo
from clipsep_jax.encoders.registry import copy_encoder, moved_name
from clipsep_jax.errors import InputError
from clipsep_jax.files import check_json, decode_json, encode_json, read_json, write_json
from clipsep_jax.hub import find_separator
from clipsep_jax.models.clipsep import CLIPSep, build_model, stored_rules
from clipsep_jax.queries.centre import Centre
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.tensors import (
    WEIGHTS_FILE,
    export_tensors,
    load_tensors,
    read_metadata,
    read_tensors,
    write_tensors,
)
from clipsep_jax.terminal import printable

FORMAT = 1
CONFIG_FILE = "config.json"
ENCODER_FOLDER = "query_encoder"
TABLE_FILE = "query_table.safetensors"
CENTRE_FILE = "query_centre.safetensors"
BEST_FOLDER = "best"  # in a training workdir

_NO_CONFIG = "is not the config of a clipsep model; give the folder of one."


@dataclass(frozen=True)
class Progress:
    """How far a model was trained; None where it is unknown."""

    step: int | None = None
    validation_loss: float | None = None


@dataclass(frozen=True)
class _StoredConfig:
    format: int
    labels: tuple[str, ...]
    query_encoder: EncoderInfo | None
    config: dict


@dataclass(frozen=True)
class ModelDir:
    """A model directory that was found and whose config was read."""

    folder: Path
    config: Config
    encoder: EncoderInfo | None
    labels: tuple[str, ...]  # that label queries may name, in the order of their numbers
    progress: "Progress"

    @property
    def encoder_name(self) -> str:
        """Folder or hub id of the query encoder.

        Raises:
            InputError: the model was trained without a known encoder.
        """
        copy = self.folder / ENCODER_FOLDER
        if copy.is_dir():
            return moved_name(self.encoder.name, copy) if self.encoder else str(copy)
        if self.encoder is None:
            raise InputError(f"{self.folder} does not say which query encoder it was trained with; train it again.")
        return self.encoder.name

    def load_centre(self) -> Centre | None:
        """What is subtracted from queries, if the model was trained so.

        Raises:
            InputError: the file is missing or damaged.
        """
        if not self.config.query.centre:
            return None
        return Centre.load(self.folder / CENTRE_FILE, self.config.model.query_size)

    def load_model(self) -> CLIPSep:
        """The network with its weights, in evaluation mode.

        Raises:
            InputError: the weights are damaged or do not fit the config.
        """
        model = nnx.eval_shape(lambda: build_model(self.config.model, nnx.Rngs(0)))
        load_tensors(model, read_tensors(self.folder), stored_rules(model), str(self.folder / WEIGHTS_FILE))
        model.eval()
        return model


def start_model_dir(
    folder: Path,
    config: Config,
    encoder: EncoderInfo | None,
    labels: Sequence[str] = (),
    table: EmbeddingTable | None = None,
    centre: Centre | None = None,
) -> None:
    """Writes all except the weights: config, labels, and the files of the encoder (where local), table and centre."""
    folder.mkdir(parents=True, exist_ok=True)
    if encoder is not None:
        copy_encoder(encoder.name, folder / ENCODER_FOLDER)
    if table is not None:
        table.save(folder / TABLE_FILE)
    if centre is not None:
        centre.save(folder / CENTRE_FILE)
    write_json(folder / CONFIG_FILE, asdict(_StoredConfig(FORMAT, tuple(labels), encoder, config.to_dict())))


def write_weights(folder: Path, model: CLIPSep, step: int, validation_loss: float | None) -> None:
    """Writes the weights into a started model directory, whole or not at all."""
    # One entry, because safetensors writes several in any order and equal runs must give equal bytes.
    progress = encode_json(asdict(Progress(step, validation_loss))).decode().rstrip()
    write_tensors(folder / WEIGHTS_FILE, export_tensors(model, stored_rules(model)), {"progress": progress})


def open_model_dir(path: str | Path, *, download: bool = False) -> ModelDir:
    """Finds a model directory: `path` itself, the best model of the training workdir `path`, or one of the Hub.

    Args:
        download: whether a model of the Hugging Face Hub, `owner/name` or `owner/name@revision`, is fetched if it is
            not on this machine.

    Raises:
        InputError: there is no model, or it is damaged or of another format.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        path = find_separator(str(path), download=download)
    folder = path if (path / CONFIG_FILE).is_file() else path / BEST_FOLDER
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{path} holds no trained model: {folder / name} is missing; train one there first.")
    return _read_config(folder)


def _read_config(folder: Path) -> ModelDir:
    path = folder / CONFIG_FILE
    values = read_json(path, _NO_CONFIG, dict)
    version = check_json(values.get("format"), path, _NO_CONFIG, int, "format")
    if version != FORMAT:
        raise InputError(f"{path} has format {version}, but this version reads {FORMAT}; update clipsep-jax.")
    stored = check_json(values, path, _NO_CONFIG, _StoredConfig)
    with_labels = Config.from_config_dict(stored.config)
    config = kind_of(with_labels).fit(with_labels, stored.labels)
    return ModelDir(folder, config, stored.query_encoder, stored.labels, read_progress(folder / WEIGHTS_FILE))


def read_progress(path: Path) -> Progress:
    """How far the model of a file of weights was trained.

    Raises:
        InputError: it is damaged.
    """
    progress = read_metadata(path).get("progress", "{}")
    return decode_json(progress, path, "is damaged (its progress cannot be read); restore the file.", Progress)


def describe(model: ModelDir) -> str:
    """A readable summary of a model directory."""
    config = model.config
    arrays = read_tensors(model.folder)
    millions = sum(array.size for array in arrays.values()) / 1e6
    frames, rate = config.spectrogram.num_frames, config.spectrogram.sample_rate_hz
    facts = {
        "model": str(model.folder),
        "objective": config.objective.name,
        "query": f"{config.query.kind}, embeddings of size {config.model.query_size}",
        "encoder": model.encoder_name if model.encoder or (model.folder / ENCODER_FOLDER).is_dir() else "unknown",
        "network": f"{config.model.network}, {config.model.num_levels} levels, width {config.model.width}, "
        f"{config.model.fusion} fusion, {millions:.2f} M values",
        "noise heads": str(config.model.num_noise_heads),
        "audio": f"{rate} Hz mono, chunks of {config.spectrogram.num_samples / rate:.2f} s, {frames} frames",
        "trained": f"{'unknown' if model.progress.step is None else model.progress.step} steps",
        "validation loss": str(model.progress.validation_loss),
    }
    return "\n".join(f"{name:<16}{printable(value)}" for name, value in facts.items())
