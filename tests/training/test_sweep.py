"""Members trained together: each as if it were alone; the report; resuming; what is refused."""

import csv
import json
import math
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipsep_jax.cli.main import main
from clipsep_jax.config import Config
from clipsep_jax.configs import clipsep_nit
from clipsep_jax.demo.toy.records import make_toy_records
from clipsep_jax.errors import InputError, InputWarning
from clipsep_jax.model_dir import open_model_dir
from clipsep_jax.separation.separator import Separator
from clipsep_jax.structures import Batch
from clipsep_jax.training.checkpoints import Checkpoints
from clipsep_jax.training.curves import MetricsLog, read_metrics
from clipsep_jax.training.loop import train
from clipsep_jax.training.members import JointTrainer, train_together
from clipsep_jax.training.setup import Run
from clipsep_jax.training.step import Trainer
from clipsep_jax.training.sweep import GAMMAS, Variation, members_of, read_variation, sweep
from clipsep_jax.training.sweep_report import noise_figure, score_figure, write_report
from tests.small import QUERY_SIZE, make_records, small_config

GAMMA = "objective.gamma"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("records"))


def random_batch(config: Config) -> Batch:
    rng = np.random.default_rng(0)
    b, length = config.data.batch_size, config.spectrogram.num_samples
    return Batch(
        jnp.asarray(rng.integers(-9000, 9000, (b, 2, length)), jnp.int16),
        jnp.ones((b, 2)),
        jnp.asarray(rng.normal(size=(b, 2, QUERY_SIZE)), jnp.float32),
    )


VARIED = {
    "objective": [
        Variation(GAMMA, (0.0, 1.5)),
        Variation("objective.regularizer", ("sum", "ratio")),
        Variation("objective.criterion", ("bce", "l1")),
    ],
    "optimizer": [
        Variation("optimizer.learning_rate", (1e-3, 1e-2)),
        Variation("optimizer.max_gradient_norm", (1e-3, 1.0)),
        Variation("objective.noise_warmup_steps", (0, 10)),
    ],
}


EACH = {
    "gamma": [Variation(GAMMA, (0.0, 0.25, 1.5))],
    "regularizer": [Variation("objective.regularizer", ("sum", "ratio")), Variation(GAMMA, (0.0, 0.5))],
    "criterion": [Variation("objective.criterion", ("bce", "l1"))],
    "warmup": [Variation("objective.noise_warmup_steps", (0, 10))],
    "optimizer": VARIED["optimizer"][:2],
}


def small_members(variations: list[Variation]) -> list[Config]:
    config = small_config(Path())
    return list(members_of(replace(config, model=replace(config.model, init_std=0.3)), variations).values())


@pytest.mark.slow
@pytest.mark.parametrize("variations", VARIED.values(), ids=VARIED.keys())
def test_a_members_first_step_is_that_of_a_single_run(variations):
    """Of two members that differ in all of these options."""
    first, *_, last = small_members(variations)
    check_first_steps(first, last)


@pytest.mark.soak
@pytest.mark.parametrize("variations", EACH.values(), ids=EACH.keys())
def test_so_it_is_for_each_option_by_itself(variations):
    check_first_steps(*small_members(variations))


def check_first_steps(*members: Config) -> None:
    """Adam's first moment is a tenth of the clipped gradient, so equal optimizer states are equal gradients."""
    joint, batch = JointTrainer(members), random_batch(members[0])
    state, metrics = joint.train_step(joint.init(), batch)
    steps = set()
    for number, member in enumerate(members):
        alone = Trainer(member)
        wanted = alone.train_step(alone.init(), batch)
        for got, want in zip(*map(jax.tree.leaves, (joint.part_of((state, metrics), number), wanted)), strict=True):
            assert jnp.linalg.norm(got - want) <= 1e-5 * jnp.linalg.norm(want)
        losses = joint.part_of(joint.validation_step(state, batch), number), alone.validation_step(wanted[0], batch)
        assert jnp.linalg.norm(losses[0] - losses[1]) <= 1e-5 * jnp.linalg.norm(losses[1])
        steps.add(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(wanted)))
    assert len(steps) == len(members)  # no two are the same


def gammas_of(config: Config, *gammas: float) -> list[Config]:
    return list(members_of(config, [Variation(GAMMA, gammas)]).values())


def weights(workdir: Path) -> bytes:
    return (open_model_dir(workdir).folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_sweep_writes_a_workdir_a_member_and_its_report(clip_records, tmp_path, capsys):
    config = small_config(clip_records)
    page = sweep(config, tmp_path / "sweep", [Variation(GAMMA, (0.0, 1.5))], num_mixtures=4)
    assert page == tmp_path / "sweep" / "sweep.html"
    assert "gamma=1.5" in capsys.readouterr().out
    rows = rows_of(page.parent)
    assert [(row["member"], row[GAMMA]) for row in rows] == [("gamma=0.0", "0.0"), ("gamma=1.5", "1.5")]
    for row in rows:
        member = page.parent / row["member"]
        lines = read_metrics(member)
        assert [line["step"] for line in lines] == [1, 2, 3, 4]
        assert float(row["mean_noise_activation"]) == lines[-1]["mean_noise_activation"]  # the last tenth
        scores = json.loads((member / "scores" / "scores.json").read_text())
        assert float(row["sdr_image"]) == scores["image"]["sdr_mean"]
        assert Separator.load(member).config.objective.gamma == float(row[GAMMA])
    for name in ("noise_activation.png", "sdr.png", "curves.png", "sweep.csv"):
        assert (page.parent / name).is_file()
        assert name in page.read_text()
    assert weights(page.parent / "gamma=0.0") != weights(page.parent / "gamma=1.5")
    alone = tmp_path / "alone"
    train(replace(config, objective=replace(config.objective, gamma=1.5)), alone)
    first, wanted = read_metrics(page.parent / "gamma=1.5")[0], read_metrics(alone)[0]
    assert first == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_a_member_goes_on_as_a_single_run(records, tmp_path):
    configs = gammas_of(small_config(records), 0.0, 1.5)
    train_together(configs, [tmp_path / "a", tmp_path / "b"])
    train(replace(configs[1], train=replace(configs[1].train, steps=6)), tmp_path / "b", allow_changes=["train.steps"])
    assert [line["step"] for line in read_metrics(tmp_path / "b")] == [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def unbroken(records, tmp_path_factory):
    """Three members after six steps, in one go."""
    folder = tmp_path_factory.mktemp("unbroken")
    folders = [folder / name for name in "abc"]
    train_together(gammas_of(small_config(records, steps=6), 0.0, 0.5, 1.5), folders)
    return folders


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def check_equal(folders, wanted) -> None:
    for folder, other in zip(folders, wanted, strict=True):
        assert read_metrics(folder) == read_metrics(other)
        assert weights(folder) == weights(other)


@pytest.mark.slow
def test_resumed_members_equal_uninterrupted_ones(records, tmp_path, unbroken):
    folders = [tmp_path / name for name in "abc"]
    train_together(gammas_of(small_config(records, steps=4), 0.0, 0.5, 1.5), folders)
    train_together(gammas_of(small_config(records, steps=6), 0.0, 0.5, 1.5), folders, allow_changes=["train.steps"])
    check_equal(folders, unbroken)


@pytest.mark.slow
def test_members_that_were_killed_between_their_saves_go_on_from_the_last_step_of_all(records, tmp_path, unbroken):
    configs, folders = gammas_of(small_config(records, steps=6), 0.0, 0.5, 1.5), [tmp_path / name for name in "abc"]
    save = Checkpoints.save

    def die(checkpoints, step, *arguments):
        if step == 4 and checkpoints.folder.parent.name == "c":
            raise OSError("killed")
        save(checkpoints, step, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", die)
        with pytest.raises(OSError, match="killed"):
            train_together(configs, folders)
    steps = [sorted(p.name for p in (folder / "checkpoints").iterdir() if p.name.isdigit()) for folder in folders]
    assert steps == [["2", "4"], ["2", "4"], ["2"]]
    train_together(configs, folders)
    check_equal(folders, unbroken)


@pytest.mark.slow
def test_no_member_begins_a_save_before_the_last_one_of_all_is_on_disk(records, tmp_path, monkeypatch):
    wait, save, told = Checkpoints.wait, Checkpoints.save, []

    def note(function, name):
        def noted(checkpoints, *arguments):
            told.append((name, checkpoints.folder.parent.name))
            function(checkpoints, *arguments)

        return noted

    monkeypatch.setattr(Checkpoints, "wait", note(wait, "wait"))
    monkeypatch.setattr(Checkpoints, "save", note(save, "save"))
    train_together(gammas_of(small_config(records, steps=2), 0.0, 1.5), [tmp_path / "a", tmp_path / "b"])
    first = told.index(("save", "a"))
    assert {("wait", "a"), ("wait", "b")} <= set(told[:first])


@pytest.mark.slow
def test_the_others_go_on_without_a_member_that_diverges(clip_records, tmp_path):
    """Its parameters overflow at once; it is named, and the other is what it would have been without it."""
    rates = Variation("optimizer.learning_rate", (1e-3, 1e38))
    config = small_config(clip_records, steps=6)
    config = replace(config, optimizer=replace(config.optimizer, warmup_steps=1))
    with pytest.warns(InputWarning) as told:
        page = sweep(config, tmp_path / "sweep", [rates], num_mixtures=4)
    given_up = "learning_rate=1e+38: The norm of the parameters of step 2 is inf. It is given up: "
    assert [str(warning.message).startswith(given_up) for warning in told].count(True) == 1
    assert not (page.parent / "learning_rate=1e+38" / "best" / "model.safetensors").exists()
    rows = {row["member"]: row for row in rows_of(page.parent)}
    assert rows["learning_rate=0.001"]["skipped_steps"] == "0"
    assert rows["learning_rate=0.001"]["best_step"]
    assert rows["learning_rate=0.001"]["sdr_image"]
    assert not rows["learning_rate=1e+38"]["sdr_image"]
    assert [rows[f"learning_rate={rate}"]["given_up"] for rate in ("0.001", "1e+38")] == ["", "step 2"]
    assert int(rows["learning_rate=1e+38"]["skipped_steps"]) > 0
    healthy = Variation("optimizer.learning_rate", (1e-3, 2e-3))
    other = sweep(config, tmp_path / "other", [healthy], num_mixtures=0)
    folders = [path.parent / "learning_rate=0.001" for path in (page, other)]
    assert [line["loss"] for line in read_metrics(folders[0])] == pytest.approx(
        [line["loss"] for line in read_metrics(folders[1])], rel=1e-5
    )


@pytest.mark.soak
def test_a_member_that_was_given_up_stays_so_when_the_run_goes_on(records, tmp_path):
    config, folders = small_config(records), [tmp_path / "a", tmp_path / "b"]
    config = replace(config, optimizer=replace(config.optimizer, warmup_steps=1))
    rates = Variation("optimizer.learning_rate", (1e-3, 1e38))
    for steps in (4, 6):
        members = members_of(replace(config, train=replace(config.train, steps=steps)), [rates])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            train_together(list(members.values()), folders, allow_changes=["train.steps"])
        given_up = [str(warning.message) for warning in told if "is given up" in str(warning.message)]
        assert len(given_up) == (1 if steps == 4 else 0)
        assert json.loads((folders[1] / "given_up.json").read_text())["step"] == 2
    assert not (folders[1] / "best" / "model.safetensors").exists()
    assert read_metrics(folders[0])[-1]["step"] == 6


@pytest.mark.slow
def test_members_without_a_common_step_are_refused_and_nothing_is_lost(records, tmp_path):
    configs, folders = gammas_of(small_config(records), 0.0, 1.5), [tmp_path / "a", tmp_path / "b"]
    train_together(configs, folders)
    shutil.rmtree(folders[1] / "checkpoints")
    before = sorted(path for path in folders[0].rglob("*") if path.is_file())
    with pytest.raises(InputError, match=r"share no checkpoint to resume from \(a has \[2, 4\], b has none\); nothing"):
        train_together(configs, folders)
    assert sorted(path for path in folders[0].rglob("*") if path.is_file()) == before
    shutil.copytree(folders[0] / "checkpoints", folders[1] / "checkpoints", dirs_exist_ok=True)
    for folder, step in ((folders[0], 4), (folders[1], 2)):  # each has lost another one
        (folder / "checkpoints" / str(step) / "sha256.json").write_text("{}")
    with pytest.warns(InputWarning, match="is damaged"), pytest.raises(InputError, match="no whole checkpoint"):
        train_together(configs, folders)
    assert (folders[1] / "checkpoints" / "4").is_dir()
    shutil.rmtree(folders[1] / "checkpoints" / "4")
    for _ in range(2):  # one is left, of one member, which is not the first save of a run that was interrupted
        with pytest.raises(
            InputError, match=r"\(a has \[2\], b has none\); nothing was deleted\. Restore .*a/damaged, .*b/damaged\)"
        ):
            train_together(configs, folders)
    assert (folders[0] / "checkpoints" / "2").is_dir()
    with pytest.raises(InputError, match=r"no whole checkpoint to resume from \(b has none\)"):
        train(configs[1], folders[1])  # the same holds for a run of one model
    with pytest.raises(InputError, match="members need 2"):
        train_together([replace(c, checkpoint=replace(c.checkpoint, keep_latest=1)) for c in configs], folders)


@pytest.mark.slow
def test_a_sweep_ends_where_every_member_diverges(records, tmp_path):
    config = small_config(records)
    config = replace(config, optimizer=replace(config.optimizer, warmup_steps=1))
    rates = Variation("optimizer.learning_rate", (1e37, 1e38))
    with pytest.warns(InputWarning), pytest.raises(InputError, match=r"lower --config\.optimizer\.learning_rate"):
        sweep(config, tmp_path / "sweep", [rates], num_mixtures=0)


@pytest.mark.slow
def test_when_the_last_member_diverges_the_report_of_all_is_written(records, tmp_path, monkeypatch):
    config = small_config(records)
    losses = iter([[0.5, math.nan], [math.nan, 0.5]])
    monkeypatch.setattr(Run, "validate", lambda *_: {"validation_loss_image": np.array(next(losses))})
    with (
        pytest.warns(InputWarning, match=r"gamma=1\.5: The validation_loss_image of step 2 is nan\. It is given up"),
        pytest.raises(InputError, match="The validation_loss_image of step 4 is nan"),
    ):
        sweep(config, tmp_path / "sweep", [Variation(GAMMA, (0.0, 1.5))], num_mixtures=0)
    rows = rows_of(tmp_path / "sweep")
    assert [(row["given_up"], row["best_step"]) for row in rows] == [("", "2"), ("step 2", "")]


def test_values_take_the_options_type():
    config = small_config(Path())
    assert read_variation("config.objective.gamma=0, 0.25,1", config) == Variation(GAMMA, (0.0, 0.25, 1.0))
    assert read_variation("objective.regularizer=sum,ratio", config).values == ("sum", "ratio")
    assert read_variation("--config.optimizer.warmup_steps=10,20", config).values == (10, 20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "objective.gama=0,1",
            "'objective.gama' cannot be varied; choose one of objective.criterion, objective.gamma,",
        ),
        ("objective.name=weighted", "'objective.name' cannot be varied"),
        ("train.seed=1,2", "'train.seed' cannot be varied"),
        ("objective.gamma=0,x", "'x' is not a value for config.objective.gamma; give floats"),
        ("objective.gamma=0,,1", "'' is not a value"),
        ("objective.gamma", "'' is not a value"),
        ("objective.gamma=0,nan", "'nan' is not a value"),
        ("objective.gamma=0,0.0", "names a value of objective.gamma twice"),
        ("optimizer.warmup_steps=1.5", "'1.5' is not a value for config.optimizer.warmup_steps; give ints"),
    ],
)
def test_what_cannot_be_varied_is_refused(text, words):
    with pytest.raises(InputError) as refusal:
        read_variation(text, small_config(Path()))
    assert words in str(refusal.value)


def test_gamma_needs_an_objective_that_reads_it():
    config = small_config(Path())
    config = replace(config, objective=replace(config.objective, name="weighted"))
    with pytest.raises(InputError, match=r"gamma does nothing with config.objective.name = 'weighted'"):
        read_variation("objective.gamma=0,1", config)


def test_all_combinations_are_members_and_each_is_checked():
    config = small_config(Path())
    regularizers = Variation("objective.regularizer", ("sum", "ratio"))
    members = members_of(config, [Variation(GAMMA, (0.0, 0.5)), regularizers])
    assert list(members) == [f"gamma={g},regularizer={r}" for g in (0.0, 0.5) for r in ("sum", "ratio")]
    assert members["gamma=0.5,regularizer=ratio"].objective.regularizer == "ratio"
    with pytest.raises(InputError, match="varied twice"):
        members_of(config, [regularizers, regularizers])
    with pytest.raises(InputError, match="must be one of 'sum', 'ratio'"):
        members_of(config, [Variation("objective.regularizer", ("sum", "product"))])


@pytest.mark.slow
def test_a_workdir_of_something_else_is_refused(records, tmp_path):
    config = small_config(records, steps=1)
    gammas = Variation(GAMMA, (0.0, 0.5))
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json.1-1.partial").touch()  # killed while it was written
    sweep(config, tmp_path / "sweep", [gammas], num_mixtures=0)
    sweep(config, tmp_path / "sweep", [replace(gammas, values=(0.5, 0.0))], num_mixtures=0)  # the same
    with pytest.raises(InputError, match=r"holds a sweep over .*0\.5.*; use another --workdir"):
        sweep(config, tmp_path / "sweep", [Variation(GAMMA, (0.0, 0.75))], num_mixtures=0)
    with pytest.raises(InputError, match="holds something other than a sweep"):
        sweep(config, tmp_path / "sweep" / "gamma=0.0", [gammas], num_mixtures=0)
    with pytest.raises(InputError, match="has no split 'tset' to score on"):
        sweep(config, tmp_path / "new", [gammas], split="tset")
    assert not (tmp_path / "new").exists()


def test_figures_have_a_line_for_each_combination_of_the_other_options(tmp_path):
    def row(gamma: float, regularizer: str) -> dict:
        name = f"gamma={gamma},regularizer={regularizer}"
        with MetricsLog(tmp_path / name, 0) as log:
            log.write(1, {"loss": 1.0, "mean_noise_activation": gamma})
        scores = {"sdr_mixture": 0.0, "sdr_mixture_sem": 0.1, "sdr_text": gamma, "sdr_text_sem": 0.1}
        return {"member": name, GAMMA: gamma, "objective.regularizer": regularizer} | scores

    rows = [{**row(g, r), "mean_noise_activation": g / 2} for g in (1.0, 0.0, 0.5) for r in ("sum", "ratio")]
    options = [GAMMA, "objective.regularizer"]
    noise, sdr = noise_figure(options, rows).axes[0], score_figure("sdr", options, rows).axes[0]
    assert [line.get_label() for line in noise.get_lines()] == ["regularizer sum", "regularizer ratio", "gamma"]
    assert noise.get_lines()[0].get_xydata().tolist() == [[0, 0], [0.5, 0.25], [1, 0.5]]
    assert sdr.get_legend_handles_labels()[1] == [
        "mixture",
        "text query, regularizer sum",
        "text query, regularizer ratio",
    ]
    page = write_report(tmp_path, ["objective.regularizer"], [rows[0], rows[1]])  # words on the x axis
    assert "0.00 ± 0.10" in page.read_text()


@pytest.mark.soak
def test_the_command_sweeps_and_says_where_the_report_is(records, tmp_path, capsys):
    arguments = [
        "sweep-gamma", "--config=configs/toy_smoke.py", f"--workdir={tmp_path / 'sweep'}", "--num-mixtures=0",
        f"--config.data.records={records}", "--config.toy.num_clips=0", f"--config.model.query_size={QUERY_SIZE}",
        "--config.model.num_levels=2", "--config.model.width=2", "--config.spectrogram.num_samples=2047",
        "--config.train.steps=2", "--config.train.board_mixtures=1",
    ]  # fmt: skip
    assert main([*arguments, "--gammas=0,1", "--vary=objective.regularizer=sum,ratio"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"The report is in {tmp_path / 'sweep' / 'sweep.html'};")
    assert len(rows_of(tmp_path / "sweep")) == 4
    assert main([*arguments, "--gammas=0,2"]) == 2
    assert "holds a sweep over" in capsys.readouterr().err
    assert main([*arguments, "--gamas=0,2"]) == 2
    assert "Unknown command line flag 'gamas'" in capsys.readouterr().err


@pytest.mark.soak
def test_noise_activation_follows_gamma_on_the_toy_set(tmp_path):
    """At most gamma + 0.1 up to 0.5, and never less with more gamma, at the demo's size and length."""
    config = Config.from_config_dict(clipsep_nit.get_config("toy"))
    config = replace(config, data=replace(config.data, records=str(tmp_path / "records")))
    make_toy_records(tmp_path / "records", config.toy.num_clips, config.toy.encoder_steps)
    page = sweep(config, tmp_path / "sweep", [read_variation(f"{GAMMA}={GAMMAS}", config)], num_mixtures=0)
    found = {float(row[GAMMA]): float(row["mean_noise_activation"]) for row in rows_of(page.parent)}
    assert all(activation <= gamma + 0.1 for gamma, activation in found.items() if gamma <= 0.5), found
    assert (np.diff(list(found.values())) >= 0).all(), found
    assert found[0.5] - found[0.0] > 0.2
