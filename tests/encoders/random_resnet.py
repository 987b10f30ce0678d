"""Random weights of a ResNet-18, running statistics too, under torchvision's names."""

import functools
import re

import numpy as np


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """All tensors of torchvision's ResNet-18, its classifier and its counters among them."""
    return dict(_random_tensors(seed))


@functools.cache
def _random_tensors(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    tensors = {"fc.weight": np.zeros((1000, 512), np.float32), "fc.bias": np.zeros(1000, np.float32)}

    def add_unit(conv: str, norm: str, num_inputs: int, num_outputs: int, kernel: int) -> None:
        scale = (2 / (num_inputs * kernel**2)) ** 0.5
        shape = (num_outputs, num_inputs, kernel, kernel)
        tensors[f"{conv}.weight"] = (scale * generator.standard_normal(shape)).astype(np.float32)
        for part, low, high in (("weight", 0.5, 1), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5)):
            tensors[f"{norm}.{part}"] = generator.uniform(low, high, num_outputs).astype(np.float32)
        tensors[f"{norm}.running_var"] = generator.uniform(0.5, 2, num_outputs).astype(np.float32)
        tensors[f"{norm}.num_batches_tracked"] = np.array(7, np.int64)

    add_unit("conv1", "bn1", 3, 64, 7)
    sizes = (64, 64, 128, 256, 512)
    for stage in range(1, 5):
        for block in range(2):
            size = sizes[stage - 1] if block == 0 else sizes[stage]
            name = f"layer{stage}.{block}"
            add_unit(f"{name}.conv1", f"{name}.bn1", size, sizes[stage], 3)
            add_unit(f"{name}.conv2", f"{name}.bn2", sizes[stage], sizes[stage], 3)
            if size != sizes[stage]:
                add_unit(f"{name}.downsample.0", f"{name}.downsample.1", size, sizes[stage], 1)
    return tensors


def hugging_face_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tensors under the names of `ResNetForImageClassification`."""

    def renamed(name: str) -> str:
        name = re.sub(r"^conv1\.", "resnet.embedder.embedder.convolution.", name)
        name = re.sub(r"^bn1\.", "resnet.embedder.embedder.normalization.", name)
        name = re.sub(r"^fc\.", "classifier.1.", name)
        name = re.sub(r"^layer(\d)\.(\d)", lambda m: f"resnet.encoder.stages.{int(m[1]) - 1}.layers.{m[2]}", name)
        name = re.sub(r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution.", name)
        name = re.sub(r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization.", name)
        return name.replace("downsample.0", "shortcut.convolution").replace("downsample.1", "shortcut.normalization")

    return {renamed(name): tensor for name, tensor in tensors.items()}
