"""The whole network against a plain PyTorch arrangement of the same weights."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from clipsep_jax.config import ModelConfig
from clipsep_jax.models.clipsep import CLIPSep, build_model, own_layout, stored_layout
from clipsep_jax.official.checkpoint import official_rules
from clipsep_jax.tensors import export_tensors
from tests.torch_twin import TorchCLIPSep

CONFIG = ModelConfig(num_levels=4, width=6, num_channels=5, query_size=9, init_std=0.3)
PARTS = {
    "late": {},
    "late-noise": {"num_noise_heads": 3},
    "late-labels": {"num_labels": 4},
    "late-labels-noise": {"num_labels": 4, "num_noise_heads": 2},
    "middle": {"fusion": "middle"},
    "middle-labels": {"fusion": "middle", "num_labels": 4},
    "early": {"fusion": "early"},
    "early-labels": {"fusion": "early", "num_labels": 4},
    "learned": {"num_learned_queries": 3},
    "one-level": {"num_levels": 1},
    "one-level-middle": {"num_levels": 1, "fusion": "middle"},
}


def randomised(config: ModelConfig) -> CLIPSep:
    """A model with every parameter and statistic drawn anew, large enough to matter; float64 where that is on."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))
    rng = np.random.default_rng(3)
    # Values that float32 holds, as nnx.Embed rounds to it.
    drawn = jax.tree.map(lambda leaf: jnp.asarray(np.float32(0.3 * rng.normal(size=leaf.shape)), float), state)
    model = nnx.merge(graphdef, drawn)
    for norm in [model.network.input_norm, *model.network.down_norm, *model.network.up_norm]:
        norm.var[...] = jnp.abs(norm.var[...] + 0.5) + 0.5
    return model


def twin(model: CLIPSep, config: ModelConfig) -> torch.nn.Module:
    """The plain arrangement with the model's weights."""
    module = TorchCLIPSep(config).double()
    tensors = export_tensors(model, official_rules(config))
    module.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()}, strict=False)
    assert tensors.keys() <= module.state_dict().keys()
    return module


def inputs(config: ModelConfig) -> tuple[np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng(0)
    log_magnitude = rng.normal(size=(2, 32, 48))
    if config.num_learned_queries:
        return log_magnitude, None
    if config.num_labels:
        return log_magnitude, rng.integers(config.num_labels, size=(2, 3)).astype(np.int32)
    return log_magnitude, rng.normal(size=(2, 3, 9))


@pytest.fixture
def in_float64():
    """In float32, division by a statistic of few values can make the difference arbitrarily large."""
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("parts", PARTS)
def test_forward_equals_the_plain_arrangement(parts, training, in_float64):
    """In training, the running means are equal too: early and middle fusion update them once per query."""
    config = replace(CONFIG, **PARTS[parts])
    model = randomised(config)
    module = twin(model, config).train(training)
    model.train() if training else model.eval()
    arrays = inputs(config)
    got = model(*(None if x is None else jnp.asarray(x) for x in arrays))
    with torch.no_grad():
        query, noise = module(*(None if x is None else torch.tensor(x) for x in arrays))
    np.testing.assert_allclose(got.query, query, rtol=0, atol=1e-10)
    assert (got.noise is None) == (noise is None)
    if noise is not None:
        np.testing.assert_allclose(got.noise, noise, rtol=0, atol=1e-10)
    state = module.state_dict()
    for name, tensor in export_tensors(model, official_rules(config)).items():
        if name.endswith("running_mean"):
            np.testing.assert_allclose(tensor, state[name], rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.slow
def test_initial_values_have_the_official_scales():
    model = build_model(ModelConfig(num_levels=2, width=16, num_labels=20, num_noise_heads=1), nnx.Rngs(0))
    learned = build_model(ModelConfig(num_levels=1, num_channels=512, num_learned_queries=8), nnx.Rngs(0))
    scales = {
        0.001: [model.network.down[1].kernel, model.network.up[0].kernel, model.fusion.last.kernel],
        1e-4: [model.fusion.query_head.kernel, model.fusion.noise_heads.projections[0].kernel],
        0.02: [model.network.up_norm[0].scale],
        1.0: [model.label_embedding.embedding],
    }
    scales[0.001].append(learned.fusion.learned_queries.kernel)
    for scale, variables in scales.items():
        for variable in variables:
            assert np.std(variable[...]) == pytest.approx(scale, rel=0.5)
    assert np.abs(learned.fusion.learned_queries.bias[...]).max() <= 1 / np.sqrt(512)
    assert np.ptp(learned.fusion.learned_queries.bias[...]) > 0


def test_the_plain_module_starts_at_the_same_scales():
    config = ModelConfig(num_levels=2, width=16, num_noise_heads=1)
    ours = export_tensors(build_model(config, nnx.Rngs(0)), official_rules(config))
    torch.manual_seed(0)
    for name, tensor in TorchCLIPSep(config).state_dict().items():
        if tensor.numel() >= 1000:
            assert tensor.std() == pytest.approx(ours[name].std(), rel=0.15), name
            assert abs(tensor.mean() - ours[name].mean()) < 0.1 * tensor.std(), name


@pytest.mark.slow
def test_full_size_has_the_official_number_of_parameters():
    model = nnx.eval_shape(lambda: build_model(ModelConfig(num_noise_heads=2), nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert round(count / 1e6, 2) == 30.29


@pytest.mark.slow
def test_in_bfloat16_the_input_is_rounded_after_it_is_centred():
    """Levels about -20 that differ by tenths are one value in bfloat16."""
    config = replace(CONFIG, num_levels=1)
    log_magnitude = jnp.asarray(-20 + 0.02 * inputs(config)[0])
    seen = []
    for dtype in (None, jnp.bfloat16):
        model = build_model(config, nnx.Rngs(0), dtype=dtype)
        model.network.input_norm.mean[...], model.network.input_norm.var[...] = jnp.full(1, -20.0), jnp.full(1, 4e-4)
        model.eval()
        seen.append(np.asarray(model.network(log_magnitude[..., None]).astype(jnp.float32)))
    np.testing.assert_allclose(seen[1], seen[0], rtol=0, atol=0.03 * np.abs(seen[0]).max())


@pytest.mark.parametrize("parts", PARTS)
def test_files_name_the_variables_as_they_always_did(parts):
    state = nnx.state(nnx.eval_shape(lambda: build_model(replace(CONFIG, **PARTS[parts]), nnx.Rngs(0))))
    stored = stored_layout(state)
    assert {"unet", "query_head", "noise_heads", "inner_product", "learned_queries", "label_embedding"} >= set(stored)
    assert "last" in stored["unet"]
    assert jax.tree.leaves_with_path(own_layout(stored)) == jax.tree.leaves_with_path(state)
