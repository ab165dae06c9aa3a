import json
import logging
import sys
import types

import pytest
import torch

from training import monitor
from training.monitor import Monitor


class RecordingRun:
    def __init__(self):
        self.logged = []

    def log(self, values):
        self.logged.append(values)


def follow(workdir, losses_by_epoch, first_epoch=0, print_freq=2, run=None):
    steps = len(losses_by_epoch[0])
    watcher = Monitor(workdir, first_epoch=first_epoch, num_epochs=5, steps_per_epoch=steps, samples_per_step=8,
                      print_freq=print_freq, wandb_run=run)
    for epoch, losses in enumerate(losses_by_epoch, start=first_epoch):
        for step, loss in watcher.epoch(epoch, losses):
            watcher.step(torch.tensor(loss), rate=0.1 * epoch, grad_norm=torch.tensor(float(step)))


def test_a_line_shows_the_mean_since_the_last_one(tmp_path, caplog):
    run = RecordingRun()
    with caplog.at_level(logging.INFO, logger="training.monitor"):
        follow(tmp_path, [[1.0, 2.0, 3.0, 4.0, 7.0], [1.0, 1.0, 1.0, 1.0, 0.0]], run=run)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("epoch 1/5  step 2/5  loss 1.5000  lr 0  grad norm 1 ")
    assert lines[1].startswith("epoch 1/5  step 4/5  loss 3.5000 ")
    assert lines[2].startswith("epoch 1/5  step 5/5  loss 7.0000 ")
    assert lines[3].startswith("epoch 1/5  train loss 3.4000 ")
    assert [values["step"] for values in run.logged] == [2, 4, 5, 7, 9, 10]
    assert [values["train_loss"] for values in run.logged] == [1.5, 3.5, 7.0, 1.0, 1.0, 0.0]
    assert run.logged[-1].keys() == {"train_loss", "step", "lr", "steps_per_second", "samples_per_second", "grad_norm"}
    assert run.logged[-1]["samples_per_second"] == pytest.approx(8 * run.logged[-1]["steps_per_second"])


def test_log_txt_has_one_line_per_epoch(tmp_path):
    follow(tmp_path, [[1.0, 2.0], [3.0, 5.0]], print_freq=100)
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [(line["epoch"], line["train_loss"], line["train_lr"]) for line in lines] == [(0, 1.5, 0.0), (1, 4.0, 0.1)]
    assert monitor.read_log(tmp_path / "log.txt") == lines
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_going_on_replaces_the_lines_of_epochs_that_are_trained_again(tmp_path):
    follow(tmp_path, [[1.0], [2.0], [3.0]])
    follow(tmp_path, [[20.0]], first_epoch=1)
    assert [(line["epoch"], line["train_loss"]) for line in monitor.read_log(tmp_path / "log.txt")] == [
        (0, 1.0), (1, 20.0)]


def test_read_log_of_a_new_run_is_empty(tmp_path):
    assert monitor.read_log(tmp_path / "log.txt") == []


def test_a_terminal_gets_a_progress_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    follow(tmp_path, [[1.0, 2.0]])
    shown = capsys.readouterr().err
    assert "epoch 1/5:" in shown and "0/2" in shown and "loss=1.5000" in shown


def test_a_plain_output_gets_none(tmp_path, capsys):
    follow(tmp_path, [[1.0, 2.0]])
    assert capsys.readouterr().err == ""


class TestWandb:
    @pytest.fixture
    def started(self, monkeypatch):
        """Replaces wandb; holds the arguments of init, and what login does."""
        calls = types.SimpleNamespace(login=lambda prompt: False, init=None)
        fake = types.ModuleType("wandb")
        fake.errors = types.SimpleNamespace(Error=ConnectionError)
        fake.login = lambda prompt: calls.login(prompt)

        def init(**arguments):
            calls.init = arguments
            return types.SimpleNamespace(dir=str(arguments["dir"] / "wandb" / "offline-run-1" / "files"))

        fake.init = init
        monkeypatch.setitem(sys.modules, "wandb", fake)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        return calls

    def test_with_an_account_it_is_online(self, tmp_path, started):
        started.login = lambda prompt: True
        monitor.start_wandb("project", tmp_path, {"a": 1})
        assert started.init == {"project": "project", "name": tmp_path.name, "dir": tmp_path, "config": {"a": 1},
                                "mode": "online"}

    def test_without_a_key_it_is_offline_and_says_where(self, tmp_path, started, caplog):
        with caplog.at_level(logging.INFO, logger="training.monitor"):
            monitor.start_wandb("project", tmp_path, {})
        assert started.init["mode"] == "offline"
        assert str(tmp_path / "wandb" / "offline-run-1") in caplog.text

    def test_an_unreachable_server_does_not_stop_the_run(self, tmp_path, started, caplog):
        def refuse(prompt):
            raise ConnectionError("no route")

        started.login = refuse
        monitor.start_wandb("project", tmp_path, {})
        assert started.init["mode"] == "offline"
        assert "no route" in caplog.text

    def test_the_environment_goes_first(self, tmp_path, started, monkeypatch):
        started.login = None  # must not be asked
        monkeypatch.setenv("WANDB_MODE", "disabled")
        monitor.start_wandb("project", tmp_path, {})
        assert started.init["mode"] == "disabled"

    def test_the_real_one_logs_offline(self, tmp_path, monkeypatch):
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        run = monitor.start_wandb("project", tmp_path, {"a": (1, 2)})
        run.log({"train_loss": 1.0, "step": 1})
        run.finish()
        assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
