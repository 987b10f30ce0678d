"""The benchmarks, each run as a command at its least size."""

import json
import math
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import gpu, hlo, traffic
from benchmarks.__main__ import BEGIN, DOCS, END, GPU_BEGIN, RUNS, replaced, table


def run(name: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=1000)
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


@pytest.mark.soak
def test_rematerialisation_trades_work_for_memory():
    """By XLA's own analysis of the compiled step."""
    size = ("--width", "16", "--batch", "2", "--steps", "1")
    plain, rematerialised = run("train_step", *size), run("train_step", *size, "--remat")
    assert rematerialised["peak_bytes"] < 0.9 * plain["peak_bytes"]
    assert rematerialised["gflop_per_example"] > 1.1 * plain["gflop_per_example"]


@pytest.mark.soak
def test_a_full_size_step_costs_at_most_27_gflop_an_example():
    assert run("train_step", "--batch", "2", "--steps", "1")["gflop_per_example"] <= 27


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "options", "figure"),
    [
        pytest.param(
            "train_step",
            ("--width", "8", "--batch", "2", "--steps", "1", "--reference", "tuned"),
            "ratio_median",
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
        ),
        ("input_pipeline", ("--clips", "16", "--batch", "2"), "clips_per_second_per_core"),
        ("loop", ("--width", "8", "--clips", "16", "--batch", "2", "--steps", "8"), "clips_per_second"),
        ("separate", ("--width", "8", "--seconds", "1", "5", "--turns", "2"), "extra_query_percent"),
        ("prepare", ("--clips", "2", "--seconds", "2"), "video_seconds_per_second_per_core"),
        ("evaluate", ("--width", "8", "--mixtures", "2", "--no-museval"), "mixtures_per_second"),
        ("profile_step", ("--width", "8", "--batch", "2"), "products_gflop_per_second"),
    ],
)
def test_each_benchmark_prints_its_figure(name, options, figure):
    value = run(name, *options)[figure]
    assert math.isfinite(value)
    assert value > 0 or figure == "extra_query_percent"  # which noise may turn below 0


@pytest.mark.soak
def test_six_members_cost_at_most_six_single_runs():
    """In steps, and in wall time with imports, compilation, input and checkpoints."""
    assert run("members", "--turns", "3")["map_ratio"] < 1
    assert run("sweep", "--steps", "40")["ratio"] < 1


@pytest.mark.soak
def test_a_config_is_trained_and_scored_on_the_toy_set():
    found = run("toy", "bertsep", "--steps", "2", "--mixtures", "2")["bertsep"]
    assert found["minutes"] > 0
    assert {"mixture", "sentence", "wrong_query"} <= set(found["sdr_mean_and_sem"])


@pytest.mark.soak
def test_the_forms_are_measured_at_every_level():
    levels = run("strided_forms", "--width", "8", "--batch", "2")["milliseconds"]
    assert len(levels) == 7
    assert all(times[times["chosen"]] > 0 for times in levels.values())


def test_the_table_is_written_between_its_marks():
    document = f"before\n{BEGIN}old\n{END}after\n"
    assert replaced(document, "new\n") == f"before\n{BEGIN}new\n{END}after\n"
    with pytest.raises(ValueError, match="marks"):
        replaced("before\n", "new\n")


@pytest.mark.soak
def test_the_table_shows_figures_that_the_train_step_gives():
    facts = run("train_step", "--width", "8", "--batch", "2", "--steps", "1", "--reference", "official")
    for each in RUNS:
        if "train_step" in each.command:
            assert each.figures.keys() <= facts.keys()


def test_the_table_has_a_row_for_every_figure():
    results = [dict.fromkeys(run.figures, 1234) | {"device": "some device"} for run in RUNS]
    lines = table(results).splitlines()
    assert "some device" in lines[0]
    assert sum(line.endswith("| 1,234 |") for line in lines) == sum(len(run.figures) for run in RUNS)


@pytest.mark.slow
def test_scaling_on_paper_counts_the_state():
    by_chips = {row["chips"]: row for row in run("scaling")["rows"]}
    assert by_chips[1]["state_megabytes_replicated"] == by_chips[1024]["state_megabytes_replicated"]
    assert by_chips[8]["state_megabytes_fsdp"] == pytest.approx(by_chips[1]["state_megabytes_fsdp"] / 8, rel=0.05)
    assert by_chips[1]["state_megabytes_fsdp"] == pytest.approx(3 * by_chips[1]["gradient_megabytes"], rel=0.01)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("part", "figure"),
    [
        ("step bfloat16 2 8", "milliseconds"),
        ("torch official float32 2 8", "ratio_median"),
        ("profile float32 2 8", "milliseconds_by_kind"),
        ("ceilings 128", "bfloat16_teraflops"),
        ("strided bfloat16 1 8", "milliseconds"),
        ("up bfloat16 1 8", "low_resolution"),
        ("train float32 2 8 8", "waits_for_input"),
    ],
)
def test_each_part_about_a_gpu_gives_its_figures(part, figure):
    results = gpu.run_part(part, 240)
    assert not any("error" in result for result in results), results
    for result in results:
        assert result[figure] is not None
        assert result["part"] == part
        assert result["device"] == "cpu"


@pytest.mark.soak
def test_a_part_that_fails_or_takes_too_long_loses_nothing_else(tmp_path, capsys):
    path = tmp_path / "gpu.jsonl"
    gpu.run_all((("ceilings 64", 100), ("no such part", 100), ("ceilings 65", 0.1), ("ceilings 66", 100)), 200, path)
    results = [json.loads(line) for line in path.read_text().splitlines()]
    assert results == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result["part"] for result in results] == ["ceilings 64", "no such part", "ceilings 65", "ceilings 66"]
    assert results[0]["copy_gigabytes_per_second"] > 0
    assert "no" in results[1]["error"]
    assert "more than 0 s" in results[2]["error"]
    assert results[3]["copy_gigabytes_per_second"] > 0
    gpu.run_all((("ceilings 64", 100),), 1, path)
    assert json.loads(path.read_text())["error"] == "no time was left"


def test_results_of_a_gpu_become_a_table(tmp_path):
    path = tmp_path / "gpu.jsonl"
    lines = [
        {"part": "step bfloat16 32", "milliseconds": 4.5, "device": "NVIDIA H100", "jax": "0.11"},
        {"part": "train bfloat16 32 400", "error": "No module named 'grain'"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    text = gpu.table(path)
    assert text.startswith("NVIDIA H100, jax 0.11.\n")
    assert "| `step bfloat16 32` | milliseconds: 4.5 |" in text
    assert "No module named 'grain'" in text
    document = f"before\n{GPU_BEGIN}old\n{END}after\n"
    assert replaced(document, text, GPU_BEGIN) == f"before\n{GPU_BEGIN}{text}{END}after\n"


HLO = """HloModule step

%blend (a: bf16[4,6], b: bf16[8,3]) -> bf16[4,3] {
  %a = bf16[4,6]{1,0} parameter(0)
  %b = bf16[8,3]{1,0} parameter(1)
  %half = bf16[4,3]{1,0} slice(%a), slice={[0:4], [3:6]}
  %rows = bf16[4,2,3]{2,1,0} bitcast(%b)
  %odd = bf16[4,1,3]{2,1,0} slice(%rows), slice={[0:4], [1:2], [0:3]}
  %flat = bf16[4,3]{1,0} bitcast(%odd)
  ROOT %sum = bf16[4,3]{1,0} add(%half, %flat)
}

%place (room: f32[4,8], part: f32[4,2], at: s32[]) -> f32[4,8] {
  %room = f32[4,8]{1,0} parameter(0)
  %part = f32[4,2]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %placed = f32[4,8]{1,0} dynamic-update-slice(%room, %part, %zero, %at)
}

%padded (x: f32[4,4]) -> (f32[6,4], f32[4]) {
  %x = f32[4,4]{1,0} parameter(0)
  %none = f32[] constant(0)
  %wide = f32[6,4]{1,0} pad(%x, %none), padding=1_1x0_0
  %first = f32[4,1]{1,0} slice(%x), slice={[0:4], [0:1]}
  %column = f32[4]{0} reshape(%first)
  ROOT %both = (f32[6,4]{1,0}, f32[4]{0}) tuple(%wide, %column)
}

ENTRY %main (p: bf16[4,6], q: bf16[8,3], r: f32[4,8], s: f32[4,2], i: s32[], x: f32[4,4]) -> f32[4,8] {
  %p = bf16[4,6]{1,0} parameter(0)
  %q = bf16[8,3]{1,0} parameter(1)
  %r = f32[4,8]{1,0} parameter(2)
  %s = f32[4,2]{1,0} parameter(3)
  %i = s32[] parameter(4)
  %x = f32[4,4]{1,0} parameter(5)
  %blended = bf16[4,3]{1,0} fusion(%p, %q), kind=kLoop, calls=%blend, metadata={op_name="jit(step)/jvp(up_1)/add"}
  %product = (f32[4,8]{1,0}, s8[1000]{0}) custom-call(%r, %s), custom_call_target="gemm"
  %result = f32[4,8]{1,0} get-tuple-element(%product), index=0
  %both = (f32[6,4]{1,0}, f32[4]{0}) fusion(%x), kind=kLoop, calls=%padded
  ROOT %done = f32[4,8]{1,0} fusion(%result, %s, %i), kind=kLoop, calls=%place, metadata={op_name="jit(step)/loss/x"}
}
"""


def test_kernels_move_what_they_need_of_their_operands():
    blended, product, both, done = hlo.kernels(HLO)
    assert (blended.name, blended.kind, blended.num_bytes) == ("blended", "fusion", 2 * (12 + 12 + 12))
    assert (product.kind, product.num_bytes) == ("gemm", 4 * (32 + 8 + 32))
    assert both.num_bytes == 4 * (16 + 24 + 4)
    assert done.num_bytes == 4 * (8 + 8 + 1)
    assert [traffic.part_of(kernel) for kernel in (blended, product, done)] == ["up 1", "rest", "loss"]


def test_the_traffic_of_the_document_is_that_of_the_benchmark():
    text = (DOCS / "performance.md").read_text("utf-8")
    part = text[text.index(traffic.BEGIN) :]
    measured = {name: value for name, _, value in re.findall(r"\| (\S.*) \| ([\d.]+) \| ([\d.]+) \|", part)}
    by_part = {name: float(measured[name]) for name in traffic.EARLIER}
    assert traffic.table({"by_part": by_part, "megabytes": float(measured["all"])}) in part
    assert sum(by_part.values()) == pytest.approx(float(measured["all"]), abs=1)


@pytest.mark.soak
@pytest.mark.skipif(not (traffic.FOLDER / ".ready").exists(), reason="`make traffic` was not run")
def test_a_step_moves_at_most_what_the_document_says():
    assert run("traffic")["megabytes"] < 0.83 * sum(traffic.EARLIER.values())
