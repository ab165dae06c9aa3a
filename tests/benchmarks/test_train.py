"""The benchmark of pretraining: it runs, counts correctly, and compares steps that learn the same."""

import json

import pytest
import torch
import torch.nn.functional as F

from audio_mamba import models
from audio_mamba.models.ops import native
from benchmarks import train, train_against, train_steps
from benchmarks.measure import without_kernels
from tests.conftest import ROOT

SETTING = train_steps.Setting("SSAM-tiny", "configs.ssam_tiny_200_16x4", 2, "float32", "train.py", 8, 1.0, "", [])


def row(step="train.py", rate=6.0, outside=0.01, model="SSAM-tiny"):
    return train.Row(model, 1, "float32", step, 16, 3, rate, 0.3, 0.6, 0.1 - outside, outside, 0.002, 1000.4)


@pytest.mark.slow
def test_it_measures_two_processes_of_train_py_and_of_the_plain_loop(tmp_path, capsys):
    train.main(
        [
            "--models",
            "SSAM-tiny",
            "--processes",
            "2",
            "--precisions",
            "bfloat16",
            "--steps",
            "train.py",
            "plain, chunked scan",
            "--batch",
            "4",
            "--seconds",
            "0.1",
            "--audio-minutes",
            "4",
            "--set",
            "model.model_args.depth=1",
            "model.model_args.embed_dim=48",
            "--output",
            str(tmp_path / "rows.json"),
        ]
    )
    ours, plain = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (ours["step"], plain["step"]) == ("train.py", "plain, chunked scan")
    for one in (ours, plain):
        assert one["samples_per_second"] > 0 and one["steps_timed"] >= 2 and one["peak_mib"] > 0
        assert min(one[part] for part in train_steps.WORK) > 0
        assert 0 <= one["data_wait"] <= one["outside"] < 1
    assert ours["data_wait"] > 0 and plain["data_wait"] == 0
    assert plain["speed_up"] == pytest.approx(ours["samples_per_second"] / plain["samples_per_second"])
    assert capsys.readouterr().out.count("| SSAM-tiny | 2 | bfloat16 |") == 2


@pytest.mark.slow
def test_two_checkouts_are_compared(tmp_path, capsys):
    """Here with itself, so the ratio may be anything."""
    train.main(
        [
            "--against",
            str(ROOT),
            *("--rounds", "2", "--models", "SSAM-tiny", "--processes", "1", "--precisions", "float32"),
            *("--batch", "4", "--seconds", "0.1", "--audio-minutes", "4"),
            *("--set", "model.model_args.depth=1", "model.model_args.embed_dim=48"),
            *("--output", str(tmp_path / "rows.json")),
        ]
    )
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert len(row["old"]) == len(row["new"]) == 2 and min(*row["old"], *row["new"], row["new_peak_mib"]) > 0
    assert capsys.readouterr().out.count("| SSAM-tiny | 1 | float32 | 4 |") == 1


def test_old_and_new_code_run_in_turns():
    turns = []

    def measure(name, rates):
        return lambda setting: turns.append(name) or row(rate=rates.pop(0))

    old, new = measure("old", [1.0, 2.0, 4.0]), measure("new", [3.0, 3.0, 8.0])
    (found,) = train_against.alternate([SETTING], 3, old, new)
    assert turns == ["old", "new"] * 3
    assert (found.old, found.new, found.ratios()) == ([1.0, 2.0, 4.0], [3.0, 3.0, 8.0], [3.0, 1.5, 2.0])
    other = train_against.Comparison("SSAST-tiny", 2, "float32", 8, [6.0], [6.0], 1.0, 1.0)
    text = train_against.table([found, other])
    assert "| SSAM-tiny | 2 | float32 | 8 | 2.00 | 3.00 | 2.00 | 1.50 to 3.00 | 1000 | 1000 |" in text
    assert "SSAM-tiny makes 0.50 times the samples/s of SSAST-tiny (2 processes, float32)" in text


@pytest.mark.parametrize("wrong", [["--against", "/nowhere"], ["--rounds", "0"]])
def test_wrong_comparisons_are_refused(capsys, wrong):
    with pytest.raises(SystemExit):
        train.parse(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_the_clock_leaves_out_the_first_step_of_an_epoch_and_counts_everything_else(monkeypatch):
    now = 0.0
    monkeypatch.setattr(train_steps.time, "perf_counter", lambda: now)

    def step(forward, other):
        nonlocal now
        with clock.on("forward"):
            now += forward
        now += other
        return clock.end_step()

    clock = train_steps.StepClock(seconds=6.0)
    assert [step(9, 9), step(2, 1), step(1, 1)] == [False, False, False]
    now += 100.0  # a checkpoint
    clock.begin_epoch()
    assert [step(5, 5), step(0.5, 0.5)] == [False, True]
    assert clock.steps == [{"forward": 2, "step": 3}, {"forward": 1, "step": 2}, {"forward": 0.5, "step": 1}]


def test_a_row_has_the_rate_of_the_slower_process_and_the_mean_of_the_shares():
    faster = {"step": 2.0, "forward": 0.5, "backward": 1.0, "optimizer": 0.25, "data": 0.125}
    slower = {"step": 4.0, "forward": 1.0, "backward": 2.0, "optimizer": 1.0}
    found = train.summary(SETTING, [{"steps": [faster], "peak_mib": 7}, {"steps": [slower], "peak_mib": 9}])
    assert found.samples_per_second == 2 * 8 / 4.0
    assert (found.forward, found.backward, found.optimizer) == (0.25, 0.5, 0.1875)
    assert (found.outside, found.data_wait, found.peak_mib) == (0.0625, 0.03125, 9)


def test_the_table_compares_within_a_setting_and_names_the_targets():
    rows = [
        row(),
        row("train.py, checkpointing", 4.0, outside=0.07),
        row("plain, chunked scan", 2.0),
        row("plain, step-by-step scan", 0.25),
        row("plain", 5.0, model="SSAST-tiny"),
    ]
    train.compare(rows)
    text = train.table(train.Report(2, "2.0", 0.5, rows))
    assert "| SSAM-tiny | 1 | float32 | plain, chunked scan | 16 | 2.00 | 3.00 x | 30.0% | 60.0% | 9.0% | 1.0%" in text
    assert "| SSAST-tiny | 1 | float32 | plain | 16 | 5.00 |  | 30.0%" in text  # nothing to compare it with
    assert "3.0 to 3.0 times as fast as plain, chunked scan in batches of 16 (target: at least 8)" in text
    assert "24.0 to 24.0 times as fast as plain, step-by-step scan in batches of " in text
    assert "at most 7.0% of a step outside forward, backward and optimizer (target: at most 5%)" in text


def test_each_model_is_compared_with_its_own_plain_step(tmp_path):
    args = train.parse(["--batch", "8", "--loop-batch", "3", "--precisions", "float32"])
    found = train.settings(args, tmp_path)
    assert len(found) == 2 * (4 + 4 * 3)  # by one and by two processes
    steps = {model: {one.step: one.batch for one in found if one.model == model} for model in args.models}
    assert steps["SSAM-tiny"] == {
        "train.py": 8,
        "train.py, checkpointing": 8,
        "plain, chunked scan": 8,
        "plain, step-by-step scan": 3,
    }
    for model in ("SSAM-tiny, alternate", "SSAM-tiny, both", "SSAST-tiny", "AxLSTM-tiny"):
        assert steps[model] == {"train.py": 8, "train.py, checkpointing": 8, "plain": 8}


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_the_plain_step_learns_the_same_without_compiled_kernels(monkeypatch, backend):
    torch.manual_seed(0)
    model = models.mamba_ssast_tiny(depth=1)
    x, mask = torch.randn(1, 1, 80, 200), (torch.rand(1, 250) < 0.5).float()

    def gradients():
        model.zero_grad()
        pred, target, _ = model(x, mask)
        F.mse_loss(pred, target).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    monkeypatch.setattr(native, "unsupported_reason", native.unsupported_reason)  # to be put back
    monkeypatch.setattr(native, "call", lambda *_: pytest.fail("a compiled kernel was called"))
    without_kernels(model, backend)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)
