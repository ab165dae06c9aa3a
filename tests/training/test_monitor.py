import json
import logging
import math
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from audio_mamba.training import monitor
from audio_mamba.training.monitor import Monitor
from audio_mamba.training.records import read_log, read_steps


class RecordingTracker:
    def __init__(self):
        self.logged, self.steps, self.images, self.closed = [], [], [], False

    def log(self, values, step):
        self.logged.append(values)
        self.steps.append(step)

    def image(self, name, path, step):
        self.images.append((name, path, step))

    def close(self):
        self.closed = True


def make(workdir, first_epoch=0, first_step=0, steps=5, print_freq=2, trackers=()):
    return Monitor(
        workdir,
        first_epoch=first_epoch,
        first_step=first_step,
        num_epochs=5,
        steps_per_epoch=steps,
        samples_per_step=8,
        print_freq=print_freq,
        trackers=trackers,
    )


def follow(workdir, losses_by_epoch, first_epoch=0, print_freq=2, trackers=(), val_loss=None, **measures):
    watcher = make(workdir, first_epoch, 0, len(losses_by_epoch[0]), print_freq, trackers)
    for epoch, losses in enumerate(losses_by_epoch, start=first_epoch):
        for step, loss in watcher.epoch(epoch, losses):
            watcher.step(torch.tensor(loss), 0.1 * epoch, grad_norm=torch.tensor(float(step)), **measures)
        watcher.end_epoch(val_loss)
    watcher.close()


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch, request):
    if request.node.name != "test_log_txt_has_one_line_per_epoch":
        monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="audio_mamba.training.monitor")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_shows_the_mean_since_the_previous_line(tmp_path, lines):
    tracker = RecordingTracker()
    follow(tmp_path, [[1.0, 2.0, 3.0, 4.0, 7.0], [1.0, 1.0, 1.0, 1.0, 0.0]], trackers=[tracker])
    assert lines()[0].startswith("epoch 1/5  step 2/5  loss 1.5000  lr 0  grad norm 1  ")
    assert lines()[1].startswith("epoch 1/5  step 4/5  loss 3.5000 ")
    assert lines()[2].startswith("epoch 1/5  step 5/5  loss 7.0000 ")
    assert lines()[3].startswith("epoch 1/5  train loss 3.4000  ")
    assert tracker.steps == [2, 4, 5, 5, 7, 9, 10, 10] and tracker.closed
    by_line = [values for values in tracker.logged if "train_loss" in values]
    assert [values["train_loss"] for values in by_line] == [1.5, 3.5, 7.0, 1.0, 1.0, 0.0]
    assert by_line[-1].keys() == {
        "epoch",
        "train_loss",
        "lr",
        "grad_norm",
        "non_finite",
        "steps_per_second",
        "samples_per_second",
        "data_wait",
    }
    assert by_line[-1]["samples_per_second"] == pytest.approx(8 * by_line[-1]["steps_per_second"])
    assert tracker.logged[-1] == {"epoch": 1, "epoch_train_loss": 0.8}


def test_steps_csv_has_a_row_per_line(tmp_path):
    follow(tmp_path, [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], update_ratio=torch.tensor(0.25), skipped=1)
    rows = read_steps(tmp_path / "steps.csv")
    assert [(row["step"], row["epoch"], row["train_loss"], row["lr"], row["grad_norm"]) for row in rows] == [
        (2, 0, 1.5, 0.0, 1.0),
        (3, 0, 3.0, 0.0, 2.0),
        (5, 1, 4.5, 0.1, 1.0),
        (6, 1, 6.0, 0.1, 2.0),
    ]
    assert {(row["update_ratio"], row["skipped"]) for row in rows} == {(0.25, 1)}
    assert all(math.isnan(row["loss_scale"]) for row in rows)
    assert [row["samples_per_second"] * row["seconds"] for row in rows] == pytest.approx([16, 8, 16, 8])


def test_measures_appear_only_in_the_next_line(tmp_path, lines):
    watcher = make(tmp_path, steps=4)
    for step, loss in watcher.epoch(0, [1.0, 1.0, 1.0, 1.0]):
        watcher.step(torch.tensor(loss), 0.5, **({"update_ratio": torch.tensor(0.00123456)} if step == 0 else {}))
    assert "  lr 0.5  update ratio 0.00123  " in lines()[0]
    assert "update ratio" not in lines()[1] and "grad norm" not in lines()[1]


@pytest.mark.parametrize("steps, print_freq, due", [(5, 2, [1, 3, 4]), (4, 2, [1, 3]), (3, 100, [2]), (2, 1, [0, 1])])
def test_lines_are_due_every_print_freq_steps_and_at_the_end(tmp_path, steps, print_freq, due):
    watcher = make(tmp_path, steps=steps, print_freq=print_freq)
    assert [step for step in range(steps) if watcher.line_due(step)] == due
    for _, loss in watcher.epoch(0, [1.0] * steps):
        watcher.step(torch.tensor(loss), 0.0)
    assert [row["step"] for row in read_steps(tmp_path / "steps.csv")] == [step + 1 for step in due]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_losses_are_counted_and_left_out(tmp_path, lines, bad):
    follow(tmp_path, [[1.0, bad, 3.0, 5.0], [bad, bad, 2.0, 2.0]])
    rows = read_steps(tmp_path / "steps.csv")
    assert [(row["train_loss"], row["non_finite"]) for row in rows[:2]] == [(1.0, 1), (4.0, 0)]
    assert math.isnan(rows[2]["train_loss"]) and rows[2]["non_finite"] == 2
    assert "  NaN or Inf losses 1  " in lines()[0] and "NaN or Inf" not in lines()[1]
    assert [line["train_loss"] for line in read_log(tmp_path / "log.txt")] == [3.0, 2.0]


def test_an_objective_may_give_its_numbers_as_floats(tmp_path):
    watcher = make(tmp_path, steps=3, print_freq=3)
    for step, loss in watcher.epoch(0, [torch.tensor(1.0), torch.tensor(math.inf), torch.tensor(1.0)]):
        watcher.step(loss, 0.1, averaged={"float": 0.1 * step, "numpy": np.float32(step), "tensor": torch.tensor(step)})
    (row,) = read_steps(tmp_path / "steps.csv")
    assert (row["float"], row["numpy"], row["tensor"]) == (0.1, 1.0, 1.0)  # without the infinite step


def test_no_step_waits_for_the_device_unless_a_line_is_due(tmp_path, monkeypatch):
    watcher, read = make(tmp_path, steps=4), []
    for name in ("item", "tolist", "__float__", "__bool__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, original=original: read.append(1) or original(self))
    reads = []
    for _, loss in watcher.epoch(0, [torch.tensor(1.0)] * 4):
        watcher.step(
            loss, 0.1, grad_norm=torch.tensor(1.0), averaged={"part": torch.tensor(1.0), "more": 1.0}, update_ratio=loss
        )
        reads.append(len(read))
    assert reads[0] == 0 < reads[1] == reads[2] < reads[3]


def test_log_txt_has_one_line_per_epoch(tmp_path):
    follow(tmp_path, [[1.0, 2.0], [3.0, 5.0]], print_freq=100)
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [(line["epoch"], line["train_loss"], line["train_lr"]) for line in lines] == [(0, 1.5, 0.0), (1, 4.0, 0.1)]
    assert lines[0].keys() == {"epoch", "train_loss", "train_lr", "seconds"}
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_numbers_of_an_objective_are_averaged_as_its_loss(tmp_path, lines):
    tracker = RecordingTracker()
    watcher = make(tmp_path, steps=4, trackers=[tracker])
    for step, loss in watcher.epoch(0, [1.0, math.nan, 3.0, 4.0]):
        watcher.step(torch.tensor(loss), 0.1, averaged={"target_std": torch.tensor(float(10 * step))})
    watcher.end_epoch()
    assert [row["target_std"] for row in read_steps(tmp_path / "steps.csv")] == [0.0, 25.0]
    assert [values["target_std"] for values in tracker.logged if "train_loss" in values] == [0.0, 25.0]
    assert "  target std 25  " in lines()[1]
    assert read_log(tmp_path / "log.txt")[0]["train_target_std"] == pytest.approx(50 / 3)


@pytest.mark.parametrize("name", ["train_loss", "loss", "steps_per_second", "two words", "a,b"])
def test_a_number_that_cannot_be_a_new_column_is_refused(tmp_path, name):
    watcher = make(tmp_path)
    for _ in watcher.epoch(0, [1.0]):
        with pytest.raises(ValueError, match=f"an objective cannot give a number called '{name}'"):
            watcher.step(torch.tensor(1.0), 0.1, averaged={name: torch.tensor(1.0)})


def test_the_validation_loss_is_logged_everywhere(tmp_path, lines):
    tracker = RecordingTracker()
    follow(tmp_path, [[1.0, 2.0]], trackers=[tracker], val_loss=1.75)
    assert read_log(tmp_path / "log.txt")[0]["val_loss"] == 1.75
    assert tracker.logged[-1]["val_loss"] == 1.75
    assert "  train loss 1.5000  val loss 1.7500  " in lines()[-1]


def test_an_epoch_of_fewer_batches_counts_them_all(tmp_path):
    watcher = make(tmp_path, steps=5)
    for _, loss in watcher.epoch(0, [1.0, 2.0, 6.0]):
        watcher.step(torch.tensor(loss), 0.1)
    watcher.end_epoch()
    assert read_log(tmp_path / "log.txt")[0]["train_loss"] == 3.0


def test_resuming_replaces_the_lines_of_steps_trained_again(tmp_path):
    follow(tmp_path, [[1.0], [2.0], [3.0]])
    follow(tmp_path, [[20.0]], first_epoch=1)
    assert [(line["epoch"], line["train_loss"]) for line in read_log(tmp_path / "log.txt")] == [(0, 1.0), (1, 20.0)]
    assert [(row["step"], row["train_loss"]) for row in read_steps(tmp_path / "steps.csv")] == [(1, 1.0), (2, 20.0)]


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_run_stopped_anywhere_and_resumed_writes_the_same_bits(tmp_path, cut):
    """Losses of very different sizes, so that another order of additions would change the sum."""
    generator = random.Random(0)
    losses = [generator.uniform(0, 1) * 10 ** generator.randint(-6, 6) for _ in range(7)]
    losses[3] = math.nan

    def train(watcher, first_step, end):
        for step, loss in watcher.epoch(2, losses[first_step:], first_step):
            skipped = {"skipped": 1} if step == 2 else {}
            watcher.step(
                torch.tensor(loss),
                0.1 * step,
                grad_norm=float(step),
                averaged={"part": torch.tensor(3.0 * loss)},
                **skipped,
            )
            if step + 1 == end:
                break

    def recorded(workdir):
        rows = read_steps(workdir / "steps.csv")
        (line,) = read_log(workdir / "log.txt")
        return (
            line["train_loss"],
            line["train_part"],
            repr([{key: row[key] for key in ("step", "train_loss", "grad_norm", "skipped", "part")} for row in rows]),
        )

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    watcher = make(tmp_path / "whole", 2, steps=7, print_freq=3)
    train(watcher, 0, 7)
    watcher.end_epoch()

    watcher = make(tmp_path / "cut", 2, steps=7, print_freq=3)
    train(watcher, 0, cut)
    state = json.loads(json.dumps(watcher.state_dict()))
    assert all(type(value) in (int, float) for value in state.values())
    train(watcher, cut, 7)  # continues after the save and is killed before the end of the epoch
    watcher = make(tmp_path / "cut", 2, cut, steps=7, print_freq=3)
    watcher.load_state_dict(state)
    train(watcher, cut, 7)
    watcher.end_epoch()
    assert recorded(tmp_path / "cut") == recorded(tmp_path / "whole")
    whole = math.fsum(loss for loss in losses if not math.isnan(loss)) / 6
    assert recorded(tmp_path / "cut")[:2] == pytest.approx((whole, 3 * whole))


def test_the_epoch_after_a_resumed_one_starts_at_zero(tmp_path):
    watcher = make(tmp_path, steps=2)
    for _ in watcher.epoch(0, range(1)):
        watcher.step(torch.tensor(6.0), 0.1)
    watcher.load_state_dict(watcher.state_dict())
    for epoch, first_step, loss in ((0, 1, 2.0), (1, 0, 1.0)):
        for _ in watcher.epoch(epoch, range(2 - first_step), first_step):
            watcher.step(torch.tensor(loss), 0.1)
        watcher.end_epoch()
    assert [line["train_loss"] for line in read_log(tmp_path / "log.txt")] == [4.0, 1.0]


def test_between_epochs_the_state_is_empty(tmp_path):
    watcher = make(tmp_path, steps=2)
    new = watcher.state_dict()
    assert not any(new.values())
    for _ in watcher.epoch(0, range(2)):
        watcher.step(torch.tensor(6.0), 0.1, update_ratio=0.5)
    assert any(watcher.state_dict().values())
    watcher.end_epoch()
    assert watcher.state_dict() == new


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_only_lines_wait_for_cuda(tmp_path):
    watcher = make(tmp_path, steps=4)
    losses = torch.tensor([1.0, math.nan, 2.0, 3.0], device="cuda")
    for step, loss in watcher.epoch(0, losses.unbind()):
        torch.cuda.set_sync_debug_mode("default" if watcher.line_due(step) else "error")
        watcher.step(loss, 0.1, grad_norm=loss, update_ratio=loss)
    torch.cuda.set_sync_debug_mode("default")
    watcher.load_state_dict(watcher.state_dict())
    watcher.end_epoch()
    assert read_log(tmp_path / "log.txt")[0]["train_loss"] == 2.0


def test_waiting_for_data_is_separated_from_computing(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow_batches():
        for _ in range(4):
            now[0] += 3.0
            yield torch.tensor(1.0)

    watcher = make(tmp_path, steps=4)
    for _, loss in watcher.epoch(0, slow_batches()):
        now[0] += 1.0
        watcher.step(loss, 0.1)
    now[0] += 100.0  # validation, which is not part of a step
    watcher.end_epoch()
    assert [(row["data_wait"], row["seconds"]) for row in read_steps(tmp_path / "steps.csv")] == [(0.75, 8.0)] * 2
    assert read_log(tmp_path / "log.txt")[0]["seconds"] == 16.0


def test_seconds_and_waiting_of_an_epoch_survive_a_stop(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def one_step(watcher, number):
        def batches():
            now[0] += 1.0
            yield torch.tensor(1.0)

        for _, loss in watcher.epoch(0, batches(), number):
            now[0] += 4.0
            watcher.step(loss, 0.1)

    before, after = make(tmp_path, steps=2), make(tmp_path, first_step=1, steps=2)
    one_step(before, 0)
    after.load_state_dict(before.state_dict())
    one_step(after, 1)
    after.end_epoch()
    assert [(row["data_wait"], row["seconds"]) for row in read_steps(tmp_path / "steps.csv")] == [(0.2, 10.0)]
    assert read_log(tmp_path / "log.txt")[0]["seconds"] == 10.0


def test_the_time_left_counts_the_whole_run(tmp_path, monkeypatch, lines):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watcher = make(tmp_path, first_epoch=1, first_step=1, steps=4)
    for _, loss in watcher.epoch(1, [torch.tensor(1.0)] * 3, first_step=1):
        now[0] += 3600.0
        watcher.step(loss, 0.1)
    # Of 20 steps in total, 6 and then 8 are complete, at an hour each.
    assert [line.split("  ")[-1] for line in lines()] == ["14 h 0 min left", "12 h 0 min left"]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "<1 min"),
        (29, "<1 min"),
        (90, "2 min"),
        (3599, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86399, "1 d 0 h"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert monitor.format_duration(seconds) == text


def test_pictures_reach_the_trackers_with_the_step_of_the_run(tmp_path):
    tracker = RecordingTracker()
    watcher = make(tmp_path, steps=3, trackers=[tracker])
    for epoch in (0, 1):
        for _ in watcher.epoch(epoch, range(3)):
            watcher.step(torch.tensor(1.0), 0.1)
        watcher.end_epoch()
        watcher.image("reconstructions", tmp_path / "a.png")
    assert tracker.images == [("reconstructions", tmp_path / "a.png", step) for step in (3, 6)]


def test_a_terminal_gets_a_progress_bar_instead_of_lines(tmp_path, monkeypatch, capsys, lines):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    follow(tmp_path, [[1.0, 2.0]])
    shown = capsys.readouterr().err
    assert "epoch 1/5:" in shown and "0/2" in shown and "loss 1.5000" in shown
    assert "samples/s" in shown and "data wait" in shown and "<1 min left" in shown
    assert [line.split("  ")[1] for line in lines()] == ["train loss 1.5000"]


def test_a_log_file_gets_lines_beside_the_bar_of_a_terminal(tmp_path, monkeypatch, capsys, lines):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    follow(tmp_path, [[1.0, 2.0]])
    assert "step 2/2" in lines()[0]


def test_a_plain_output_gets_no_bar(tmp_path, capsys):
    follow(tmp_path, [[1.0, 2.0]])
    assert capsys.readouterr().err == ""


# The first process's second loss is lost; the second process must write nothing.
TWO_PROCESSES = """
import math
from pathlib import Path
import torch
from audio_mamba.training import distributed
from audio_mamba.training.monitor import Monitor

device = distributed.init()
workdir = Path(f"rank{distributed.rank()}")
workdir.mkdir()
losses = torch.tensor([[1.0, math.nan, 5.0], [2.0, 3.0, 6.0]][distributed.rank()], device=device)
watcher = Monitor(workdir, first_epoch=0, num_epochs=1, steps_per_epoch=3, samples_per_step=8, print_freq=2)
for step, loss in watcher.epoch(0, losses.unbind()):
    watcher.step(loss, 0.1, averaged={"square": loss**2, "one": torch.ones(())})
watcher.end_epoch()
watcher.close()
distributed.cleanup()
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes of the test would need two GPUs")
@pytest.mark.slow
def test_the_main_process_writes_the_means_of_all(tmp_path, pytestconfig):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath)}
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    rows = read_steps(tmp_path / "rank0" / "steps.csv")
    assert [(row["train_loss"], row["non_finite"]) for row in rows] == [(2.0, 1), (5.5, 0)]
    assert [(row["square"], row["one"]) for row in rows] == [(pytest.approx(14 / 3), 1), (30.5, 1)]
    (line,) = read_log(tmp_path / "rank0" / "log.txt")
    assert (line["train_loss"], line["train_square"], line["train_one"]) == (17 / 5, 75 / 5, 1)
    assert list((tmp_path / "rank1").iterdir()) == []
