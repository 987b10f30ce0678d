"""CLIP as a frozen encoder of pictures and texts, read from and written as Hugging Face folders."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32, PyTree

from clipsep_jax.encoders.base import Encoder
from clipsep_jax.encoders.clip_network import ACTIVATIONS, CLIP_RULES, Clip, ClipConfig, TextConfig, VisionConfig
from clipsep_jax.encoders.pixels import PictureConfig
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.files import check_json, read_json, sha256_of, staged_folder, write_json
from clipsep_jax.hub import CONFIG_FILE, PICTURES_FILE, read_weights, resolve_model_folder, weights_files
from clipsep_jax.schema import shown
from clipsep_jax.tensors import WEIGHTS_FILE, export_tensors, load_tensors, write_tensors

# How every CLIP prepares pictures; 3 is Pillow's number for bicubic resizing.
_PICTURES = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255}

_DAMAGED = "is not of a CLIP; fetch it again."
# What a config may ask for: some times the largest CLIP that was published.
_MOST = {
    "vocab_size": 2**20,
    "hidden_size": 2**14,
    "intermediate_size": 2**16,
    "num_hidden_layers": 128,
    "num_attention_heads": 256,
    "max_position_embeddings": 4_096,
    "image_size": 4_096,
    "patch_size": 4_096,
    "layer_norm_eps": 1.0,
    "eos_token_id": 2**20,
}

Tower = TypeVar("Tower", TextConfig, VisionConfig)


@dataclass(frozen=True, eq=False)
class ClipEncoder(Encoder):
    """A frozen CLIP with its tokenizer; `load_clip` makes it.

    `encode_texts` is pure, as `encode_images` is.
    """

    name: str
    folder: Path
    config: ClipConfig
    pictures: PictureConfig
    graphdef: nnx.GraphDef
    state: PyTree

    @property
    def query_size(self) -> int:
        """Size Q of an embedding."""
        return self.config.projection_dim

    @property
    def image_size(self) -> int:
        """Side in pixels of the square picture that the vision tower sees."""
        return self.config.vision.image_size

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights' file; of several files, of their hashes."""
        digests = [sha256_of(path) for path in weights_files(self.folder)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the folder.

        Raises:
            InputError: the tokenizer is missing, damaged or of another model.
        """
        return _read_tokenizer(self.folder, self.config.text)

    def features(self, model: nnx.Module, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B Q"]:
        """The embeddings of normalised pictures."""
        assert isinstance(model, Clip)
        return model.image_features(pixels)

    def encode_texts(self, state: PyTree, ids: Int[Array, "B P"]) -> Float[Array, "B Q"]:
        """Embed token ids; the result is not scaled to unit length."""
        return nnx.merge(self.graphdef, state).text_features(ids)

    @cached_property
    def _encode_texts(self) -> Callable[..., Array]:
        return jax.jit(self.encode_texts)

    def embed_text(self, texts: Sequence[str], batch_size: int = 8) -> Float32[np.ndarray, "B Q"]:
        """Embed texts from the host, with a warning for each that is too long and was cut."""
        ids, cut = self.tokenize(texts)
        for text, was_cut in zip(texts, cut, strict=True):
            if was_cut:
                start = " ".join(text.split())[:60].rstrip()
                warnings.warn(f'the query "{start}…" was cut at {ids.shape[1]} tokens.', InputWarning, stacklevel=2)
        return self._in_batches(self._encode_texts, ids, batch_size)

    def tokenize(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "B P"], list[bool]]:
        """Return token ids, padded to the longest text the tower takes, and whether each text was cut to that."""
        limit = self.config.text.max_position_embeddings
        words = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates are no text
        rows = self.tokenizer(words, verbose=False)["input_ids"] if words else []
        ids = np.full((len(rows), limit), self.tokenizer.pad_token_id, np.int32)
        for target, row in zip(ids, rows, strict=True):
            whole = row if len(row) <= limit else [*row[: limit - 1], row[-1]]
            target[: len(whole)] = whole
        return ids, [len(row) > limit for row in rows]


def load_clip(name_or_path: str, *, download: bool = True) -> ClipEncoder:
    """Load a CLIP from a Hugging Face folder or from the Hub.

    Args:
        download: whether one that is not on this machine is fetched.

    Raises:
        InputError: the folder or one of its files is missing, damaged, or not of a CLIP that we can run.
    """
    folder = resolve_model_folder(name_or_path, download=download)
    config = read_config(folder)
    pictures = _read_pictures(folder, config.vision.image_size)
    tensors, source = read_weights(folder), str(weights_files(folder)[0])
    for tower, layers in (("text", config.text.num_hidden_layers), ("vision", config.vision.num_hidden_layers)):
        names = [name for name in tensors if name.startswith(f"{tower}_model.") and name.endswith("k_proj.weight")]
        if layers > 2 * len(names):  # before a network of so many is made
            raise InputError(f"{source} does not fit the network; it has {len(names)} {tower} layers, not {layers}.")
    model = nnx.eval_shape(lambda: Clip(config, nnx.Rngs(0)))
    load_tensors(model, tensors, CLIP_RULES, source)
    name = str(folder.resolve()) if Path(name_or_path).expanduser().is_dir() else name_or_path
    return ClipEncoder(name, folder, config, pictures, *nnx.split(model))


def save_clip(
    folder: Path,
    model: Clip,
    config: ClipConfig,
    tokenizer: Any,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> None:
    """Write a CLIP as a Hugging Face folder."""
    size = config.vision.image_size
    tokens = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    settings = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "text_config": {**asdict(config.text), **tokens, "projection_dim": config.projection_dim},
        "vision_config": {**asdict(config.vision), "projection_dim": config.projection_dim},
    }
    pictures = {
        "image_processor_type": "CLIPImageProcessor",
        **_PICTURES,
        "do_center_crop": True,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": list(image_mean),
        "image_std": list(image_std),
    }
    with staged_folder(folder) as staging:
        write_json(staging / CONFIG_FILE, settings)
        write_json(staging / PICTURES_FILE, pictures)
        tokenizer.save_pretrained(staging)
        write_tensors(staging / WEIGHTS_FILE, export_tensors(model, CLIP_RULES), {"format": "pt"})


def read_config(folder: Path) -> ClipConfig:
    """Read a CLIP's `config.json`, where whatever equals Hugging Face's default may be left out.

    Raises:
        InputError: the file is missing, damaged, or not of a CLIP that we can run.
    """
    path = folder / CONFIG_FILE
    values = _read_json(path)
    if values.get("model_type", "clip") != "clip":
        raise InputError(f"{path} is of a {shown(values['model_type'])} model; give the folder of a CLIP.")
    text = _tower(TextConfig, values, "text_config", path)
    vision = _tower(VisionConfig, values, "vision_config", path)
    found = values.get("projection_dim", ClipConfig.projection_dim)
    projection_dim = check_json(found, path, _DAMAGED, int, "projection_dim")
    _check_size(projection_dim, _MOST["hidden_size"], "projection_dim", path)
    return ClipConfig(text, vision, projection_dim)


def _tower(kind: type[Tower], values: dict, key: str, path: Path) -> Tower:
    # The first published configs have a `*_dict` too, which takes precedence.
    given = [(name, values[name]) for name in (f"{key}_dict", key) if values.get(name) is not None]
    name, found = given[0] if given else (key, {})
    found = check_json(found, path, _DAMAGED, dict, name)
    wanted = {item.name: found[item.name] for item in fields(kind) if item.name in found}
    tower = check_json(wanted, path, _DAMAGED, kind, name)
    for option, most in _MOST.items():
        _check_size(getattr(tower, option, 1), most, f"{name}.{option}", path)
    if tower.hidden_act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise InputError(f"{path} asks for the hidden_act {shown(tower.hidden_act)}; only {known} are known.")
    if tower.hidden_size % tower.num_attention_heads:
        raise InputError(f"{path} has a hidden_size in {key} that its attention heads cannot share; fetch it again.")
    return tower


def _check_size(value: int | float, most: int | float, name: str, path: Path) -> None:
    if not 0 < value <= most:
        raise InputError(f"{path} has {name} = {value}; it must be above 0 and at most {most:,}; correct it.")


def _read_pictures(folder: Path, image_size: int) -> PictureConfig:
    path = folder / PICTURES_FILE
    values = _read_json(path)
    size, crop = values.get("size", image_size), values.get("crop_size", image_size)
    squash = isinstance(size, dict) and "height" in size
    expected = _PICTURES if squash else {**_PICTURES, "do_center_crop": True}
    odd = [f"{name} = {shown(values[name])}" for name, value in expected.items() if values.get(name, value) != value]
    for name, value in (("size", size), ("crop_size", crop)):
        sides = value.values() if isinstance(value, dict) else [value]
        if any(side != image_size for side in sides):
            odd.append(f"{name} = {shown(value)} for a network of {image_size} pixels")
    if odd:
        raise InputError(
            f"{path} prepares pictures in a way that is not CLIP's ({', '.join(odd)}); give another model."
        )
    return PictureConfig(_colours(values, "image_mean", 0.0, path), _colours(values, "image_std", 1e-6, path), squash)


def _colours(values: dict, name: str, least: float, path: Path) -> tuple[float, float, float]:
    numbers = check_json(values.get(name), path, _DAMAGED, list[float], name)
    if len(numbers) != 3 or min(numbers) < least:
        raise InputError(f"{path} needs three numbers from {least} up as {name}; correct it.")
    red, green, blue = numbers
    return red, green, blue


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"{path} is missing; give a folder with a whole model.")
    return read_json(path, "is damaged (it is not a JSON table); fetch it again.", dict)


def tokenizer_class() -> Any:
    """The class of CLIP's tokenizers, imported without the library's advice to install PyTorch."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
    from transformers import CLIPTokenizer

    return CLIPTokenizer


def _read_tokenizer(folder: Path, config: TextConfig) -> Any:
    try:
        tokenizer = tokenizer_class().from_pretrained(folder, local_files_only=True)
        ids = tokenizer(["a photo"], verbose=False)["input_ids"][0]
        if tokenizer.pad_token_id is None:  # what follows the end of a text changes nothing
            tokenizer.pad_token = tokenizer.eos_token
        in_order = all(type(id) is int and 0 <= id < config.vocab_size for id in [*ids, tokenizer.pad_token_id])
    except Exception as error:  # the Rust tokenizer raises bare exceptions
        reason = str(error).split("\n")[0]
        raise InputError(f"the tokenizer of {folder} is damaged or missing ({reason}); fetch it again.") from error
    # Files under unexpected names silently give an almost empty tokenizer.
    if not in_order or len(tokenizer) != config.vocab_size:
        raise InputError(
            f"the tokenizer of {folder} knows {len(tokenizer)} tokens, but its text tower {config.vocab_size}; "
            "fetch the tokenizer files of this model again."
        )
    if config.eos_token_id not in (2, tokenizer.eos_token_id):
        raise InputError(
            f"the tokenizer of {folder} ends a text with token {tokenizer.eos_token_id}, but {CONFIG_FILE} names "
            f"{config.eos_token_id}; correct eos_token_id."
        )
    return tokenizer
