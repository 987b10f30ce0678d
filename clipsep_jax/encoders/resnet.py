"""The picture encoder of Sound of Pixels: a frozen ResNet-18 whose last stage is dilated, max-pooled over space."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from clipsep_jax.encoders.base import Encoder, NoTextError
from clipsep_jax.encoders.pixels import PictureConfig
from clipsep_jax.errors import InputError
from clipsep_jax.files import staged_folder
from clipsep_jax.hub import read_weights, resolve_model_folder, weights_files
from clipsep_jax.tensors import (
    CONV,
    WEIGHTS_FILE,
    Rule,
    export_tensors,
    load_tensors,
    read_tensors,
    read_torch_tensors,
    write_tensors,
)

IMAGE_SIZE = 224
QUERY_SIZE = 512

# How colours are normalised: as the weights were trained on, or as the official CLIPSep code does with every encoder.
PICTURES = {
    "imagenet": PictureConfig((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": PictureConfig((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}

_TORCH_SUFFIXES = (".pth", ".pt")


def _unit_rules(conv: str, norm: str, ours: str) -> tuple[Rule, ...]:
    """Rules of one convolution and the normalisation that follows it."""
    return (
        Rule(f"{conv}.weight", f"{ours}.conv.kernel", CONV),
        Rule(f"{norm}.weight", f"{ours}.norm.scale"),
        Rule(f"{norm}.bias", f"{ours}.norm.bias"),
        Rule(f"{norm}.running_mean", f"{ours}.norm.mean"),
        Rule(f"{norm}.running_var", f"{ours}.norm.var"),
        Rule(f"{norm}.num_batches_tracked", None),
    )


def _torchvision_stage(stage: int) -> tuple[Rule, ...]:
    theirs, ours = f"layer{stage + 1}.{{i}}", f"stages.{stage}.{{i}}"
    return (
        *_unit_rules(f"{theirs}.conv1", f"{theirs}.bn1", f"{ours}.units.0"),
        *_unit_rules(f"{theirs}.conv2", f"{theirs}.bn2", f"{ours}.units.1"),
        *_unit_rules(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}.shortcut"),
    )


TORCHVISION_RULES = (
    *_unit_rules("conv1", "bn1", "stem"),
    *(rule for stage in range(4) for rule in _torchvision_stage(stage)),
    Rule("fc.{part}", None),
)

_STAGE = "encoder.stages.{s}.layers.{i}"
HUGGING_FACE_RULES = (
    *_unit_rules("embedder.embedder.convolution", "embedder.embedder.normalization", "stem"),
    *_unit_rules(
        f"{_STAGE}.layer.{{j}}.convolution", f"{_STAGE}.layer.{{j}}.normalization", "stages.{s}.{i}.units.{j}"
    ),
    *_unit_rules(f"{_STAGE}.shortcut.convolution", f"{_STAGE}.shortcut.normalization", "stages.{s}.{i}.shortcut"),
    Rule("classifier.1.{part}", None),
)


class ConvNorm(nnx.Module):
    """A convolution without bias, then normalisation by running statistics; stride 1 keeps the size."""

    def __init__(
        self, num_inputs: int, num_outputs: int, kernel: int, stride: int, dilation: int, rngs: nnx.Rngs
    ) -> None:
        self.conv = nnx.Conv(
            num_inputs,
            num_outputs,
            (kernel, kernel),
            (stride, stride),
            padding=kernel // 2 * dilation,
            kernel_dilation=dilation,
            use_bias=False,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(num_outputs, use_running_average=True, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        return self.norm(self.conv(x))


class Block(nnx.Module):
    """Two 3x3 convolutions with `dilations` and a skip connection around both; the first one has `stride`."""

    def __init__(
        self, num_inputs: int, num_outputs: int, stride: int, dilations: tuple[int, int], rngs: nnx.Rngs
    ) -> None:
        self.units = nnx.List(
            [
                ConvNorm(num_inputs, num_outputs, 3, stride, dilations[0], rngs),
                ConvNorm(num_outputs, num_outputs, 3, 1, dilations[1], rngs),
            ]
        )
        widens = num_inputs != num_outputs
        self.shortcut = ConvNorm(num_inputs, num_outputs, 1, stride, 1, rngs) if widens else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        first, second = self.units
        residual = x if self.shortcut is None else self.shortcut(x)
        return jax.nn.relu(second(jax.nn.relu(first(x))) + residual)


class DilatedResnet18(nnx.Module):
    """Normalised pixels to features at a sixteenth of their resolution: ResNet-18 up to its pooling.

    The stride of the last stage is removed. Its first convolution stays as dense as it was, and the three others,
    which would see pixels twice as far apart, are dilated by two.
    """

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = ConvNorm(3, 64, 7, 2, 1, rngs)
        self.stages = nnx.List(
            [
                _stage(64, 64, 1, 1, rngs),
                _stage(64, 128, 2, 1, rngs),
                _stage(128, 256, 2, 1, rngs),
                _stage(256, QUERY_SIZE, 1, 2, rngs),
            ]
        )

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w 512"]:
        x = jax.nn.relu(self.stem(pixels))
        x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return x


def _stage(num_inputs: int, num_outputs: int, stride: int, dilation: int, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(
        [
            Block(num_inputs, num_outputs, stride, (1, dilation), rngs),
            Block(num_outputs, num_outputs, 1, (dilation, dilation), rngs),
        ]
    )


@dataclass(frozen=True, eq=False)
class ResnetEncoder(Encoder):
    """A frozen dilated ResNet-18; `load_resnet` makes it."""

    name: str
    folder: Path
    pictures: PictureConfig
    graphdef: nnx.GraphDef
    state: PyTree

    @property
    def query_size(self) -> int:
        """Size Q of an embedding."""
        return QUERY_SIZE

    @property
    def image_size(self) -> int:
        """Side in pixels of the square picture that the network sees."""
        return IMAGE_SIZE

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights and of the normalisation, whatever file the weights were read from."""
        digest = hashlib.sha256(repr((self.pictures.mean, self.pictures.std)).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode())
            digest.update(tensor.tobytes())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, np.ndarray]:
        return export_tensors(nnx.merge(self.graphdef, self.state), TORCHVISION_RULES)

    def features(self, model: nnx.Module, pixels: Float[Array, "B S S 3"]) -> Float[Array, "B Q"]:
        """The largest value of each feature over the picture."""
        assert isinstance(model, DilatedResnet18)
        return model(pixels).max(axis=(1, 2))

    def embed_text(self, texts: Sequence[str], batch_size: int = 8) -> NoReturn:
        """Always raises NoTextError."""
        raise NoTextError(
            f"{self.name} is a Sound-of-Pixels encoder, which takes pictures and no text; give a picture."
        )

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, under torchvision's names, into a folder that `load_resnet` reads."""
        with staged_folder(folder) as staging:
            write_tensors(staging / WEIGHTS_FILE, self._tensors(), {"format": "pt"})


def load_resnet(place: str, pictures: str = "imagenet", *, download: bool = True) -> ResnetEncoder:
    """Load a ResNet-18 with the names of Hugging Face or of torchvision; its classifier is left out.

    Args:
        place: a folder or a Hub id (see `hub.weights_files`), a `.safetensors` file, or a `.pth` or `.pt` file with a
            state dict, which needs PyTorch.
        pictures: key of `PICTURES`.
        download: whether one that is not on this machine is fetched.

    Raises:
        InputError: there is no such file, it is damaged, or it is not of a ResNet-18.
    """
    path, tensors = _read(place, download)
    rules = TORCHVISION_RULES
    if any(name.removeprefix("resnet.").startswith("embedder.") for name in tensors):
        tensors = {name.removeprefix("resnet."): tensor for name, tensor in tensors.items()}
        rules = HUGGING_FACE_RULES
    model = nnx.eval_shape(lambda: DilatedResnet18(nnx.Rngs(0)))
    load_tensors(model, tensors, rules, str(path))
    kind = "resnet18" if pictures == "imagenet" else f"resnet18-{pictures}"
    name = f"{kind}:{Path(place).resolve() if Path(place).exists() else place}"
    return ResnetEncoder(name, path.parent, PICTURES[pictures], *nnx.split(model))


def _read(place: str, download: bool) -> tuple[Path, Mapping[str, np.ndarray]]:
    path = Path(place)
    if path.suffix not in (*_TORCH_SUFFIXES, ".safetensors"):
        folder = resolve_model_folder(place, download=download)
        return weights_files(folder)[0], read_weights(folder)
    if not path.is_file():
        raise InputError(f"There is no file {path}; give the weights of a ResNet-18, or a folder that holds them.")
    return path, read_torch_tensors(path) if path.suffix in _TORCH_SUFFIXES else read_tensors(path)
