"""What the GPU benchmark does without a GPU: it refuses, counts, keeps to its budget and shows what it has."""

import contextlib
import json
import signal
import time

import pytest
import torch

from audio_mamba import models
from benchmarks import gpu, gpu_tasks
from tests.conftest import DEVICE, runs_on_device


def test_without_a_gpu_it_says_so_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="^benchmarks.gpu: no CUDA device; [^\n]*$"):
        gpu.main([])


def test_the_least_work_of_a_scan():
    """Two channels of three steps: forward moves 4 sequences of 6 numbers, backward 7 more."""
    assert gpu_tasks.scan_work((1, 2, 3, 5), number_size=2, backward=False) == (4 * 6 * 2, 6 * 5)
    assert gpu_tasks.scan_work((1, 2, 3, 5), number_size=4, backward=True) == (11 * 6 * 4, 2 * 6 * 5)


@pytest.mark.parametrize("installed", [False, True])
def test_every_measurement_once(monkeypatch, installed):
    monkeypatch.setattr(gpu_tasks.packages, "unavailable_reason", lambda package: None if installed else "not there")
    monkeypatch.setattr(gpu_tasks.packages, "incompatible_reason", lambda: None if installed else "not there")
    tasks = gpu.tasks()
    assert len(set(tasks)) == len(tasks)
    assert {task.way for task in tasks} >= ({"mamba-ssm", "mamba-ssm, fused block"} if installed else {"ours"})
    steps = {task.subject for task in tasks if task.kind == "step"}
    ssam = ("SSAM-tiny", "SSAM-tiny alternate", "SSAM-tiny both", "SSAM-small", "SSAM-base")
    assert steps == {f"{encoder}, 256" for encoder in (*ssam, "AxLSTM-tiny")}
    assert {task.precision for task in tasks if task.kind == "encoder"} == set(gpu.DTYPES)


def test_without_mamba_ssm_the_compiled_scan_is_the_other_side_and_comes_early(monkeypatch):
    monkeypatch.setattr(gpu_tasks.packages, "unavailable_reason", lambda package: f"the package {package} is missing")
    kinds = [(task.kind, task.way) for task in gpu.tasks()]
    assert kinds.index(("scan", "torch.compile")) < kinds.index(("encoder", "ours"))
    assert gpu.other_side() == "torch.compile of the plain PyTorch scan, since the package mamba-ssm is missing"
    for name in ("unavailable_reason", "incompatible_reason"):
        monkeypatch.setattr(gpu_tasks.packages, name, lambda *package: None)
    kinds = [(task.kind, task.way) for task in gpu.tasks()]
    assert kinds.index(("scan", "torch.compile")) > kinds.index(("tokens", "ours")) and gpu.other_side() == "mamba-ssm"


def test_the_rows_of_ours_use_our_kernels_whatever_is_installed(monkeypatch):
    """Under "auto", causal-conv1d would take the convolution."""
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    mixers = [block.mixer for block in gpu_tasks.build("SSAM-tiny", "ours", depth=2).blocks]
    assert {mixer.backend for mixer in mixers} == {"triton"}
    mixers = [block.mixer for block in gpu_tasks.build("SSAM-tiny", "mamba-ssm", depth=2).blocks]
    assert {mixer.backend for mixer in mixers} == {"mamba_ssm"} and mixers[0].forward == mixers[0].compose
    assert isinstance(gpu_tasks.build("AxLSTM-tiny", "ours", depth=2), models.XLSTMSSAST)
    both = gpu_tasks.build("SSAM-tiny both", "ours", depth=2)
    assert {block.mixer.direction for block in both.blocks} == {"both"}


def fake_measure(task, report, seconds):
    return gpu.Row(task, seconds=0.5, peak_mib=10, gb_per_s=100, exp_per_s=2e12, of_copy=0.03, of_exp=0.5)


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
    nothing = gpu.run(1, None)
    assert [row.task for row in report.rows] == [row.task for row in nothing.rows] == gpu.tasks()
    assert all(not row.problem for row in report.rows)
    assert all(row.problem == "no time left" and row.seconds == 0 for row in nothing.rows)
    assert len(json.loads((tmp_path / "all.json").read_text())["rows"]) == len(report.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["all.json"]

    assert lines[0].startswith("A GPU, torch") and "3000 GB/s, 4000 G exponentials/s" in lines[0]
    scan = next(line for line in lines if "| scan | pretraining | ours | bfloat16 | forward |" in line)
    assert scan.endswith("| 500 | 512 | 10 | 100 | 3% | 2000 | 50% |")
    step = next(line for line in lines if "| step | SSAM-base, 256 |" in line)
    assert step.endswith("| 500 | 512 | 10 |  |  |  |  |")
    assert "not measured: no time left" in gpu.line(nothing.rows[0])
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_rows_that_take_long_are_not_begun_late(made_up_figures, tmp_path):
    report = gpu.run(60, tmp_path / "some.json")
    assert {row.task.way for row in report.rows if row.problem} == {"torch.compile"}


@pytest.fixture
def no_memory_to_measure(monkeypatch):
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)


def test_shares_of_the_ceilings(no_memory_to_measure, monkeypatch):
    """2 ms for a scan that moves 4 x 2 bytes and computes 24 exponentials per channel step."""
    monkeypatch.setattr(gpu, "median_seconds", lambda function: 2e-3)
    monkeypatch.setitem(gpu.RUNS, "scan", lambda task: None)
    task = gpu.Task("scan", "pretraining", "ours", "bfloat16", False)
    row = gpu.measure(task, gpu.Report("", "", "", gb_per_s=1000.0, exp_per_s=1e12))
    steps = 256 * 576 * 251
    assert row.of_copy == pytest.approx(8 * steps / 2e-3 / 1e12)
    assert row.of_exp == pytest.approx(24 * steps / 2e-3 / 1e12)


def test_a_row_is_stopped_when_its_time_is_over(no_memory_to_measure, monkeypatch):
    def compile_for_hours(task):
        while True:
            with contextlib.suppress(Exception):  # as compilers do, to try another way
                time.sleep(0.01)

    monkeypatch.setitem(gpu.RUNS, "scan", compile_for_hours)
    row = gpu.measure(gpu.tasks()[0], gpu.Report("", "", ""), seconds=0.2)
    assert row.problem == "stopped after 0 s" and row.seconds == 0


def test_the_device_may_stop_working(made_up_figures, monkeypatch, tmp_path, capsys):
    """Every later call fails, too; what was measured before is kept."""
    calls = []

    def measure(task, report, seconds):
        calls.append(task)
        if len(calls) < 3:
            return fake_measure(task, report, seconds)
        return gpu.Row(task, problem="AcceleratorError: an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "measure", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "broken_reason", lambda: "AcceleratorError: an illegal memory access" if calls else None)
    with pytest.raises(SystemExit, match="the device stopped working"):
        gpu.main(["--output", str(tmp_path / "gpu.json")])
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(calls) == 3 and len(rows) == len(gpu.tasks())
    assert [row["seconds"] for row in rows[:2]] == [0.5, 0.5] and "illegal memory access" in rows[2]["problem"]
    assert {row["problem"] for row in rows[3:]} == {
        "the device stopped working: AcceleratorError: an illegal memory access"
    }
    assert "the device stopped working" in capsys.readouterr().out


def test_a_row_that_fails_says_why_and_leaves_the_others(no_memory_to_measure, monkeypatch):

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
    monkeypatch.setattr(gpu_tasks, "BATCH", 2)
    first = {task.kind: task for task in reversed(gpu.tasks())}
    monkeypatch.setattr(gpu, "tasks", lambda: list(first.values()))
    gpu.main(["--output", str(tmp_path / "gpu.json")])
    assert set(first) == {"scan", "encoder", "step", "tokens"} and "not measured" not in capsys.readouterr().out


class OnTheCpu(torch.overrides.TorchFunctionMode):
    """Tensors that ask for the device "cuda" are made on the CPU."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        if str(options.get("device", "")).startswith("cuda"):
            options["device"] = "cpu"
        return function(*arguments, **options)


@pytest.mark.parametrize("kind", ["scan", "encoder", "step", "tokens"])
def test_a_rehearsal_of_every_kind_of_measurement_on_the_cpu(monkeypatch, kind):
    """The same functions as on a GPU, on small shapes and without Triton."""
    monkeypatch.setattr(gpu_tasks, "BATCH", 1)
    monkeypatch.setitem(gpu_tasks.SCANS, "pretraining", (1, 6, 9, 4))
    monkeypatch.setattr(gpu_tasks.triton, "selective_scan", gpu_tasks.chunked.selective_scan)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(models.MambaSSAST, "use_backend", lambda self, name: None)
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda device, *args, **options: autocast("cpu", *args, **options))
    first = {}
    for task in gpu.tasks():
        if task.kind == kind and task.precision == "bfloat16" and "22000" not in task.subject:
            first.setdefault((task.subject.split("-")[0], task.backward), task)
    for task in first.values():
        if task.subject != "long clip":
            with OnTheCpu():
                gpu.RUNS[kind](task)()


def test_the_time_limit_restores_the_timer_before_it():
    before = signal.getsignal(signal.SIGALRM)
    with gpu.time_limit(5):
        pass
    assert signal.getsignal(signal.SIGALRM) is before
