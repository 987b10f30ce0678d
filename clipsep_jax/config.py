"""Every option of a run, as frozen dataclasses with their defaults (those of the official code).

The files in `configs/` start from `default_config()`, an `ml_collections.ConfigDict` of the same fields, and state
only their differences; the command line may override single values. `Config.from_config_dict` checks names and types.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from clipsep_jax.config_checks import check
from clipsep_jax.errors import InputError
from clipsep_jax.old_options import OLD_OPTIONS, replace_old_options
from clipsep_jax.schema import dotted, shown

if TYPE_CHECKING:
    from ml_collections import ConfigDict

T = TypeVar("T")

# What a query is; `queries.kinds` has a class for each. "hybrid" alternates images and texts.
QueryKind = Literal["image", "text", "hybrid", "label", "sentence", "audio", "none"]

SAMPLE_RATE_HZ = 16_000  # of records, models and everything that is separated


def _from_data() -> Any:
    """A size that is not an option: the kind of query fills it in from the data."""
    return field(default=0, metadata={"from_data": True})


@dataclass(frozen=True)
class SpectrogramConfig:
    """STFT and log-frequency warp."""

    num_samples: int = 65_535  # of one training clip
    fft_size: int = 1024
    hop_samples: int = 256
    num_warped_bins: int = 256

    @property
    def sample_rate_hz(self) -> int:
        return SAMPLE_RATE_HZ

    @property
    def num_bins(self) -> int:
        return self.fft_size // 2 + 1

    @property
    def num_frames(self) -> int:
        return self.num_samples // self.hop_samples + 1


@dataclass(frozen=True)
class MixingConfig:
    """What a mixture's loss looks at."""

    weighted: bool = True  # weight bins by log(1 + magnitude), else equally
    targets: Literal["binary", "ratio"] = "binary"  # where a source has more than half, or its share
    sources_per_target: int = 1  # more: a target is a mixture itself, for the mixture invariant objective
    fewest_sounding: int = 0  # of an example's clips, drawn up to most_sounding; the others are silent in the mixture,
    most_sounding: int = 0  # and their queries ask for what is not there; 0: all clips sound
    absent_weight: float = 1.0  # in the loss, of masks for what is not there


@dataclass(frozen=True)
class ModelConfig:
    """The mask network."""

    network: Literal["unet", "tdf_unet"] = "unet"  # the second has blocks that connect all frequencies
    num_levels: int = 7  # halvings of the spectrogram; its sides must be multiples of 2**num_levels
    width: int = 64  # channels of the first level; doubled at each level, up to 8 times this
    num_channels: int = 32  # of the features that a query vector is multiplied with
    num_noise_heads: int = 0
    num_masks: int = 0  # of a model without queries; 0: as many as sources
    negative_query: bool = False  # a second query, for what shall be left out
    query_size: int = 512
    fusion: Literal["late", "middle", "early", "film"] = "late"  # queries join after the U-Net, at its bottleneck, its
    # input, or in each of its blocks
    init_std: float = 0.001  # of convolutions
    num_labels: int = _from_data()  # that queries name by number, each with a trained embedding
    num_learned_queries: int = _from_data()  # above 0: so many learned queries, and none as input
    num_bins: int = _from_data()  # of the spectrogram, where a part of the network has a size by it
    hears_examples: int = _from_data()  # 1: queries are spectrograms of examples


@dataclass(frozen=True)
class ObjectiveConfig:
    """The loss; see objectives.py."""

    name: Literal["weighted", "permutation_invariant", "noise_invariant", "mixture_invariant"] = "weighted"
    criterion: Literal["bce", "l1"] = "bce"  # between a mask and its target
    gamma: float = 0.25  # the mean noise activation that costs nothing
    regularizer_weight: float = 0.1
    regularizer: Literal["sum", "ratio"] = "sum"  # of the noise masks' means, or its ratio to the query masks'
    noise_warmup_steps: int = 0  # during which only the query masks are trained
    sparsity_weight: float = 0.0  # of the mixture invariant objective, for few active masks


@dataclass(frozen=True)
class QueryConfig:
    """What a training query is and where it comes from."""

    kind: QueryKind = "image"
    source: Literal["embeddings", "frames"] = "embeddings"  # that `prepare` stored, or pictures encoded in the step
    encoder: str = ""  # Hugging Face CLIP folder or hub id; "" takes the one that prepared the records
    table: str = ""  # with "sentence": file with an embedding of each label
    combine: Literal["mean", "mix_up", "compete"] = "mean"  # of a clip's pictures, and its text with "hybrid"
    centre: bool = False  # subtract the mean of the training pictures from pictures, that of the labels from texts
    noise: float = 0.0  # added to training queries: the norm of a normal vector, as a share of the query's


@dataclass(frozen=True)
class DataConfig:
    """Where clips come from and how they are cut, paired and batched."""

    records: str = "data/records"
    train_split: str = "train"
    validation_split: str = "validation"
    num_sources: int = 2
    batch_size: int = 32
    frames_per_clip: int = 3  # pictures around the centre, averaged
    frame_margin: int = 3  # pictures before and after the centre of a clip
    gain_min: float = 0.5
    gain_max: float = 1.5
    gain_law: Literal["linear", "decibels"] = "linear"  # in which gains are uniform
    distinct_labels: bool = False  # no two clips of a training example have the same label
    read_workers: int = -1  # processes that read clips; -1: as the cores allow; 0: threads of the training process
    read_threads: int = 4  # that read clips where no processes do
    similar_pairs: Literal["keep", "drop", "downweight"] = "keep"  # mixtures of sources whose queries are alike
    num_dropped_pairs: int = 0  # with "drop": how many of the most similar pairs to drop, read in addition to a batch
    similar_pairs_from_step: int = 10_000


@dataclass(frozen=True)
class ToyConfig:
    """Toy records that a config may make on first use."""

    num_clips: int = 0  # 0: none are made
    encoder_steps: int = 0  # contrastive steps of the miniature CLIP; 0 leaves it untrained


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam behind a global-norm clip, with linear warm-up and linear decay."""

    learning_rate: float = 1e-3
    warmup_steps: int = 5_000
    decay_end_step: int = 100_000
    final_factor: float = 0.1
    max_gradient_norm: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 200_000
    seed: int = 0
    log_every: int = 100
    validate_every: int = 10_000
    validation_batches: int = 16
    board_mixtures: int = 2  # held-out mixtures whose masks and sounds TensorBoard shows at each validation
    max_skipped_in_row: int = 10  # steps without a finite loss and gradient before the run ends
    hang_seconds: int = 1_800  # without a step before the process prints its stacks and exits
    frozen: str = ""  # patterns of tensors that stay as they are, separated by commas, such as "unet.*"
    precision: Literal["float32", "bfloat16"] = "float32"  # of the U-Net's arithmetic; all else stays float32
    sharding: Literal["replicated", "fsdp"] = "replicated"  # every device holds the whole state, or a part of it
    remat: bool = False  # recompute inner levels in the backward pass: less memory, more time


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of a run."""

    save_every: int = 1_000
    keep_latest: int = 2


@dataclass(frozen=True)
class Config:
    """A whole run."""

    spectrogram: SpectrogramConfig = field(default_factory=SpectrogramConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    query: QueryConfig = field(default_factory=QueryConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    toy: ToyConfig = field(default_factory=ToyConfig, compare=False)  # of the data, not of the run: never stored

    @classmethod
    def from_config_dict(cls, values: "ConfigDict | dict[str, Any]") -> "Config":
        """Builds and checks a config.

        Raises:
            InputError: a key is unknown, a value has the wrong type, or values contradict each other.
        """
        config = _build(cls, replace_old_options(values if isinstance(values, dict) else values.to_dict()), "config")
        check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """The options as nested plain values, which `from_config_dict` reads back; without those of toy records."""
        return {group.name: _options(getattr(self, group.name)) for group in dataclasses.fields(self) if group.compare}

    @property
    def most_sounding(self) -> int:
        """How many sources sound together in the mixtures at most."""
        return self.mixing.most_sounding or self.data.num_sources

    @property
    def fewest_sounding(self) -> int:
        """How many sources sound together in the mixtures at least."""
        return self.mixing.fewest_sounding or self.most_sounding

    def replace(self, **groups: dict[str, Any]) -> "Config":
        """A config with other values, such as `config.replace(train={"steps": 3})`; nothing is checked."""
        changed = {name: dataclasses.replace(getattr(self, name), **values) for name, values in groups.items()}
        return dataclasses.replace(self, **changed)


def _options(group: Any) -> dict[str, Any]:
    return {name.name: getattr(group, name.name) for name in dataclasses.fields(group) if _is_option(name)}


def _is_option(name: dataclasses.Field) -> bool:
    return not name.metadata.get("from_data")


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The options that differ between two configs as nested plain values, by dotted name; None where there is none."""
    old, new = _flat(before), _flat(after)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def default_config() -> "ConfigDict":
    """The defaults as a locked ConfigDict, for the files in `configs/` to change."""
    from ml_collections import ConfigDict, config_dict

    values = Config().to_dict() | {"toy": _options(ToyConfig())}
    for name in OLD_OPTIONS:  # old config files and command lines may set them
        group, _, option = name.rpartition(".")
        (values[group] if group else values)[option] = config_dict.placeholder(object)
    return ConfigDict(values)


def _build(kind: type[T], values: dict[str, Any], where: str) -> T:
    types = get_type_hints(kind)
    names = [name.name for name in dataclasses.fields(kind) if _is_option(name)]  # type: ignore[arg-type]
    arguments = {}
    for name, value in values.items():
        if name not in names:
            raise InputError(f"{dotted(where, name)} is not an option; {where} has {', '.join(sorted(names))}.")
        arguments[name] = _convert(types[name], value, dotted(where, name))
    return kind(**arguments)


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise InputError(f"{where} must be a group of options, not {shown(value)}.")
        return _build(kind, value, where)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise InputError(f"{where} is {shown(value)}; it must be one of {', '.join(map(repr, get_args(kind)))}.")
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"{where} must be of type {kind.__name__}, not {shown(value)}.")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{where} is {value}; it must be finite.")
    return value
