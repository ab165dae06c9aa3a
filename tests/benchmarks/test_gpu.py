"""What the GPU benchmark does without a GPU: it refuses, counts, keeps to its budget and shows what it has."""

import json

import pytest
import torch

from benchmarks import gpu
from tests.conftest import DEVICE, runs_on_device


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="^benchmarks.gpu: no CUDA device; [^\n]*$"):
        gpu.main([])


def test_the_least_work_of_a_scan():
    """Two channels of three steps: forward moves 4 sequences of 6 numbers, backward 7 more."""
    assert gpu.scan_work((1, 2, 3, 5), number_size=2, backward=False) == (4 * 6 * 2, 6 * 5)
    assert gpu.scan_work((1, 2, 3, 5), number_size=4, backward=True) == (11 * 6 * 4, 2 * 6 * 5)


@pytest.mark.parametrize("installed", [False, True])
def test_every_measurement_once(monkeypatch, installed):
    monkeypatch.setattr(gpu.packages, "unavailable_reason", lambda package: None if installed else "not there")
    monkeypatch.setattr(gpu.packages, "incompatible_reason", lambda: None if installed else "not there")
    tasks = gpu.tasks()
    assert len(set(tasks)) == len(tasks)
    assert {task.way for task in tasks} >= ({"mamba-ssm", "mamba-ssm, fused block"} if installed else {"ours"})
    assert {task.subject for task in tasks if task.kind == "step"} == {"tiny, 256", "small, 256", "base, 256"}
    assert {task.precision for task in tasks if task.kind == "encoder"} == set(gpu.DTYPES)


def fake_measure(task, report):
    return gpu.Row(task, seconds=0.5, peak_mib=10, gb_per_s=100, exp_per_s=2e12, of_floor=0.25)


@pytest.fixture
def made_up_figures(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(gpu, "ceilings", lambda: (3e12, 4e12))
    monkeypatch.setattr(gpu, "measure", fake_measure)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_table_and_file_hold_every_row_and_the_budget_ends_the_measuring(made_up_figures, tmp_path):
    lines = []
    report = gpu.run(1000, tmp_path / "all.json", lines.append)
    nothing = gpu.run(1, tmp_path / "nothing.json")
    assert [row.task for row in report.rows] == [row.task for row in nothing.rows] == gpu.tasks()
    assert all(not row.problem for row in report.rows)
    assert all(row.problem == "no time left" and row.seconds == 0 for row in nothing.rows)
    assert len(json.loads((tmp_path / "all.json").read_text())["rows"]) == len(report.rows)

    assert lines[0].startswith("A GPU, torch") and "3000 GB/s, 4000 G exponentials/s" in lines[0]
    scan = next(line for line in lines if "| scan | pretraining | ours | bfloat16 | forward |" in line)
    assert scan.endswith("| 500 | 512 | 10 | 100 | 2000 | 25% |")
    assert next(line for line in lines if "| step | base, 256 |" in line).endswith("| 500 | 512 | 10 |  |  |  |")
    assert "not measured: no time left" in gpu.line(nothing.rows[0])
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_rows_that_take_long_are_not_begun_late(made_up_figures, tmp_path):
    report = gpu.run(60, tmp_path / "some.json")
    assert {row.task.way for row in report.rows if row.problem} == {"torch.compile"}


def test_a_row_that_fails_says_why_and_leaves_the_others(monkeypatch):
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)

    def fail(task):
        raise RuntimeError("two\nlines | of reasons")

    monkeypatch.setitem(gpu.RUNS, "scan", fail)
    row = gpu.measure(gpu.tasks()[0], gpu.Report("", "", ""))
    assert row.problem == "RuntimeError: two lines | of reasons"
    assert "| not measured: RuntimeError: two lines / of reasons |" in gpu.line(row)


@pytest.mark.parametrize("device", [pytest.param(DEVICE, marks=runs_on_device)])
def test_the_kernel_of_exponentials_does_as_many_as_it_says(device):
    pytest.importorskip("triton")
    from benchmarks import gpu_triton

    x = -torch.rand(gpu_triton.BLOCK, device=device)
    y = torch.empty_like(x)
    assert gpu_triton.exponentials(x, y) == gpu_triton.REPEATS * gpu_triton.BLOCK
    for _ in range(gpu_triton.REPEATS):
        x = torch.exp2(x) - 1
    torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_kind_of_measurement_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "SECONDS", 0.05)
    monkeypatch.setattr(gpu, "BATCH", 2)
    first = {task.kind: task for task in reversed(gpu.tasks())}
    monkeypatch.setattr(gpu, "tasks", lambda: list(first.values()))
    gpu.main(["--output", str(tmp_path / "gpu.json")])
    assert set(first) == {"scan", "encoder", "step", "tokens"} and "not measured" not in capsys.readouterr().out
