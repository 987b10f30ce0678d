"""Every system of the paper, and every config: one step, one separation, one score, at the least size."""

import importlib
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import clipsep_jax
from clipsep_jax.config import Config
from clipsep_jax.data.record_set import RecordSet
from clipsep_jax.errors import InputError
from clipsep_jax.evaluation.scores import evaluation_of
from clipsep_jax.queries.base import Example
from clipsep_jax.queries.table import EmbeddingTable
from clipsep_jax.training.curves import read_metrics
from clipsep_jax.training.loop import train
from tests.small import LABELS, QUERY_SIZE, make_records, small_config
from tests.test_config import SYSTEMS

pytestmark = pytest.mark.slow

KINDS = ("image", "text", "hybrid", "label", "sentence", "audio", "none")
FUSIONS = ("late", "early", "middle", "film")
OBJECTIVES = (("weighted", 0), ("permutation_invariant", 0), ("noise_invariant", 2), ("noise_invariant", 3))


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sentences") / "table.safetensors"
    EmbeddingTable(LABELS, np.random.default_rng(0).normal(size=(3, QUERY_SIZE)).astype(np.float32)).save(path)
    return path


def shrunk(config: Config, records: Path, sentences: Path) -> Config:
    """A config at the least size, on the small records."""
    small = small_config(records, steps=2)
    sizes = {"num_levels": 2, "width": 2, "query_size": QUERY_SIZE, "init_std": 0.1}
    return replace(
        config,
        spectrogram=small.spectrogram,
        model=replace(config.model, **sizes),
        data=replace(
            small.data,
            similar_pairs=config.data.similar_pairs,
            num_dropped_pairs=config.data.num_dropped_pairs,
            similar_pairs_from_step=1,
        ),
        query=replace(config.query, table=str(sentences) if config.query.kind == "sentence" else ""),
        train=small.train,
        checkpoint=small.checkpoint,
        toy=replace(config.toy, num_clips=0),
    )


def check(config: Config, workdir: Path) -> None:
    """Trains, separates and scores."""
    train(Config.from_config_dict(config.to_dict()), workdir)
    assert all(np.isfinite(line["loss"]) for line in read_metrics(workdir))
    separator = clipsep_jax.load(workdir)
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 3000).astype(np.float32)
    queries = {"none": [], "audio": [Example(waveform), Example(waveform[:900])]}.get(
        config.query.kind, ["hum", "buzz"]
    )
    separation = separator.separate(waveform, queries)
    assert separation.stems.shape == (config.data.num_sources, 3000)
    np.testing.assert_allclose(separation.stems.sum(axis=0) + separation.residual, waveform, atol=1e-5)
    summary, _ = evaluation_of(separator, RecordSet(Path(config.data.records)), "test", 2).run(progress=False)
    assert all(np.isfinite(row["sdr_mean"]) for row in summary.values() if "sdr_mean" in row)


def is_system(kind: str, fusion: str, objective: str) -> bool:
    if (kind == "none") != (objective == "permutation_invariant"):
        return False
    return fusion == "late" or objective == "weighted"


@pytest.mark.soak
@pytest.mark.parametrize(
    ("kind", "fusion", "objective"), [c for c in product(KINDS, FUSIONS, OBJECTIVES) if is_system(c[0], c[1], c[2][0])]
)
def test_all_of_them_go_together(clip_records, sentences, tmp_path, kind, fusion, objective):
    config = Config()
    config = replace(
        config,
        query=replace(config.query, kind=kind),
        model=replace(config.model, fusion=fusion, num_noise_heads=objective[1]),
        objective=replace(config.objective, name=objective[0]),
    )
    check(shrunk(config, clip_records, sentences), tmp_path / "run")


@pytest.mark.parametrize(
    ("targets", "criterion"),
    [("ratio", "l1"), *(pytest.param(*pair, marks=pytest.mark.soak) for pair in (("ratio", "bce"), ("binary", "l1")))],
)
def test_targets_and_criteria_go_together(clip_records, sentences, tmp_path, targets, criterion):
    config = Config()
    config = replace(
        config,
        mixing=replace(config.mixing, targets=targets),
        objective=replace(config.objective, criterion=criterion),
    )
    check(shrunk(config, clip_records, sentences), tmp_path / "run")


def test_mixtures_of_mixtures_train_a_model_that_separates_all_their_sources(sentences, tmp_path):
    records = make_records(tmp_path / "records", labels=("a", "b", "c", "d", "e"))
    config = shrunk(Config(), records, sentences).replace(
        query={"kind": "none"},
        objective={"name": "mixture_invariant"},
        mixing={"sources_per_target": 2},
        data={"num_sources": 4},
    )
    check(config, tmp_path / "run")


@pytest.mark.parametrize(("similar_pairs", "num_dropped_pairs"), [("drop", 2), ("downweight", 0)])
def test_similar_pairs_can_be_dropped_or_weighed_down(
    clip_records, sentences, tmp_path, similar_pairs, num_dropped_pairs
):
    config = Config().replace(data={"similar_pairs": similar_pairs, "num_dropped_pairs": num_dropped_pairs})
    check(shrunk(config, clip_records, sentences), tmp_path / "run")


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_config_trains_separates_and_scores(clip_records, sentences, tmp_path, system):
    module = importlib.import_module(f"clipsep_jax.configs.{system}")
    values = module.get_config() if system == "toy_smoke" else module.get_config("music")
    check(shrunk(Config.from_config_dict(values), clip_records, sentences), tmp_path / "run")


def test_models_of_labels_name_the_nearest_and_those_without_queries_refuse_any(clip_records, sentences, tmp_path):
    for kind, message in (("label", "takes one of its 3 labels as a query, not 'humm'; the nearest are hum"),
                          ("sentence", "no embedding of the label 'humm'; the nearest are hum"),
                          ("none", "separates without queries")):  # fmt: skip
        config = replace(Config(), query=replace(Config().query, kind=kind))
        name = "permutation_invariant" if kind == "none" else "weighted"
        config = replace(config, objective=replace(config.objective, name=name))
        train(shrunk(config, clip_records, sentences), tmp_path / kind)
        with pytest.raises(InputError, match=message):
            clipsep_jax.load(tmp_path / kind).embed(["humm"])
