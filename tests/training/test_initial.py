"""Training from the weights of a trained model: what it takes over, what stays still, and what is refused."""

import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

from clipsep_jax.cli.main import main
from clipsep_jax.config import Config
from clipsep_jax.errors import InputError
from clipsep_jax.model_dir import open_model_dir
from clipsep_jax.official.checkpoint import export_torch, import_torch
from clipsep_jax.tensors import fits, read_tensors
from clipsep_jax.training.initial import Init, read_initial_weights
from clipsep_jax.training.loop import train
from clipsep_jax.training.members import JointRun
from clipsep_jax.training.setup import Run
from tests.parity.systems import random_module
from tests.small import make_records, small_config

UNET = "unet.*"


@pytest.fixture(scope="module")
def other_labels(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("others"), labels=("bark", "hiss", "hum"))


def tensors_of(workdir):
    return read_tensors(open_model_dir(workdir).folder)


@pytest.mark.slow
def test_a_run_starts_from_the_weights_and_statistics_of_a_model(trained, clip_records, tmp_path, capsys):
    config = small_config(clip_records, seed=5, steps=1)
    still = replace(config, optimizer=replace(config.optimizer, learning_rate=0.0))
    train(still, tmp_path / "tuned", init=Init(str(trained)))
    before, after = tensors_of(trained), tensors_of(tmp_path / "tuned")
    assert "Training starts from" in capsys.readouterr().out
    assert before.keys() == after.keys()
    statistics = [name for name in before if name.endswith((".mean", ".var"))]
    for name in before.keys() - statistics:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    for name in statistics:  # a step has moved them a tenth of the way
        assert not np.array_equal(before[name], after[name])
    train(replace(still, train=replace(still.train, seed=5)), tmp_path / "fresh")
    assert not np.allclose(tensors_of(tmp_path / "fresh")["unet.down.0.kernel"], before["unet.down.0.kernel"])


@pytest.mark.slow
def test_a_run_that_is_resumed_goes_on_from_its_own_weights(trained, clip_records, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(small_config(clip_records), whole, init=Init(str(trained)))
    copy = shutil.copytree(trained, tmp_path / "copy")
    train(small_config(clip_records, steps=2), parts, init=Init(str(copy)))
    shutil.rmtree(copy)  # it is needed no more
    train(small_config(clip_records), parts, init=Init(str(copy)), allow_changes=["train.steps"])
    for name, tensor in tensors_of(whole).items():
        np.testing.assert_array_equal(tensor, tensors_of(parts)[name], err_msg=name)


@pytest.mark.slow
def test_frozen_tensors_stay_and_the_others_move(trained, clip_records, tmp_path):
    config = small_config(clip_records, frozen=UNET)
    train(config, tmp_path / "tuned", init=Init(str(trained)))
    before, after = tensors_of(trained), tensors_of(tmp_path / "tuned")
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    frozen = {name for name in before if fits(name, (UNET,))}
    assert not moved & frozen
    assert {"query_head.kernel", "inner_product.bias"} <= moved


@pytest.mark.slow
def test_frozen_statistics_normalise_in_training_as_in_use(trained, clip_records):
    trainer = Run(small_config(clip_records, frozen=UNET)).trainer
    state, batch = trainer.init(), Run(small_config(clip_records)).train_batches[0]
    mixture, query = trainer.mix(batch, state.step, None, training=False)
    training, statistics = trainer.logits(state.params, state.batch_stats, mixture, query, training=True)
    in_use, _ = trainer.logits(state.params, state.batch_stats, mixture, query, training=False)
    np.testing.assert_array_equal(training.query, in_use.query)
    jax.tree.map(np.testing.assert_array_equal, statistics, state.batch_stats)


def test_patterns_that_freeze_nothing_are_refused(clip_records):
    with pytest.raises(InputError, match=r"frozen has 'unet\.\*\.none', which names no tensor of the model; it has "):
        Run(small_config(clip_records, frozen="unet.*,unet.*.none"))


def test_what_differs_is_listed_and_may_be_skipped(trained, clip_records):
    config = small_config(clip_records)
    wider = Run(replace(config, model=replace(config.model, num_channels=16)))
    with pytest.raises(
        InputError, match=r"another network .*query_head.kernel \(6, 32\) there, \(6, 16\) here"
    ) as told:
        read_initial_weights(wider, Init(str(trained)))
    assert "unet.down" not in str(told.value)
    assert "--init-skip" in str(told.value)
    heads = ["query_head.*", "noise_heads.*", "inner_product.*", "unet.last.*"]
    weights = read_initial_weights(wider, Init(str(trained), tuple(heads)))
    assert set(weights.new) == {name for name in wider.trainer.shapes if fits(name, heads)}
    assert weights.tensors.keys() == wider.trainer.shapes.keys() - set(weights.new)
    with pytest.raises(InputError, match=r"--init-skip no\.such names no tensor"):
        read_initial_weights(wider, Init(str(trained), ("no.such",)))
    plain = Run(replace(config, model=replace(config.model, num_noise_heads=0), objective=Config().objective))
    with pytest.raises(InputError, match="only there: noise_heads"):
        read_initial_weights(plain, Init(str(trained)))
    shorter = replace(config, spectrogram=replace(config.spectrogram, fft_size=512))
    with pytest.raises(InputError, match="other spectrograms"):
        read_initial_weights(Run(shorter), Init(str(trained)))


@pytest.mark.slow
def test_labels_of_other_records_are_refused(other_labels, clip_records, tmp_path):
    config = small_config(clip_records)
    labelled = replace(config, query=replace(config.query, kind="label"))
    model = train(replace(labelled, train=replace(labelled.train, steps=1)), tmp_path / "labels")
    run = Run(replace(labelled, data=replace(labelled.data, records=str(other_labels))))
    with pytest.raises(InputError, match="trained on other labels"):
        read_initial_weights(run, Init(str(model)))
    assert read_initial_weights(run, Init(str(model), ("label_embedding*",))).new == ("label_embedding.embedding",)


def test_a_head_for_other_queries_is_refused(trained, clip_records, tmp_path):
    config = small_config(clip_records)
    centred = Run(replace(config, query=replace(config.query, centre=True)))
    with pytest.raises(InputError, match=r"with config\.query\.centre = False; set it so here"):
        read_initial_weights(centred, Init(str(trained)))
    assert read_initial_weights(centred, Init(str(trained), ("query_head*",))).new
    other = Run(small_config(make_records(tmp_path / "records")))
    with pytest.raises(InputError, match=r"trained with the query encoder .* the records are of owner/unknown"):
        read_initial_weights(other, Init(str(trained)))
    assert read_initial_weights(other, Init(str(trained), ("query_head*",))).new


def test_members_of_a_sweep_start_from_the_same_weights(trained, clip_records):
    config = small_config(clip_records)
    run = JointRun([config, replace(config, objective=replace(config.objective, gamma=0.5))])
    state = read_initial_weights(run, Init(str(trained))).put_into(run.trainer.init())
    found = state.params["network"]["down"][0]["kernel"][...]
    assert found.shape[0] == 2
    for member in found:
        np.testing.assert_array_equal(member, tensors_of(trained)["unet.down.0.kernel"])


def test_options_that_make_no_sense_are_told(trained, clip_records, tmp_path, capsys):
    arguments = ["train", "--config=toy_smoke", f"--workdir={tmp_path / 'run'}", "--config.toy.num_clips=0"]
    arguments.append(f"--config.data.records={clip_records}")
    arguments.append("--config.model.query_size=6")
    assert main([*arguments, "--init-skip", "x"]) == 2
    assert "name the model with --init" in capsys.readouterr().err
    assert main([*arguments, "--init", str(tmp_path / "none")]) == 2
    assert "none is not a folder; give a model directory or a training workdir" in capsys.readouterr().err
    assert main([*arguments, "--init", str(trained)]) == 2
    assert "another network than the config's" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_official_checkpoint_is_tuned_and_goes_back(clip_records, clip_folder, tmp_path):
    """From PyTorch's file to PyTorch's file: what is frozen comes back bit by bit, and the rest is trained."""
    config = small_config(clip_records, frozen=UNET)
    config = replace(config, model=replace(config.model, num_levels=3, num_channels=4))
    module = random_module(config.model)
    module.synth_net.scale.data *= 0.1
    module.synth_net.bias.data.fill_(-2)  # sums of masks stay below 1, where they have gradients
    official = {f"module.{name}": tensor.clone() for name, tensor in module.state_dict().items()}
    torch.save(official, tmp_path / "best_model.pt")
    model = import_torch(tmp_path / "best_model.pt", tmp_path / "model", clip=str(clip_folder))
    train(config, tmp_path / "tuned", init=Init(str(model)))
    export_torch(tmp_path / "tuned", tmp_path / "tuned.pt")
    tuned = torch.load(tmp_path / "tuned.pt", weights_only=True)
    module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in tuned.items()})
    same = {name for name, tensor in tuned.items() if torch.equal(tensor, official[name])}
    trained = {name for name in official if not name.startswith("module.sound_net")}
    assert same >= {name for name in official.keys() - trained if not name.endswith("num_batches_tracked")}
    assert not same & trained
