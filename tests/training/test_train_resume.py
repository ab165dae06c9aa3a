"""Exact resume, guards and validation of train.py, in this process."""

import argparse
import json
import logging
import math
import os
import random
import signal

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from audio_mamba import models, train
from audio_mamba.cli import train_arguments, train_config, train_data, train_resume
from audio_mamba.data.loader import make_validation_loader
from audio_mamba.models.loss import reconstruction_loss
from audio_mamba.system import folder_lock
from audio_mamba.training import checkpoint, optim, resume, validation
from audio_mamba.training.records import read_log, read_steps
from tests.training.runs import arguments, losses, write_archive

STEPS = 4  # of an epoch: 16 samples in batches of 4


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    """Drawing would take most of the time of these runs."""
    monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)


def run(workdir, data, *options, **overrides):
    train.main(
        arguments(workdir, data, "--device", "cpu", *options, **({"num_epochs": 3, "batch_size": 4} | overrides))
    )
    return losses(workdir)


def spoil(monkeypatch, change):
    """Replace the loss of each training step by `change(loss, number)`, counting from 1."""
    plain, steps = train.loss_of, []

    def loss_of(run, model, batch):
        loss, numbers = plain(run, model, batch)
        if not model.training:
            return loss, numbers
        steps.append(batch["index"].tolist())
        return change(loss, len(steps)), numbers

    monkeypatch.setattr(train, "loss_of", loss_of)
    return steps


def stop_at(monkeypatch, step):
    return spoil(
        monkeypatch, lambda loss, number: os.kill(os.getpid(), signal.SIGTERM) or loss if number == step else loss
    )


def weights(workdir):
    return checkpoint.load_checkpoint(resume.checkpoints(workdir)[0][1])["model"]


@pytest.mark.parametrize("direction", ["alternate", "both"])
def test_bidirectional_encoders_resume_exactly(tmp_path, synthetic_archive, monkeypatch, direction):
    changes = {"config": f"configs.ssam_{direction}_tiny_200_16x4", "num_epochs": 2}
    changes |= {"model__model_args__depth": 2, "model__model_args__cls_position": "middle"}
    reference = run(tmp_path / "whole", synthetic_archive, **changes)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        run(tmp_path / "cut", synthetic_archive, **changes)
    assert run(tmp_path / "cut", synthetic_archive, **changes) == reference
    ours, whole = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert ours.keys() == whole.keys() and all(torch.equal(ours[key], whole[key]) for key in whole)


@pytest.mark.parametrize("step", [1, 3, 4, 6, 12])
def test_stopped_after_any_step_and_resumed_it_ends_the_same(tmp_path, synthetic_archive, monkeypatch, step):
    options = ["--val-data", str(synthetic_archive), "--print_freq", "3"]
    reference = run(tmp_path / "whole", synthetic_archive, *options)
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        run(tmp_path / "cut", synthetic_archive, *options)
    epoch = (step - 1) // STEPS
    assert resume.checkpoints(tmp_path / "cut")[0][0] == (epoch, step - epoch * STEPS)
    assert len(losses(tmp_path / "cut")) == epoch
    assert run(tmp_path / "cut", synthetic_archive, *options) == reference
    for name in ("train_loss", "train_lr", "val_loss"):
        assert [line[name] for line in read_log(tmp_path / "cut" / "log.txt")] == [
            line[name] for line in read_log(tmp_path / "whole" / "log.txt")
        ]
    for name in ("step", "train_loss", "lr", "grad_norm", "update_ratio"):
        assert [row[name] for row in read_steps(tmp_path / "cut" / "steps.csv")] == [
            row[name] for row in read_steps(tmp_path / "whole" / "steps.csv")
        ]
    ended, expected = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(ended[key], expected[key]) for key in expected)
    assert not (tmp_path / "cut" / "resume").exists()


def test_a_shortened_run_keeps_checkpoints_beyond_its_end(tmp_path, synthetic_archive, monkeypatch):
    reference = run(tmp_path / "whole", synthetic_archive, num_epochs=3)
    with monkeypatch.context() as patch:
        stop_at(patch, 2 * STEPS + 1)
        run(tmp_path / "cut", synthetic_archive, num_epochs=3)
    run(tmp_path / "cut", synthetic_archive, num_epochs=2)
    assert resume.checkpoints(tmp_path / "cut")[0][0] == (2, 1)
    assert run(tmp_path / "cut", synthetic_archive, num_epochs=3) == reference


@pytest.mark.parametrize("accumulation", [1, STEPS - 1], ids=["no window", "a window that the epoch cuts off"])
def test_a_stop_during_validation_loses_nothing(tmp_path, synthetic_archive, monkeypatch, caplog, accumulation):
    options = ["--val-data", str(synthetic_archive), "--print_freq", "1"]
    options += ["--set", f"opt.grad_accum_steps={accumulation}"]
    run(tmp_path / "whole", synthetic_archive, *options)
    plain, passes = validation.mean_loss, []

    def interrupted(batches, *args, **kwargs):
        passes.append(0)
        if len(passes) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return plain(batches, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "mean_loss", interrupted)
        run(tmp_path / "cut", synthetic_archive, *options)
    assert resume.checkpoints(tmp_path / "cut")[0][0] == (1, STEPS)
    run(tmp_path / "cut", synthetic_archive, *options)
    assert [(line["train_loss"], line["val_loss"]) for line in read_log(tmp_path / "cut" / "log.txt")] == [
        (line["train_loss"], line["val_loss"]) for line in read_log(tmp_path / "whole" / "log.txt")
    ]
    rows, expected = (read_steps(tmp_path / name / "steps.csv") for name in ("cut", "whole"))
    assert [(row["step"], row["train_loss"]) for row in rows] == [(row["step"], row["train_loss"]) for row in expected]
    assert "trained again" not in caplog.text


@pytest.mark.parametrize("data", ["archive", "fake"])
@pytest.mark.parametrize("training, batch", [(True, 2), (True, STEPS + 1), (False, 2), (False, STEPS)])
def test_losses_that_draw_random_numbers_resume_exactly(
    tmp_path, synthetic_archive, monkeypatch, data, training, batch
):
    """Stopped at a batch for training or for validation."""
    monkeypatch.setattr(train_data, "FAKE_SAMPLES", 4 * STEPS)
    options = ["--val-data", str(synthetic_archive), "--print_freq", "1"]
    archive = synthetic_archive if data == "archive" else None
    plain = train.loss_of

    def end(name, stop=None):
        batches = {True: 0, False: 0}

        def noisy(run, model, batch):
            loss, numbers = plain(run, model, batch)
            batches[model.training] += 1
            if (model.training, batches[model.training]) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss * (torch.rand(()).item() + np.random.rand() + random.random()), numbers

        monkeypatch.setattr(train, "loss_of", noisy)
        run(tmp_path / name, archive, *options, num_epochs=2)
        log, steps = read_log(tmp_path / name / "log.txt"), read_steps(tmp_path / name / "steps.csv")
        return [line["val_loss"] for line in log], [row["train_loss"] for row in steps]

    cut, _ = end("cut", stop=(training, batch))
    assert len(cut) < 2
    assert end("cut") == end("whole")


def test_a_run_can_resume_with_another_batch_size(tmp_path, synthetic_archive, monkeypatch):
    """The rest of the epoch is trained in the same order of samples."""
    with monkeypatch.context() as patch:
        everything = spoil(patch, lambda loss, number: loss)
        run(tmp_path / "whole", synthetic_archive, num_epochs=1)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        run(tmp_path / "cut", synthetic_archive, num_epochs=1)
    with monkeypatch.context() as patch:
        rest = spoil(patch, lambda loss, number: loss)
        run(tmp_path / "cut", synthetic_archive, num_epochs=1, batch_size=2)
    assert sum(rest, []) == sum(everything[2:], [])


def test_shards_at_urls_are_begun_again_by_other_workers(tmp_path, monkeypatch, caplog):
    """They are dealt out to the workers, so what the first ones have read says nothing of what is left for others."""
    write_archive(tmp_path / "archive", [4] * 4)
    shards, options = f"pipe:cat {tmp_path}/archive/shard-{{0..3}}.tar", {"num_epochs": 1}
    options["data__train_samples"] = "[16]"
    for name, again in ("same", []), ("other", ["--num-workers", "2"]):
        with monkeypatch.context() as patch:
            begun = stop_at(patch, 2)
            run(tmp_path / name, shards, **options)
        with monkeypatch.context() as patch:
            steps = spoil(patch, lambda loss, number: loss)
            run(tmp_path / name, shards, *again, **options)
        trained = sum(steps if again else begun + steps, [])
        assert len(trained) == len(set(trained)) == 16
        message = "(1 process(es) with 0 worker(s) each and 4 samples per step, now 1 process(es) with 2 worker(s) "
        assert (message in caplog.text) == bool(again)
    assert "epoch 1 starts again" in caplog.text


def test_the_timer_saves_within_an_epoch(tmp_path, synthetic_archive, monkeypatch):
    saved = []
    monkeypatch.setattr(train, "save_in_epoch", lambda run, place, monitor: saved.append(place))
    run(tmp_path, synthetic_archive, "--checkpoint-minutes", "1e-6", num_epochs=1)
    assert saved == [(0, step) for step in (1, 2, 3, 4)]


def test_a_nan_step_is_skipped_and_reported(tmp_path, synthetic_archive, monkeypatch, caplog):
    steps = spoil(monkeypatch, lambda loss, number: loss * math.nan if number == 2 else loss)
    with caplog.at_level(logging.WARNING):
        (loss,) = run(tmp_path, synthetic_archive, num_epochs=1)
    assert math.isfinite(loss)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())
    (message,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert message.startswith("epoch 1, step 2 skipped: the loss is nan; its samples in this process: ")
    dataset = train_data.make_loader([synthetic_archive], num_frames=200, batch_size=4).dataset
    assert all(dataset.name(index) in message for index in steps[1])
    assert [(row["step"], row["skipped"]) for row in read_steps(tmp_path / "steps.csv")] == [(2, 1), (4, 1)]


def test_a_resumed_run_goes_on_counting_skipped_steps(tmp_path, synthetic_archive, monkeypatch):
    spoil(monkeypatch, lambda loss, number: loss * math.nan if number in (2, 6) else loss)
    for epochs in (1, 2, 3):
        run(tmp_path, synthetic_archive, num_epochs=epochs)
    assert [row["skipped"] for row in read_steps(tmp_path / "steps.csv")] == [1, 1, 2, 2, 2, 2]


def test_ten_bad_steps_in_a_row_end_the_run_with_an_intact_checkpoint(tmp_path, synthetic_archive, monkeypatch):
    run(tmp_path / "one", synthetic_archive, num_epochs=1)
    spoil(monkeypatch, lambda loss, number: loss * math.inf if number > 4 else loss)
    with pytest.raises(SystemExit, match="10 steps in a row, up to step 2 of epoch 4"):
        run(tmp_path / "two", synthetic_archive, num_epochs=9)
    assert resume.load_newest(tmp_path / "two")[1]["epoch"] == 2
    kept = checkpoint.load_checkpoint(tmp_path / "two" / "checkpoints" / "checkpoint-0.pth")["model"]
    last = weights(tmp_path / "two")
    assert all(torch.equal(last[key], kept[key]) for key in kept)  # no later step was applied


@pytest.mark.filterwarnings("ignore:Error detected in SqrtBackward0")
def test_detect_anomaly_reports_the_operation(tmp_path, synthetic_archive, monkeypatch):
    spoil(monkeypatch, lambda loss, number: (loss * 0).sqrt() * 0)
    with pytest.raises(RuntimeError, match="SqrtBackward0"):
        run(tmp_path, synthetic_archive, "--detect-anomaly", num_epochs=1)


def test_the_validation_loss_uses_the_weights_on_fixed_crops_and_masks(tmp_path, synthetic_archive):
    run(tmp_path, synthetic_archive, "--val-data", str(synthetic_archive), num_epochs=1)
    config = train_config.load_config(
        "configs.ssast_tiny_200_16x4", ["model.model_args.depth=1", "model.model_args.embed_dim=48"]
    )
    model = models.build(config.model.arch, config.model.model_args.to_dict())
    model.load_state_dict(weights(tmp_path))
    (batch,) = make_validation_loader(synthetic_archive, num_frames=200, batch_size=16, draw_mask=model.draw_mask)
    with torch.no_grad():
        pred, target, mask = model(batch["spectrogram"], batch["mask"])
        expected = reconstruction_loss(pred, target, mask).item()
    (line,) = read_log(tmp_path / "log.txt")
    assert line["val_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_precision_may_change_between_runs(tmp_path, synthetic_archive):
    run(tmp_path, synthetic_archive, "--precision", "float16", num_epochs=1)
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "float16"
    assert len(run(tmp_path, synthetic_archive, "--precision", "bfloat16", num_epochs=2)) == 2
    assert len(run(tmp_path, synthetic_archive, "--precision", "float16", num_epochs=3)) == 3
    assert checkpoint.load_checkpoint(tmp_path / "checkpoints" / "checkpoint-2.pth")["scaler"]


@pytest.mark.parametrize("config", ["ssam_tiny_200_16x4", "ssast_tiny_200_16x4"])
def test_a_published_checkpoint_resumes_with_the_moments_of_each_parameter(tmp_path, golden, config):
    """Its optimizer state is stored by index, in the order of the published code, which golden/ records."""
    order = json.loads((golden / f"{config}_training.json").read_text())
    settings = train_config.load_config(f"configs.{config}", [])
    model = models.build(settings.model.arch, settings.model.model_args.to_dict())
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    names = order["no_decay"] + order["decay"]
    state = {
        index: {
            "step": torch.tensor(7.0),
            "exp_avg": torch.full(shapes[name], float(index)),
            "exp_avg_sq": torch.full(shapes[name], 0.5 + index),
        }
        for index, name in enumerate(names)
    }
    group = {
        "lr": 1e-4,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "amsgrad": False,
        "foreach": None,
        "maximize": False,
        "capturable": False,
        "differentiable": False,
        "fused": None,
    }
    split = len(order["no_decay"])
    groups = [
        {**group, "weight_decay": 0.0, "params": list(range(split))},
        {**group, "weight_decay": 0.05, "params": list(range(split, len(names)))},
    ]
    scaler = {
        "scale": 1024.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 2000,
        "_growth_tracker": 3,
    }
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": {"state": state, "param_groups": groups},
            "epoch": 41,
            "scaler": scaler,
            "args": argparse.Namespace(config=ConfigDict(settings), seed=5),
        },
        tmp_path / "checkpoint-41.pth",
    )

    args = train_arguments.parse_arguments(
        "",
        ["--config", f"configs.{config}", "--workdir", str(tmp_path), "--resume", str(tmp_path / "checkpoint-41.pth")],
    )
    fresh = models.build(settings.model.arch, settings.model.model_args.to_dict())
    optimizer = optim.make_optimizer(fresh, weight_decay=0.3)
    scaler = torch.amp.GradScaler(enabled=False)
    start = train_resume.load_state(args, settings, tmp_path, fresh, optimizer, scaler, steps_per_epoch=4, contents={})
    assert start == ((42, 0), 168, None, 0)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.3]  # of this run, not of the file
    parameters = dict(fresh.named_parameters())
    for index, name in enumerate(names):
        moments = optimizer.state[parameters[name]]
        assert moments["exp_avg"].unique().tolist() == [index], name
        assert moments["exp_avg_sq"].unique().tolist() == [0.5 + index] and moments["step"] == 7
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert optimizer.state[parameters[names[3]]]["exp_avg"].unique().tolist() == [pytest.approx(0.9 * 3)]


def test_other_parameter_groups_are_refused(tmp_path, synthetic_archive):
    run(tmp_path, synthetic_archive, num_epochs=1)
    with pytest.raises(SystemExit, match=r"its optimizer has groups of \[\d+, \d+\] parameters instead of \[\d+\]"):
        run(tmp_path, synthetic_archive, "--bias_decay", num_epochs=2)


@pytest.mark.parametrize("option, before, now", [("--seed", "0", "3"), ("--min-lr", "0.0", "1e-07")])
def test_another_value_of_an_option_beside_the_config_is_refused(tmp_path, synthetic_archive, option, before, now):
    run(tmp_path, synthetic_archive, num_epochs=1)
    with pytest.raises(SystemExit, match=f"was trained with {option} {before}, not {now}"):
        run(tmp_path, synthetic_archive, option, now, num_epochs=2)
    assert len(run(tmp_path, synthetic_archive, option, before, num_epochs=2)) == 2


def test_a_checkpoint_of_another_run_is_resumed_with_its_own_config_alone(tmp_path, synthetic_archive):
    """The new work folder has no config.json to compare with."""
    run(tmp_path / "a", synthetic_archive, num_epochs=1)
    named = tmp_path / "a" / "checkpoints" / "checkpoint-0.pth"
    other = {"opt__weight_decay": 0.5, "opt__norm_pix_loss": True, "model__model_args__mask_ratio": 0.9}
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "b", synthetic_archive, "--resume", str(named), **other)
    assert str(ended.value.code) == (
        f"train.py: {named} belongs to another config: model.model_args.mask_ratio is 0.5 there and 0.9 here; "
        "opt.norm_pix_loss is False there and True here; opt.weight_decay is 0.05 there and 0.5 here; give the same "
        "values, or start a new run from its weights with --init"
    )
    free = {"num_epochs": 2, "batch_size": 2, "opt__decay_epochs": 1.0}
    assert len(run(tmp_path / "b", synthetic_archive, "--resume", str(named), **free)) == 1


def test_partial_files_of_killed_runs_go_at_the_next_start_that_holds_the_lock(
    tmp_path, synthetic_archive, monkeypatch
):
    """A second run that is refused touches none of them: they may be those of the first."""
    run(tmp_path, synthetic_archive, num_epochs=1)
    strays = [tmp_path / name for name in ("log.txt", "curves.png", "checkpoints/checkpoint-0.pth")]
    strays = [path.with_name(f"{path.name}.0badcafe.partial") for path in strays]
    for path in (*strays, tmp_path / "mine.partial"):
        path.write_bytes(b"half")
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.1)
    with folder_lock.lock_folder(tmp_path), pytest.raises(SystemExit, match="another process is using"):
        run(tmp_path, synthetic_archive, num_epochs=2)
    assert all(path.exists() for path in strays)
    run(tmp_path, synthetic_archive, num_epochs=2)
    assert [path.name for path in tmp_path.rglob("*.partial")] == ["mine.partial"]


def test_a_garbage_line_in_the_log_is_reported_and_the_run_resumes(tmp_path, synthetic_archive, caplog):
    expected = run(tmp_path / "whole", synthetic_archive)
    run(tmp_path / "cut", synthetic_archive, num_epochs=1)
    with open(tmp_path / "cut" / "log.txt", "ab") as file:
        file.write(b"\xff\0 not JSON\n[[[\n")
    assert run(tmp_path / "cut", synthetic_archive) == expected
    assert f"{tmp_path}/cut/log.txt, line 2: " in caplog.text and "2 such line(s) are left out" in caplog.text


@pytest.mark.parametrize("stop", [8, 11], ids=["after an epoch", "within an epoch"])
def test_rows_and_events_survive_a_larger_batch(tmp_path, synthetic_archive, monkeypatch, stop):
    """Epochs then have fewer steps, so an earlier row may have a higher number than epoch times steps."""
    options = ["--print_freq", "1", "--tensorboard"]
    monkeypatch.setattr(train.Monitor, "image", lambda *_: None)  # none is drawn
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        run(tmp_path, synthetic_archive, *options, batch_size=2)
    before = read_steps(tmp_path / "steps.csv")
    assert [row["step"] for row in before] == list(range(1, stop + 1))
    run(tmp_path, synthetic_archive, *options, batch_size=4)
    rows = read_steps(tmp_path / "steps.csv")
    assert rows[:stop] == before
    epochs = [row["epoch"] for row in rows]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and epochs == sorted(epochs)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert shown == [(row["step"], pytest.approx(row["train_loss"])) for row in rows]


def test_a_stop_with_larger_batches_loses_nothing(tmp_path, synthetic_archive, monkeypatch):
    """Step 4 of 4 samples comes after step 6 of 2 samples."""
    trained = []
    for batch_size, stop in ((2, 6), (4, 1), (4, None)):
        with monkeypatch.context() as patch:
            steps = stop_at(patch, stop)
            run(tmp_path, synthetic_archive, batch_size=batch_size, num_epochs=1)
        trained += sum(steps, [])
    assert sorted(trained) == list(range(16))


def test_another_accumulation_is_named_as_the_reason_for_training_samples_again(
    tmp_path, synthetic_archive, monkeypatch, caplog
):
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        run(tmp_path, synthetic_archive)
    run(tmp_path, synthetic_archive, opt__grad_accum_steps=2)
    assert (
        "4 samples of epoch 1 are trained again: opt.grad_accum_steps is now 2, and step 3 is not at the end of a "
        "window"
    ) in caplog.text


def test_a_stop_waits_for_the_end_of_an_accumulation(tmp_path, synthetic_archive, monkeypatch):
    """The run stops only at the end of an accumulation window."""
    stop_at(monkeypatch, 1)
    run(tmp_path, synthetic_archive, batch_size=2, opt__grad_accum_steps=4)
    assert resume.checkpoints(tmp_path)[0][0] == (0, 4)
    assert np.isfinite([row["train_loss"] for row in read_steps(tmp_path / "steps.csv")]).all()
