"""Configs: every file in configs/ builds, wrong values are refused."""

import importlib
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest

from clipsep_jax.config import Config, QueryKind, default_config
from clipsep_jax.config_checks import RANGES
from clipsep_jax.configs import base
from clipsep_jax.errors import InputError
from clipsep_jax.queries.kinds import KINDS, kind_of

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "base"))


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_config_builds_and_says_its_command(system):
    module = importlib.import_module(f"clipsep_jax.configs.{system}")
    assert f"clipsep train --config=configs/{system}.py" in module.__doc__
    datasets = [()] if system == "toy_smoke" else [(name,) for name in base.DATASETS]
    for arguments in datasets:
        config = Config.from_config_dict(module.get_config(*arguments))
        assert Config.from_config_dict(config.to_dict()) == config


def test_defaults_are_the_official_ones():
    config = Config()
    assert (config.spectrogram.num_frames, config.spectrogram.num_bins) == (256, 513)
    assert Config.from_config_dict(default_config()) == config


def test_every_whole_number_has_its_limits():
    numbers = {
        f"{group.name}.{option.name}"
        for group in fields(Config)
        for option in fields(group.default_factory)
        if option.type is int and not option.metadata and group.compare
    }
    assert numbers == set(RANGES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"stepz": 1}}, r"config\.train\.stepz is not an option; config\.train has .*steps"),
        ({"trian": {}}, r"config\.trian is not an option"),
        ({"train": {"steps": 1.5}}, "must be of type int"),
        ({"train": {"steps": True}}, "must be of type int"),
        ({"optimizer": {"learning_rate": float("inf")}}, r"config\.optimizer\.learning_rate is inf; it must be finite"),
        ({"objective": {"gamma": float("nan")}}, r"config\.objective\.gamma is nan; it must be finite"),
        ({"train": 3}, "must be a group of options"),
        ({"objective": {"name": "mse"}}, "must be one of 'weighted'"),
        ({"objective": {"name": "noise_invariant"}}, "num_noise_heads of at least 2"),
        ({"spectrogram": {"num_samples": 60_000}}, "levels cannot halve"),
        ({"query": {"kind": "text", "source": "frames"}}, 'needs config.query.kind = "image"'),
        ({"model": {"fusion": "soon"}}, "must be one of 'late', 'middle', 'early'"),
        ({"model": {"fusion": "early", "num_noise_heads": 2}}, 'queries need config.model.fusion = "late"'),
        ({"model": {"num_learned_queries": 2, "num_labels": 2}, "query": {"kind": "none"}}, 'query.kind = "label"'),
        (
            {
                "model": {"num_learned_queries": 2, "num_noise_heads": 2},
                "query": {"kind": "none"},
                "objective": {"name": "permutation_invariant"},
            },
            "neither noise heads nor labels",
        ),
        ({"model": {"num_labels": 2}}, 'goes with config.query.kind = "label"'),
        ({"model": {"num_learned_queries": 2}}, 'goes with config.query.kind = "none"'),
        ({"train": {"validate_every": 0}}, "must be at least 1"),
        ({"train": {"seed": -1}}, "at least 0"),
        ({"train": {"seed": 2**63}}, r"train\.seed is 9223372036854775808; it must be at most"),
        ({"model": {"num_noise_heads": 10_000_000}}, r"num_noise_heads is 10000000; it must be at most 256"),
        ({"spectrogram": {"num_samples": 3 * 10**13}}, r"num_samples is 30000000000000; .* at most 16,777,216"),
        ({"spectrogram": {"num_samples": 2**24 - 1, "hop_samples": 1}}, r"16,777,216 frames of 1024 samples, above"),
        ({"data": {"frames_per_clip": 10**9}}, r"frames_per_clip is 1000000000; it must be at most 10,000"),
        ({"spectrogram": {"sample_rate_hz": 44_100}}, "must be 16000"),
        ({"spectrogram": {"hop_samples": 300}}, "multiple of hop_samples"),
        ({"query": {"kind": "sentence"}}, r"config\.query\.table"),
        ({"query": {"kind": "none"}}, "goes with config.objective.name"),
        ({"data": {"drop_closest": -2}}, "give a count"),
        ({"data": {"drop_closest": 2, "num_sources": 3}}, "two sources"),
        ({"data": {"drop_closest": 2}, "query": {"kind": "label"}}, "compares CLIP queries"),
        ({"mixing": {"sources_per_target": 2}}, 'needs config.objective.name = "mixture_invariant"'),
        ({"mixing": {"sources_per_target": 2}, "data": {"num_sources": 3}}, "choose a multiple"),
        ({"objective": {"name": "mixture_invariant"}, "data": {"num_sources": 8}}, "16,777,216 assignments"),
        ({"objective": {"name": "mixture_invariant"}}, 'query.kind = "image" goes with'),
        ({"model": {"num_masks": 3}}, 'num_masks needs config.query.kind = "none"'),
        (
            {"model": {"num_masks": 1}, "objective": {"name": "permutation_invariant"}, "query": {"kind": "none"}},
            "num_masks is 1; 2 targets need as many",
        ),
        ({"objective": {"sparsity_weight": 0.1}}, 'sparsity_weight needs config.objective.name = "mixture_invariant"'),
        (
            {"model": {"num_masks": 13}, "objective": {"name": "mixture_invariant"}, "query": {"kind": "none"}},
            "8,192 assignments",
        ),
        ({"model": {"fusion": "film", "num_levels": 1}}, "choose more config.model.num_levels"),
        (
            {"spectrogram": {"num_warped_bins": 16}, "model": {"num_levels": 3}, "query": {"kind": "audio"}},
            "at least 32",
        ),
        ({"model": {"negative_query": True}, "query": {"combine": "compete"}}, "takes the other sources' queries"),
        ({"model": {"negative_query": True}, "query": {"kind": "label"}}, "whose queries are embeddings"),
        ({"mixing": {"most_sounding": 3}}, "are 3 and 3 of config.data.num_sources = 2 clips; give them in rising"),
        ({"mixing": {"fewest_sounding": 2, "most_sounding": 1}}, "are 2 and 1 of"),
        ({"mixing": {"most_sounding": 1, "absent_weight": -1.0}}, "absent_weight is -1.0; it must be at least 0"),
        (
            {
                "mixing": {"fewest_sounding": 2},
                "data": {"num_sources": 3},
                "objective": {"name": "permutation_invariant"},
            },
            "make some queries ask for what is not there",
        ),
        ({"data": {"gain_min": 2.0}}, r"gain_min and gain_max are 2.0 and 1.5; give them in rising order"),
        ({"data": {"gain_min": 0.0, "gain_law": "decibels"}}, "above 0 with"),
        ({"data": {"similar_pairs": "drop"}}, "give a count"),
        ({"data": {"similar_pairs": "dorp"}}, "must be one of 'keep', 'drop', 'downweight'"),
    ],
)
def test_bad_values_are_refused(changes, message):
    def read() -> None:
        config = Config.from_config_dict(changes)
        kind_of(config).check(config)

    with pytest.raises(InputError, match=message):
        read()


def test_whole_numbers_pass_for_real_ones():
    config = Config.from_config_dict({"objective": {"gamma": 1}})
    assert config == replace(Config(), objective=replace(Config().objective, gamma=1.0))


def test_the_kinds_that_a_config_may_name_are_those_that_there_are():
    assert get_args(QueryKind) == tuple(KINDS)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"data": {"drop_closest": 3}}, {"data": {"similar_pairs": "drop", "num_dropped_pairs": 3}}),
        ({"data": {"drop_closest": -1}}, {"data": {"similar_pairs": "downweight"}}),
        ({"data": {"drop_closest": 0, "drop_closest_from_step": 5}}, {"data": {"similar_pairs_from_step": 5}}),
        ({"sharding": "fsdp"}, {"train": {"sharding": "fsdp"}}),
        ({"spectrogram": {"sample_rate_hz": 16_000}}, {}),
        ({"model": {"num_labels": 7}, "query": {"kind": "label"}}, {"query": {"kind": "label"}}),
        (
            {"model": {"num_learned_queries": 3}, "query": {"kind": "none"}},
            {"data": {"num_sources": 3}, "query": {"kind": "none"}},
        ),
    ],
)
def test_options_of_earlier_versions_are_understood(old, new):
    assert Config.from_config_dict(old) == Config.from_config_dict(new)
