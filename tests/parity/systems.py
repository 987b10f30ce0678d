"""The official systems as small networks with random weights, for the parity tests."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import torch

from clipsep_jax.config import ModelConfig
from tests.torch_twin import TorchCLIPSep

SMALL = ModelConfig(num_levels=4, width=4, num_channels=5, query_size=6)
SYSTEM_CHANGES = {
    "clipsep": {},
    "clipsep_nit": {"num_noise_heads": 2},
    "clipsep_early": {"fusion": "early"},
    "clipsep_middle": {"fusion": "middle"},
    "labelsep": {"num_labels": 7},
    "bertsep": {"query_size": 256},
    "sop": {},
    "pit": {"num_learned_queries": 2, "query_size": 512},
}


def model_config(system: str, base: ModelConfig = SMALL) -> ModelConfig:
    return replace(base, **SYSTEM_CHANGES[system])


def random_module(config: ModelConfig, seed: int = 0) -> TorchCLIPSep:
    """In evaluation mode, every parameter and statistic drawn anew, at scales that keep signals alive."""
    generator = torch.Generator().manual_seed(seed)
    module = TorchCLIPSep(config).eval()
    for name, tensor in module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.random_(1, 10**10, generator=generator)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0.0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        else:
            tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.3, generator=generator)
    return module


def random_inputs(config: ModelConfig, seed: int = 0, shape: tuple[int, ...] = (2, 32, 48), num_queries: int = 3):
    """Log magnitude and queries, for ours and for PyTorch."""
    rng = np.random.default_rng(seed)
    magnitude = rng.normal(size=shape).astype(np.float32)
    if config.num_learned_queries:
        return (jnp.asarray(magnitude), None), (torch.tensor(magnitude), None)
    if config.num_labels:
        query = rng.integers(config.num_labels, size=(shape[0], num_queries)).astype(np.int32)
    else:
        query = rng.normal(size=(shape[0], num_queries, config.query_size)).astype(np.float32)
    return (jnp.asarray(magnitude), jnp.asarray(query)), (torch.tensor(magnitude), torch.tensor(query))
