"""The official PyTorch checkpoints: one table of names, read both ways.

An official file is the state dict of a `DataParallel`, so that every name begins with `module.`. What it holds beyond
our network (counters, and the layers that middle fusion never uses) is kept beside an imported model, in
`official.safetensors`, and given back on export.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx

from clipsep_jax.config import Config, ModelConfig
from clipsep_jax.data.record_set import EncoderInfo
from clipsep_jax.encoders.registry import load_encoder, split_name
from clipsep_jax.errors import InputError
from clipsep_jax.files import atomic_write, staged_folder
from clipsep_jax.model_dir import TABLE_FILE, ModelDir, open_model_dir, start_model_dir, write_weights
from clipsep_jax.models.clipsep import build_model, stored_rules
from clipsep_jax.models.unet import level_widths
from clipsep_jax.official.arguments import TrainArgs, official_system, read_train_args, write_official_files
from clipsep_jax.tensors import (
    CONV,
    LINEAR,
    UP_CONV,
    WEIGHTS_FILE,
    Rule,
    export_tensors,
    listed,
    load_tensors,
    read_tensors,
    read_torch_tensors,
    write_tensors,
)

REST_FILE = "official.safetensors"

Modality = Literal["text", "image"]

# What a system sets in the config, beyond the sizes of the network. Sound of Pixels was trained on CLIP's colours.
SYSTEMS: dict[str, dict[str, str]] = {
    "clipsep": {},
    "clipsep_nit": {"objective.name": "noise_invariant"},
    "clipsep_early": {"model.fusion": "early"},
    "clipsep_middle": {"model.fusion": "middle"},
    "labelsep": {"query.kind": "label"},
    "bertsep": {"query.kind": "sentence", "query.table": TABLE_FILE},
    "sop": {"query.encoder": "resnet18-clip:"},
    "pit": {"query.kind": "none", "objective.name": "permutation_invariant"},
}
_ENCODER_KINDS = {name: "clip" for name in SYSTEMS if name.startswith("clipsep")} | {"sop": "resnet18-clip"}

# A tensor that only one system has.
_TELLING = {
    "clipsep_middle": "sound_net.unet_block.downconv.weight",
    "clipsep_early": "frame_net.fc.weight",
    "clipsep_nit": "pit_nets.0.weight",
    "labelsep": "label_net.weight",
    "pit": "synth_net.weight",
}
_SENTENCE_SIZE = 256  # of the official sentence embeddings


@dataclass(frozen=True)
class _Level:
    """Official names of the layers of one level of the U-Net."""

    down: str
    down_norm: str
    up: str
    up_norm: str


def _levels(num_levels: int, fusion: str) -> list[_Level]:
    """Outermost first."""
    block, levels = "sound_net.unet_block", []
    for i in range(num_levels):
        if fusion == "middle":
            names, inner = ("downconv", "downnorm", "upconv", "upnorm"), "submodule"
        elif i == 0:
            names, inner = ("model.0", "", "model.4", ""), "model.1"
        elif i == num_levels - 1:
            names, inner = ("model.1", "", "model.4", "model.5"), ""
        else:
            names, inner = ("model.1", "model.2", "model.6", "model.7"), "model.3"
        levels.append(_Level(*(f"{block}.{name}" for name in names)))
        block = f"{block}.{inner}"
    return levels


def _norm(theirs: str, ours: str) -> list[Rule]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return [Rule(f"{theirs}.{a}", f"{ours}.{b}") for a, b in names.items()]


def _linear(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.weight", f"{ours}.kernel", LINEAR), Rule(f"{theirs}.bias", f"{ours}.bias")]


def _unet_rules(levels: list[_Level]) -> list[Rule]:
    rules = [
        *_norm("sound_net.bn0", "network.input_norm"),
        Rule(f"{levels[0].up}.weight", "fusion.last.kernel", UP_CONV),
        Rule(f"{levels[0].up}.bias", "fusion.last.bias"),
    ]
    for i, level in enumerate(levels):
        rules.append(Rule(f"{level.down}.weight", f"network.down.{i}.kernel", CONV))
        if i > 0:
            rules.append(Rule(f"{level.up}.weight", f"network.up.{i - 1}.kernel", UP_CONV))
            rules += _norm(level.up_norm, f"network.up_norm.{i - 1}")
            rules += _norm(level.down_norm, f"network.down_norm.{i - 1}")
    return rules


def official_rules(config: ModelConfig) -> tuple[Rule, ...]:
    """The table: official names and ours."""
    return (
        *_unet_rules(_levels(config.num_levels, config.fusion)),
        *_linear("frame_net.fc" if config.fusion == "early" else "frame_net", "fusion.query_head"),
        *_linear("pit_nets.{i}", "fusion.noise_heads.projections.{i}"),
        Rule("label_net.weight", "label_embedding.embedding"),
        Rule("synth_net.scale", "fusion.inner_product.scale"),
        Rule("synth_net.bias", "fusion.inner_product.bias"),
        Rule("synth_net.weight", "fusion.learned_queries.kernel", CONV),
        Rule("synth_net.bias", "fusion.learned_queries.bias"),
    )


def official_rest(config: ModelConfig, num_updates: int = 0) -> dict[str, np.ndarray]:
    """What the official modules hold beyond our network, with initial values.

    Args:
        num_updates: how often the running statistics were updated.
    """
    levels, last = _levels(config.num_levels, config.fusion), config.num_levels - 1
    norms = ["sound_net.bn0", *(level.up_norm for level in levels[1:]), *(level.down_norm for level in levels[1:last])]
    rest = {f"{norm}.num_batches_tracked": np.array(num_updates, np.int64) for norm in norms}
    if config.fusion == "middle":
        widths = level_widths(config)
        for i in {0, last}:
            rest |= _new_norm(levels[i].down_norm, widths[i])
        rest["synth_net.scale"] = np.ones(config.num_channels, np.float32)
        rest["synth_net.bias"] = np.zeros(1, np.float32)
    return rest


def _new_norm(name: str, size: int) -> dict[str, np.ndarray]:
    ones, zeros = np.ones(size, np.float32), np.zeros(size, np.float32)
    tensors = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones}
    return {f"{name}.{key}": value for key, value in tensors.items()} | {
        f"{name}.num_batches_tracked": np.array(0, np.int64)
    }


def infer_system(tensors: Mapping[str, np.ndarray]) -> str:
    """The system that a state dict belongs to; Sound of Pixels cannot be distinguished from CLIPSep."""
    for system, name in _TELLING.items():
        if name in tensors:
            return system
    head = tensors.get("frame_net.weight")
    return "bertsep" if head is not None and head.shape[-1:] == (_SENTENCE_SIZE,) else "clipsep"


def infer_sizes(tensors: Mapping[str, np.ndarray], system: str, source: str) -> dict[str, int]:
    """The sizes of the network, as fields of `ModelConfig`.

    Raises:
        InputError: names the tensor that they cannot be read from.
    """

    def size(name: str, axis: int, num_axes: int) -> int:
        tensor = tensors.get(name)
        if tensor is None or tensor.ndim != num_axes or not tensor.size:
            found = "is missing" if tensor is None else f"has the shape {tensor.shape}"
            raise InputError(f"{source} cannot be read as {system}: {name}, which determines its sizes, {found}.")
        return tensor.shape[axis]

    middle = system == "clipsep_middle"
    inner = "submodule" if middle else "model"
    depths = [name.split(".").count(inner) for name in tensors if name.startswith("sound_net.unet_block.")]
    num_levels = max(depths, default=1) + middle
    down = _levels(num_levels, "middle" if middle else "late")[0].down
    sizes = {"num_levels": num_levels, "width": size(f"{down}.weight", 0, 4)}
    if system == "pit":
        return sizes | {
            "num_learned_queries": size("synth_net.weight", 0, 4),
            "num_channels": size("synth_net.weight", 1, 4),
        }
    head = "frame_net.fc.weight" if system == "clipsep_early" else "frame_net.weight"
    sizes |= {"num_channels": size(head, 0, 2), "query_size": size(head, 1, 2)}
    if system == "labelsep":
        sizes["num_labels"] = size("label_net.weight", 0, 2)
    if system == "clipsep_nit":
        sizes["num_noise_heads"] = sum(name.startswith("pit_nets.") and name.endswith(".weight") for name in tensors)
    return sizes


def import_torch(
    checkpoint: Path,
    out: Path,
    system: str | None = None,
    clip: str | None = None,
    train_args: Path | None = None,
) -> Path:
    """Writes the model directory `out` from an official state dict.

    Args:
        checkpoint: what PyTorch saved, or the same as safetensors; with or without `module.`.
        system: one of `SYSTEMS`; inferred from the names if None.
        clip: the query encoder's name; without it the model can be used only with embeddings.
        train_args: the run's `train-args.json`, for the settings, the labels and the sentence embeddings.

    Raises:
        InputError: something cannot be read or does not fit; then nothing is written.
    """
    if out.is_file() or (out / WEIGHTS_FILE).exists():
        raise InputError(f"{out} is a file or already holds a model; give a new folder.")
    tensors = _read_checkpoint(checkpoint)
    system = system or infer_system(tensors)
    if system not in SYSTEMS:
        raise InputError(f"There is no official system {system!r}; choose one of {', '.join(SYSTEMS)}.")
    arguments = read_train_args(train_args) if train_args else TrainArgs()
    config = _config(infer_sizes(tensors, system, str(checkpoint)), system, arguments)
    model = nnx.eval_shape(lambda: build_model(config.model, nnx.Rngs(0)))
    rest = official_rest(config.model)
    load_tensors(model, tensors, official_rules(config.model), f"{checkpoint}, read as {system},", rest)
    encoder = _encoder_info(clip, system, config.model.query_size) if clip else None
    labels = arguments.labels(config.model.num_labels) if system == "labelsep" else ()
    table = arguments.sentence_table(config.model.query_size) if system == "bertsep" else None

    num_updates = int(tensors["sound_net.bn0.num_batches_tracked"])
    with staged_folder(out, last=WEIGHTS_FILE) as staging:
        start_model_dir(staging, config, encoder, labels, table)
        write_tensors(staging / REST_FILE, {name: tensors[name] for name in rest})
        write_weights(staging, model, num_updates // _updates_per_step(config), None)
    return out


def _read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"There is no file {path}; give an official checkpoint.")
    tensors = read_tensors(path) if path.suffix == ".safetensors" else read_torch_tensors(path)
    if not tensors:
        raise InputError(f"{path} holds no tensors; give the state dict of an official model.")
    named = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    twice = [name for name in named if name in tensors and f"module.{name}" in tensors]
    if twice:
        raise InputError(f"{path} holds {twice[0]} with and without `module.`; save the model's state_dict() alone.")
    return named


def _config(sizes: dict[str, int], system: str, arguments: TrainArgs) -> Config:
    values = Config().to_dict()
    changes = arguments.changes(by_clip=system.startswith("clipsep")) | SYSTEMS[system]
    for path, value in (changes | {f"model.{name}": size for name, size in sizes.items()}).items():
        group, name = path.split(".")
        values[group][name] = value
    config = Config.from_config_dict(values)
    return config.replace(model={name: sizes[name] for name in ("num_labels", "num_learned_queries") if name in sizes})


def _updates_per_step(config: Config) -> int:
    return 1 if config.model.fusion == "late" else config.data.num_sources


def _encoder_info(name: str, system: str, query_size: int) -> EncoderInfo:
    kind = _ENCODER_KINDS.get(system)
    if kind is None:
        raise InputError(f"{system} uses no encoder; import it without one.")
    if split_name(name)[0] != kind:
        raise InputError(f"{name} is not an encoder for {system}, which takes one of the kind {kind}:PLACE.")
    encoder = load_encoder(name)
    otherwise = f", but the checkpoint takes {query_size}; give the encoder that it was trained with."
    encoder.check_query_size(query_size, otherwise)
    return EncoderInfo(encoder.name, encoder.sha256, encoder.query_size)


def official_tensors(model: ModelDir, modality: Modality | None = None) -> dict[str, np.ndarray]:
    """A model's state dict under the official names, without `module.`.

    Args:
        modality: of the queries that the exported model is asked by, for a model that centres them. An official model
            takes them as they are, so W (q - m) + b becomes W q + (b - W m), with the mean m of that modality alone.

    Raises:
        InputError: the official code cannot hold such a model, or the modality is missing.
    """
    tensors = _uncentred_tensors(model)
    centre = model.load_centre()
    if centre is None:
        if modality:
            raise InputError(f"{model.folder} subtracts no mean from its queries; leave out --modality.")
        return tensors
    if modality is None:
        raise InputError(
            f"{model.folder} subtracts a mean of their own from texts and from pictures, and the official code from "
            "none; give --modality text or image, by which the exported model will be asked."
        )
    head = "frame_net.fc" if model.config.model.fusion == "early" else "frame_net"
    folded = tensors[f"{head}.bias"] - tensors[f"{head}.weight"] @ getattr(centre, modality)
    return tensors | {f"{head}.bias": folded.astype(np.float32)}


def _uncentred_tensors(model: ModelDir) -> dict[str, np.ndarray]:
    config, module = model.config.model, model.load_model()
    rules = official_rules(config)
    more = [own.theirs for own in stored_rules(module) if all(r.their_name(str(own.ours)) is None for r in rules)]
    if more:
        raise InputError(
            f"{model.folder} has parts that no official class has ({listed(more)}); it can be used here alone."
        )
    if (model.folder / REST_FILE).is_file():
        rest = read_tensors(model.folder / REST_FILE)
    else:
        rest = official_rest(config, (model.progress.step or 0) * _updates_per_step(model.config))
    return export_tensors(module, rules) | rest


def export_torch(
    model_dir: str | Path, out_file: Path, *, safetensors: bool = False, modality: Modality | None = None
) -> Path:
    """Writes a state dict that the official class, inside a `DataParallel`, loads with `strict=True`.

    Args:
        model_dir: a model directory or a training workdir.
        safetensors: write the same tensors without pickle.
        modality: see `official_tensors`.

    Raises:
        InputError: there is no model, the official code cannot hold it, or PyTorch is missing.
    """
    if out_file.is_dir():
        raise InputError(f"{out_file} is a folder; give the name of a file.")
    found = official_tensors(open_model_dir(model_dir), modality)
    tensors = {f"module.{name}": tensor for name, tensor in found.items()}
    out_file.parent.mkdir(parents=True, exist_ok=True)
    if safetensors:
        write_tensors(out_file, tensors)
    else:
        _write_torch(out_file, tensors)
    return out_file


def export_official_layout(model_dir: str | Path, folder: Path, modality: Modality | None = None) -> Path:
    """Writes the folder that the official `infer.py` and `evaluate.py` take as `--out_dir`.

    Raises:
        InputError: the official code has no such model, or PyTorch is missing.
    """
    _require_torch()
    model = open_model_dir(model_dir)
    system = official_system(model)
    official_tensors(model, modality)  # refuses before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    write_official_files(model, system, folder)
    export_torch(model_dir, folder / "checkpoints" / "best_model.pt", modality=modality)
    return folder


def _require_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise InputError("This needs PyTorch; install it (pip install torch).")


def _write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    _require_torch()
    import torch

    with atomic_write(path) as file:
        torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, file)
