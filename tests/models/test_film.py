"""Blocks scaled and shifted by the query, against a BatchNorm that has the scale and the shift in its parameters."""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

import clipsep_jax
from clipsep_jax.config import Config, ModelConfig
from clipsep_jax.errors import InputError
from clipsep_jax.models.clipsep import build_model
from clipsep_jax.official.checkpoint import export_torch
from clipsep_jax.training.loop import train
from tests.models.test_clipsep import inputs, randomised
from tests.small import small_config

CONFIG = ModelConfig(num_levels=4, width=6, num_channels=5, query_size=9, init_std=0.3, fusion="film")


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
def test_a_query_acts_as_parameters_of_the_norms_would(in_float64):
    """(1 + g) (s x + b) + h = (1 + g) s x + ((1 + g) b + h)."""
    model = randomised(CONFIG)
    model.eval()
    graphdef, state = nnx.split(model)
    log_magnitude, query = (jnp.asarray(x) for x in inputs(CONFIG))

    @jax.jit
    def apart(state, log_magnitude, query):
        plain = nnx.merge(graphdef, state, copy=True)
        vector = jax.nn.relu(plain.fusion.query_head(query))[None]
        norms = [*plain.network.down_norm, *plain.network.up_norm]
        for norm, film in zip(norms, plain.network.modulations, strict=True):
            scale, shift = (values[0] for values in film(vector))
            norm.scale[...], norm.bias[...] = (1 + scale) * norm.scale[...], (1 + scale) * norm.bias[...] + shift
            for parameter in (film.projection.kernel, film.projection.bias):
                parameter[...] = jnp.zeros_like(parameter[...])
        return plain(log_magnitude[None], query[None, None]).query[0, 0]

    together = jax.jit(lambda state, x, query: nnx.merge(graphdef, state, copy=True)(x, query).query)(
        state, log_magnitude, query
    )
    assert together.shape == (2, 3, 32, 48)
    for example, number in product(range(2), range(3)):
        alone = apart(state, log_magnitude[example], query[example, number])
        np.testing.assert_allclose(together[example, number], alone, rtol=0, atol=1e-10)
    assert np.ptp(together, axis=1).max() > 0.1


@pytest.mark.slow
def test_its_gradients_are_those_of_differences(in_float64):
    config = replace(CONFIG, num_levels=2, width=2)
    model = randomised(config)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    log_magnitude, query = (jnp.asarray(x) for x in inputs(config))
    log_magnitude = log_magnitude[:, :8, :8]

    def loss(params, query):
        return jnp.sin(nnx.merge(graphdef, params, rest, copy=True)(log_magnitude, query).query).sum()

    check_grads(jax.jit(loss), (params, query), order=1, modes=["rev"], rtol=1e-4)


def test_at_first_no_query_changes_anything():
    model = build_model(replace(CONFIG, num_levels=2), nnx.Rngs(0))
    model.eval()
    log_magnitude, query = (jnp.asarray(x, jnp.float32) for x in inputs(CONFIG))
    graphdef, state = nnx.split(model)
    logits = jax.jit(lambda state, x, query: nnx.merge(graphdef, state)(x, query).query)(state, log_magnitude, query)
    np.testing.assert_allclose(logits, logits[:, :1].repeat(3, axis=1), rtol=1e-5, atol=1e-6)


def test_noise_heads_are_refused():
    values = Config().replace(model={"fusion": "film", "num_noise_heads": 2}).to_dict()
    with pytest.raises(InputError, match='"late"'):
        Config.from_config_dict(values)


@pytest.mark.soak
def test_a_model_of_both_trains_and_is_refused_by_the_official_layout(clip_records, tmp_path):
    config = small_config(clip_records)
    network = replace(config.model, fusion="film", network="tdf_unet", num_levels=2, num_noise_heads=0)
    best = train(replace(config, model=network, objective=Config().objective), tmp_path / "run")
    with pytest.raises(
        InputError, match=r"parts that no official class has \(unet\.modulations\.0\.projection.*unet\.refinements"
    ):
        export_torch(best, tmp_path / "out.pt")
    stems = clipsep_jax.load(best).separate(np.sin(np.arange(4_000, dtype=np.float32)), ["a photo of hum"]).stems
    assert stems.shape == (1, 4_000)
