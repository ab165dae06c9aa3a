"""train.py as its users run it, on archives of data.prepare, with an encoder of one narrow block."""

import json
import logging
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from audio_mamba import train
from audio_mamba.cli import train_config, train_data, train_setup
from audio_mamba.data.archives import write_shard
from audio_mamba.data.samples import Sample
from audio_mamba.hear_api.trained_config import config_of
from audio_mamba.system import folder_lock
from audio_mamba.training import checkpoint
from audio_mamba.training.records import read_log, read_steps
from audio_mamba.training.report import differing_keys
from tests.training.runs import EPOCHS, arguments, finish, kill, losses, run_undisturbed, start

needs_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="compares CPU processes bit for bit")


def last_state(workdir):
    return checkpoint.load_checkpoint(checkpoint.latest_checkpoint(workdir / "checkpoints")[0])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, real_archive):
    """The output and folder of a run in two processes with 4 samples each."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    return run_undisturbed(workdir, real_archive), workdir


@needs_cpu
class TestSeveralProcesses:
    def test_a_run_writes_the_promised_files(self, undisturbed):
        output, workdir = undisturbed
        assert len(re.findall(r"^\d\d:\d\d:\d\d epoch 3/8  step [246]/6  loss ", output, re.M)) == 3
        assert {path.name for path in workdir.iterdir()} == {
            "checkpoints",
            "config.json",
            "curves.png",
            "log.txt",
            "reconstructions.png",
            "steps.csv",
        }
        assert {path.name for path in (workdir / "checkpoints").iterdir()} == {
            f"checkpoint-{epoch}.pth" for epoch in (0, 2, 3, 4, 5, 6, 7)
        }
        assert losses(workdir)[-1] < losses(workdir)[0]
        assert json.loads((workdir / "config.json").read_text())["model"]["model_args"]["embed_dim"] == 48
        torch.load(workdir / "checkpoints" / "checkpoint-7.pth", weights_only=True)  # needs no allow-list

    def test_the_processes_draw_numbers_of_their_own(self, undisturbed):
        """A dropout that is the same in all would leave out the same of the whole batch."""
        first, second = (process["random"]["torch"] for process in last_state(undisturbed[1])["processes"])
        assert not torch.equal(first, second)

    @pytest.mark.slow
    def test_killed_and_restarted_it_ends_the_same(self, undisturbed, tmp_path, real_archive):
        train_arguments = arguments(tmp_path, real_archive, num_epochs=EPOCHS, batch_size=4)
        process = start(2, train_arguments)
        deadline = time.monotonic() + 120
        while len(losses(tmp_path)) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        kill(process)
        finish(process)
        assert 2 <= len(losses(tmp_path)) < EPOCHS, "the kill came too late to mean anything"

        process = start(2, train_arguments)
        output = finish(process)
        assert process.returncode == 0, output
        assert "resuming from" in output
        _, reference = undisturbed
        assert losses(tmp_path) == losses(reference)
        ended, expected = last_state(tmp_path), last_state(reference)
        for key, value in expected["model"].items():
            assert torch.equal(ended["model"][key], value), key
        for index, moments in expected["optimizer"]["state"].items():
            assert torch.equal(ended["optimizer"]["state"][index]["exp_avg"], moments["exp_avg"])

    def test_one_process_with_twice_the_batch_does_the_same(self, undisturbed, tmp_path, real_archive):
        process = start(1, arguments(tmp_path, real_archive, num_epochs=EPOCHS, batch_size=8))
        output = finish(process)
        assert process.returncode == 0, output
        _, reference = undisturbed
        ours, theirs = (
            [row["train_loss"] for row in read_steps(workdir / "steps.csv")] for workdir in (tmp_path, reference)
        )
        assert len(ours) == 24  # 48 steps, in lines of two
        assert ours == pytest.approx(theirs, abs=1e-5)

    def test_a_mistake_ends_every_process_at_once(self, tmp_path):
        process = start(2, arguments(tmp_path, tmp_path / "absent"))
        output = finish(process)
        assert process.returncode != 0
        assert output.count(f"train.py: {tmp_path / 'absent'} is not a folder") == 2
        assert 'train.py", line' not in output  # no traceback except torchrun's own


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    """Drawing would take most of the time of runs in this process; other runs and test_figures do draw."""
    monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)


def run(workdir, data, *options, **overrides):
    """Two short epochs in this process."""
    train.main(arguments(workdir, data, *options, **({"num_epochs": 2, "batch_size": 4} | overrides)))
    return losses(workdir)


def test_accumulated_steps_equal_one_of_a_larger_batch(tmp_path, synthetic_archive):
    """Both use all samples, so windows and batches contain the same ones."""
    whole = run(tmp_path / "whole", synthetic_archive, batch_size=4)
    parts = run(tmp_path / "parts", synthetic_archive, batch_size=2, opt__grad_accum_steps=2)
    assert parts == pytest.approx(whole, abs=1e-5)
    # Adam hides the scale of a gradient in the weights, but not in its moments.
    moments, expected = (last_state(tmp_path / name)["optimizer"]["state"] for name in ("parts", "whole"))
    for index in expected:
        torch.testing.assert_close(moments[index]["exp_avg"], expected[index]["exp_avg"], rtol=1e-3, atol=1e-6)


def test_every_epoch_sees_all_samples_in_a_new_order(tmp_path, synthetic_archive, monkeypatch):
    seen = []
    to_model_input = train.to_model_input
    monkeypatch.setattr(train, "save_reconstructions", lambda *_: None)
    monkeypatch.setattr(
        train, "to_model_input", lambda run, batch: seen.extend(batch["index"].tolist()) or to_model_input(run, batch)
    )
    run(tmp_path, synthetic_archive)
    first, second = seen[:16], seen[16:]
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second


def test_the_rate_follows_the_schedule_up_to_min_lr(tmp_path, synthetic_archive):
    run(tmp_path, synthetic_archive, "--min_lr", "1e-6", num_epochs=3)
    steps = 4  # 16 samples
    peak = 1.5e-4 * 4 / 256
    expected = [
        train.optim.learning_rate_at(epoch + (steps - 1) / steps, peak=peak, num_epochs=3, warmup_epochs=1, min_lr=1e-6)
        for epoch in range(3)
    ]
    assert [line["train_lr"] for line in read_log(tmp_path / "log.txt")] == pytest.approx(expected)
    assert {group["lr"] for group in last_state(tmp_path)["optimizer"]["param_groups"]} == {expected[-1]}


@pytest.mark.parametrize("config", ["configs.ssam_tiny_200_16x4", "configs.ssast_tiny_200_16x4"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_lower_precisions_stay_close_to_float32(tmp_path, synthetic_archive, config, precision):
    exact = run(tmp_path / "exact", synthetic_archive, config=config)
    rough = run(tmp_path / precision, synthetic_archive, "--precision", precision, config=config)
    assert rough == pytest.approx(exact, rel=5e-3)
    assert rough != exact
    state = last_state(tmp_path / precision)
    assert all(value.dtype == torch.float32 for value in state["model"].values())
    assert bool(state["scaler"]) == (precision == "float16")


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_for_convolutions_what_it_is_for_matrices(monkeypatch, tf32):
    """On a GPU, PyTorch by default takes it for the former alone."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not tf32)
    monkeypatch.setattr(train_setup.distributed, "init", lambda device: torch.device("cuda"))
    matrices = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", matrices.append)
    args = SimpleNamespace(print_freq=1, precision="float32", device="cuda", tf32=tf32)
    train_setup.join_processes(args, SimpleNamespace())
    assert torch.backends.cudnn.allow_tf32 == tf32 and matrices == ["high"] * tf32


def test_clipping_bounds_the_update(tmp_path, synthetic_archive):
    """Adam's first moments are averages of gradients, which clipping bounds."""

    def moment(workdir, **overrides):
        run(workdir, synthetic_archive, **overrides)
        moments = [entry["exp_avg"] for entry in last_state(workdir)["optimizer"]["state"].values()]
        return torch.stack([value.norm() for value in moments]).norm()

    assert moment(tmp_path / "clipped", opt__clip_grad_value=1e-3) < 1e-3 < moment(tmp_path / "free")


@pytest.mark.parametrize("option", ["norm_pix_loss", "masked_only_loss"])
def test_the_loss_options_of_the_config_are_applied(tmp_path, synthetic_archive, option):
    plain = run(tmp_path / "plain", synthetic_archive, num_epochs=1)
    assert run(tmp_path / "other", synthetic_archive, num_epochs=1, **{f"opt__{option}": True}) != plain


def test_the_seed_determines_the_run(tmp_path, synthetic_archive):
    first = run(tmp_path / "a", synthetic_archive, "--seed", "3", num_epochs=1)
    assert run(tmp_path / "b", synthetic_archive, "--seed", "3", "--num_workers", "2", num_epochs=1) == first
    assert run(tmp_path / "c", synthetic_archive, "--seed", "4", num_epochs=1) != first


def test_resume_uses_the_named_checkpoint(tmp_path, synthetic_archive):
    reference = run(tmp_path / "a", synthetic_archive, num_epochs=4)
    resumed = run(
        tmp_path / "b",
        synthetic_archive,
        "--resume",
        str(tmp_path / "a" / "checkpoints" / "checkpoint-1.pth"),
        num_epochs=4,
    )
    assert resumed == reference[2:]


def test_a_staged_run_may_end_early_from_a_copy(tmp_path, synthetic_archive):
    staged = {"opt__schedule": "warmupstabledecay", "opt__decay_epochs": 1.0, "opt__learning_rate": 0.02}
    planned = run(tmp_path / "planned", synthetic_archive, **staged, num_epochs=3)
    going_on = run(tmp_path / "long", synthetic_archive, **staged, num_epochs=5)
    before_the_fall = str(tmp_path / "long" / "checkpoints" / "checkpoint-1.pth")
    ended = run(tmp_path / "ended", synthetic_archive, "--resume", before_the_fall, **staged, num_epochs=3)
    assert [*going_on[:2], *ended] == planned
    assert going_on[2] != planned[2], "its rate has not fallen yet"


@pytest.mark.parametrize("form", ["work folder", "weights alone", "saved model"])
def test_init_starts_from_other_weights_and_then_resumes_from_its_own(tmp_path, synthetic_archive, form):
    run(tmp_path / "a", synthetic_archive, num_epochs=1)
    weights, source = last_state(tmp_path / "a")["model"], tmp_path / "a"
    if form == "weights alone":
        torch.save({"model": weights}, source := tmp_path / "weights.pth")
    elif form == "saved model":
        safetensors.torch.save_file(weights, source := tmp_path / "model.safetensors")
    still = {"opt__learning_rate": 0.0, "num_epochs": 2}
    assert len(run(tmp_path / "b", synthetic_archive, "--init", str(source), **still)) == 2  # both epochs
    begun = last_state(tmp_path / "b")["model"]
    assert begun.keys() == weights.keys() and all(torch.equal(begun[key], weights[key]) for key in weights)
    learned = run(tmp_path / "c", synthetic_archive, "--init", str(source), num_epochs=1)
    assert run(tmp_path / "c", synthetic_archive, "--init", str(source), num_epochs=2)[:1] == learned


def test_a_picture_is_written_after_every_epoch(tmp_path, synthetic_archive, monkeypatch):
    titles = []
    monkeypatch.setattr(
        "audio_mamba.training.figures.save_reconstructions", lambda path, clips, title: titles.append(title)
    )
    run(tmp_path, synthetic_archive, num_epochs=8)
    assert [title.split(" after ")[1] for title in titles] == [f"{epoch} epoch(s)" for epoch in range(1, 9)]


def test_the_time_axis_of_a_picture_has_the_seconds_of_the_front_end(tmp_path, monkeypatch):
    """200 frames with a hop of 320 samples at 16 kHz last 4 s."""
    drawn = []
    monkeypatch.setattr(train_data, "FAKE_SAMPLES", 4)
    monkeypatch.setattr(train.figures, "_save", lambda figure, path: drawn.append((path.name, figure)))
    run(tmp_path, None, num_epochs=1, batch_size=2, front_end__hop_length=320)
    (figure,) = [figure for name, figure in drawn if name == "reconstructions.png"]
    (panel,) = [axes for axes in figure.axes if axes.get_title("left") == "reconstructed"]
    assert panel.get_xlim() == (0, 4.0)
    assert any(axes.get_xlabel() == "time (s)" for axes in figure.axes)


def test_repeated_data_and_set_options_add_up(tmp_path, synthetic_archive):
    run(tmp_path, synthetic_archive, "--data", str(synthetic_archive), "--set", "opt.weight_decay=0.5", num_epochs=1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["data"]["train_dirs"] == 2 * [str(synthetic_archive)] and config["num_epochs"] == 1
    assert config["opt"]["weight_decay"] == 0.5


def test_config_json_has_the_options_that_change_the_weights(tmp_path, synthetic_archive):
    """So that the report tells apart runs of one config; the folder and its weights stay readable."""
    for name, options in (("a", []), ("b", ["--seed", "1", "--init", str(tmp_path / "a")])):
        run(tmp_path / name, synthetic_archive, *options, num_epochs=1)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in "ab"]
    assert configs[0]["options"] == {"seed": 0, "init": None, "min_lr": 0.0, "bias_decay": False, "processes": 1}
    assert differing_keys(configs) == {
        "options.seed": ["0", "1"],
        "options.init": ["null", json.dumps(str(tmp_path / "a"))],
    }
    assert config_of(tmp_path / "a" / "checkpoints" / "checkpoint-0.pth")[1] == configs[0]["name"].split(".")[1]
    run(tmp_path / "a", synthetic_archive, num_epochs=2)  # resumed


def test_setting_a_key_that_nothing_reads_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        train_config.load_config("ssam_tiny_200_16x4", ["num_train_steps=1", "opt.momentum=0.5", "num_epochs=1"])
    assert [record.getMessage() for record in caplog.records] == [
        "--set num_train_steps=1: nothing reads this key; use num_epochs",
        "--set opt.momentum=0.5: nothing reads this key",
    ]


def test_the_same_command_with_resume_continues_in_the_workdir(tmp_path, synthetic_archive):
    """As after a preemption: a checkpoint from another folder is only a starting point, even a later one."""
    run(tmp_path / "a", synthetic_archive, num_epochs=3)
    named = tmp_path / "a" / "checkpoints" / "checkpoint-0.pth"
    begun = run(tmp_path / "b", synthetic_archive, "--resume", str(named), num_epochs=2)
    assert run(tmp_path / "b", synthetic_archive, "--resume", str(named), num_epochs=3)[:1] == begun


def test_going_back_past_newer_checkpoints_is_refused_until_they_are_gone(tmp_path, synthetic_archive):
    """Otherwise a later start without --resume would use a checkpoint of the abandoned run."""
    reference = run(tmp_path, synthetic_archive, num_epochs=3)
    earlier, newest = (tmp_path / "checkpoints" / f"checkpoint-{epoch}.pth" for epoch in (1, 2))
    with pytest.raises(SystemExit, match=f"{newest} is newer; move newer checkpoints away"):
        run(tmp_path, synthetic_archive, "--resume", str(earlier), num_epochs=3)
    newest.rename(tmp_path / "set_aside.pth")
    assert run(tmp_path, synthetic_archive, "--resume", str(earlier), num_epochs=3) == reference


@pytest.mark.parametrize(
    "kept, missing", [(["model"], "no optimizer and no epoch"), (["model", "optimizer"], "no epoch")]
)
def test_weights_alone_are_refused(tmp_path, synthetic_archive, kept, missing):
    run(tmp_path / "a", synthetic_archive, num_epochs=1)
    state = last_state(tmp_path / "a")
    torch.save({key: state[key] for key in kept}, tmp_path / "stripped.pth")
    with pytest.raises(SystemExit, match=f"stripped.pth has weights, but {missing}: it cannot be resumed"):
        run(tmp_path / "b", synthetic_archive, "--resume", str(tmp_path / "stripped.pth"))


def test_a_warm_up_of_the_whole_run_is_reported(tmp_path, synthetic_archive, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path, synthetic_archive, num_epochs=1, opt__warmup_epochs=10)
    assert "never reaches its peak: opt.warmup_epochs is 10, num_epochs is 1" in caplog.text


def test_a_finished_run_started_again_changes_nothing(tmp_path, synthetic_archive):
    reference = run(tmp_path, synthetic_archive)
    written = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.name != "config.json"}
    assert run(tmp_path, synthetic_archive) == reference
    assert {path: path.read_bytes() for path in written} == written


def test_the_work_folder_names_the_data_of_the_run(tmp_path, synthetic_archive, caplog, monkeypatch):
    monkeypatch.setattr(train_data, "FAKE_SAMPLES", 16)

    def noted():
        return json.loads((tmp_path / "config.json").read_text())["data"]

    run(tmp_path, synthetic_archive, "--val-data", str(synthetic_archive), num_epochs=1)
    assert noted()["train_dirs"] == [str(synthetic_archive)] and noted()["val_dir"] == str(synthetic_archive)
    with caplog.at_level(logging.INFO):
        run(tmp_path, None, num_epochs=2)
    assert f"until now {tmp_path} was trained on other data: {synthetic_archive}" in caplog.text
    assert noted()["train_dirs"] == [] and noted()["val_dir"] == ""
    run(tmp_path, None, num_epochs=1)
    assert json.loads((tmp_path / "config.json").read_text())["num_epochs"] == 2, "nothing was trained"


def test_a_second_run_in_the_same_workdir_is_refused(tmp_path, synthetic_archive, monkeypatch):
    run(tmp_path, synthetic_archive, num_epochs=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.1)
    with folder_lock.lock_folder(tmp_path), pytest.raises(SystemExit, match=f"{tmp_path}: another process is using"):
        run(tmp_path, synthetic_archive, num_epochs=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    run(tmp_path, synthetic_archive, num_epochs=2)


def test_frequency_first_models_train_on_the_same_archives(tmp_path, synthetic_archive):
    changes = {
        "model__model_args__frequency_first": True,
        "model__model_args__img_size": (80, 200),
        "model__model_args__patch_size": (16, 4),
    }
    (loss,) = run(tmp_path, synthetic_archive, num_epochs=1, **changes)
    assert 0.5 < loss < 2


def test_a_damaged_config_and_a_file_as_workdir_are_reported(tmp_path, synthetic_archive):
    run(tmp_path / "run", synthetic_archive, num_epochs=1)
    (tmp_path / "run" / "config.json").write_text("{\n")
    with pytest.raises(SystemExit, match=r"^train.py: .*run/config.json is damaged \(Expecting"):
        run(tmp_path / "run", synthetic_archive, num_epochs=2)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"^train.py: --workdir {tmp_path / 'file'} is a file; expected a folder$"):
        run(tmp_path / "file", synthetic_archive, num_epochs=1)


def test_fake_data_needs_no_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(train_data, "FAKE_SAMPLES", 64)
    (loss,) = run(tmp_path, None, "--bias_decay", num_epochs=1, batch_size=16)
    assert 0.9 < loss < 1.5  # white noise of variance 1 cannot be predicted
    (group,) = last_state(tmp_path)["optimizer"]["param_groups"]
    assert group["betas"] == (0.9, 0.999)


@pytest.mark.parametrize(
    "options, overrides, message",
    [
        ([], {"config": "configs.nope"}, "configs.nope"),
        ([], {"num_epoch": 2}, "'num_epoch'; did you mean 'num_epochs'"),
        ([], {"batch_size": "many"}, "--set batch_size=many: expected a value like 256"),
        ([], {"data__fraction": True}, "--set data.fraction=True: expected a value like 1.0"),
        ([], {"opt": 1}, "--set opt=1: set its entries, as opt.NAME=VALUE"),
        ([], {"opt": "{'weight_decay':0.1}"}, "--set opt={'weight_decay':0.1}: set its entries, as opt.NAME=VALUE"),
        ([], {"model__model_args": {}}, "--set model.model_args={}: set its entries, as model.model_args.NAME=VALUE"),
        ([], {"wandb": None}, "--set wandb=None: set its entries, as wandb.NAME=VALUE"),
        ([], {"opt__norm_pix_loss": None}, "--set: opt.norm_pix_loss must be True or False, got None"),
        ([], {"model__model_args__masked_positions": "false"}, "masked_positions must be True or False, got 'false'"),
        (
            [],
            {"opt__grad_accum_steps": 9},
            "opt.grad_accum_steps is 9, but an epoch has only 4 batches: the optimizer would",
        ),
        ([], {"model__model_args__num_heads": "few"}, "num_heads must be a whole number of at least 1, got 'few'"),
        ([], {"batch_size": 1000}, "16 samples do not fill one batch"),
        ([], {"precision": "half"}, "unknown precision 'half'; choose from float32, float16, bfloat16"),
        ([], {"opt__optimizer": "lion"}, "unknown opt.optimizer 'lion'"),
        ([], {"opt__schedule": "warmupstabledecay", "opt__decay_epochs": 4}, "do not fit into num_epochs "),
        ([], {"model__arch": "ssast_giant"}, "unknown model.arch 'ssast_giant'; did you mean 'ssast_tiny'?"),
        ([], {"data__num_frames": 100}, "data.num_frames is 100, but the model reads 200 frames"),
        ([], {"model__model_args__img_size": (200, 64)}, "front_end.n_mels is 80, but the model reads 64 mel bands"),
        (
            [],
            {"model__model_args__img_size": (200, 64), "front_end__n_mels": 64},
            "has another front end: n_mels is 80 there and 64 here",
        ),
        (["--resume", "absent.pth"], {}, "no checkpoint file at absent.pth"),
        (["--resume", "a.pth", "--init", "b.pth"], {}, "--init and --resume cannot be combined: "),
        (["--min-lr", "1"], {}, "--min-lr 1 is above the peak of the learning rate, "),
        (["--init", "absent"], {}, "no checkpoint-<epoch>.pth or model.safetensors in absent"),
        (["--data", "http://host/a.tar"], {}, "--data mixes folders with URLs such as http://host/a.tar"),
        (["--val-data", "absent"], {}, "--val-data: absent is not a folder"),
        (["--fake_data"], {}, "--data and --fake-data cannot be combined"),
        pytest.param(["--device", "cuda"], {}, "--device cuda: PyTorch ", marks=needs_cpu),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, synthetic_archive, options, overrides, message):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, synthetic_archive, *options, **overrides)
    assert ended.value.code.startswith("train.py: ") and "\n" not in ended.value.code
    assert message in ended.value.code


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_bad_sample_is_reported_when_training_reaches_it(tmp_path, workers):
    (tmp_path / "archive").mkdir()
    samples = [
        Sample(
            f"clip{number}",
            np.random.default_rng(number).normal(size=(200, 80)).astype(np.float32),
            np.zeros(0, np.int64),
        )
        for number in range(16)
    ]
    samples[5].spectrogram[7, 7] = np.nan  # not one of the clips for the pictures
    write_shard(tmp_path / "archive" / "shard.tar", samples)
    for options, begin in (
        (["--strict-data"], f"train.py: {tmp_path}/archive/shard.tar, sample clip5: "),
        ([], "train.py: 1 of 16 samples cannot be used, more than 1%"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(tmp_path / "w", tmp_path / "archive", "--num_workers", workers, *options)
        assert ended.value.code.startswith(begin) and "\n" not in ended.value.code
        assert "shard.tar, sample clip5: " in ended.value.code


def test_shards_are_read_through_pipes_as_well(tmp_path, synthetic_archive):
    shard = synthetic_archive / "shard-000000.tar"
    assert len(run(tmp_path, f"pipe:cat {shard}", num_epochs=1, data__train_samples="[12]")) == 1


def test_urls_need_the_number_of_their_clips(tmp_path, synthetic_archive):
    """That of the config is of the config's own data."""
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "run", f"pipe:cat {synthetic_archive / 'shard-000000.tar'}", num_epochs=1)
    assert '.tar: the number of clips at a URL is unknown; add --set "data.train_samples=[N]" ' in ended.value.code
    run(tmp_path / "run", synthetic_archive, num_epochs=1)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["train_samples"] == []


def test_an_unknown_precision_is_refused_with_the_choices(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, None, "--precision", "half")
    assert ended.value.code != 0 and "float16" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--min_lr", "nan", "must be a finite number of at least 0.0, got nan"),
        ("--min_lr", "inf", "must be a finite number"),
        ("--checkpoint-minutes", "-1", "must be a finite number of at least 0.0, got -1"),
        ("--seed", "-1", "must be a finite number of at least 0"),
        ("--num_workers", "-1", "must be a finite number"),
        ("--print_freq", "0", "must be a finite number of at least 1, got 0"),
        ("--seed", "one", "invalid int value: 'one'"),
    ],
)
def test_options_out_of_range_are_refused_by_name(tmp_path, capsys, option, value, message):
    with pytest.raises(SystemExit) as ended:
        run(tmp_path / "w", tmp_path, option, value)
    assert ended.value.code == 2 and f"argument {option.replace('_', '-')}: {message}" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_nan_weights_are_not_saved(tmp_path, synthetic_archive, monkeypatch):
    run(tmp_path, synthetic_archive, num_epochs=1)
    end_epoch = train.Monitor.end_epoch

    def ruin(monitor, val_loss):
        model.mask_token.data[0, 0, 0] = float("nan")
        end_epoch(monitor, val_loss)

    set_up = train.set_up

    def remember(*arguments):
        nonlocal model
        made = set_up(*arguments)
        model = made.model
        return made

    model = None
    monkeypatch.setattr(train, "set_up", remember)
    monkeypatch.setattr(train.Monitor, "end_epoch", ruin)
    with pytest.raises(SystemExit, match="the weights became NaN or Inf, first in mask_token; they are not"):
        run(tmp_path, synthetic_archive, num_epochs=3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-0.pth"]


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, synthetic_archive):
    run(tmp_path / "a", synthetic_archive, num_epochs=1)
    other = tmp_path / "a" / "checkpoints" / "checkpoint-0.pth"
    with pytest.raises(SystemExit, match="belongs to another config: model.model_args.depth is 1 there and 2 here; "):
        run(tmp_path / "b", synthetic_archive, "--resume", str(other), model__model_args__depth=2)
    state = last_state(tmp_path / "a")
    torch.save({key: state[key] for key in ("model", "optimizer", "epoch")}, other)  # no config, as in a published one
    with pytest.raises(SystemExit, match="holds another architecture: no blocks.1.norm1.weight"):
        run(tmp_path / "b", synthetic_archive, "--resume", str(other), model__model_args__depth=2)


def test_init_of_arguments_that_shapes_do_not_show_warns(tmp_path, synthetic_archive, caplog):
    run(tmp_path / "a", synthetic_archive, num_epochs=1)
    started = {"num_epochs": 1, "model__model_args__mask_ratio": 0.8}  # the weights are the same for any mask
    run(tmp_path / "b", synthetic_archive, "--init", str(tmp_path / "a"), **started)
    assert "training begins" not in caplog.text
    run(tmp_path / "c", synthetic_archive, "--init", str(tmp_path / "a"), num_epochs=1, model__model_args__num_heads=2)
    assert "this run differ in model.model_args.num_heads: 3 there, 2 here; training begins with" in caplog.text


@pytest.mark.parametrize("frames", [100, 400])
def test_init_continues_the_positions_of_crops_of_another_length(tmp_path, synthetic_archive, frames):
    run(tmp_path / "a", synthetic_archive, num_epochs=1)
    longer = {"model__model_args__img_size": (frames, 80), "data__num_frames": frames, "opt__learning_rate": 0.0}
    run(tmp_path / "b", synthetic_archive, "--init", str(tmp_path / "a"), num_epochs=1, **longer)
    before, after = (last_state(tmp_path / name)["model"] for name in "ab")
    assert all(torch.equal(after[key], before[key]) for key in before if key != "pos_embed")
    shared = min(200, frames) // 4 * 5 + 1  # patches of 4 frames x 16 of 80 bands, and the class token
    assert after["pos_embed"].shape[1] == frames // 4 * 5 + 1
    torch.testing.assert_close(after["pos_embed"][:, :shared], before["pos_embed"][:, :shared], rtol=0, atol=1e-6)


def test_a_default_may_be_named_when_a_run_is_resumed(tmp_path, synthetic_archive):
    run(tmp_path, synthetic_archive, num_epochs=1)
    named = {"opt__objective_args__decoder_layers": 0, "model__model_args__masked_positions": False}
    assert len(run(tmp_path, synthetic_archive, num_epochs=2, **named)) == 2
    assert len(run(tmp_path, synthetic_archive, num_epochs=3)) == 3
    with pytest.raises(SystemExit, match="opt.objective_args.decoder_layers is 0 there and 1 here; choose"):
        run(tmp_path, synthetic_archive, num_epochs=4, opt__objective_args__decoder_layers=1)


def test_a_workdir_of_another_config_is_refused_with_the_differing_keys(tmp_path, synthetic_archive):
    run(tmp_path, synthetic_archive, num_epochs=1)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, synthetic_archive, opt__weight_decay=0.1, model__model_args__depth=2)
    assert str(ended.value.code) == (
        f"train.py: {tmp_path} belongs to another config: model.model_args.depth is 1 there and 2 here; "
        "opt.weight_decay is 0.05 there and 0.1 here; choose another --workdir"
    )
    assert len(run(tmp_path, synthetic_archive, num_epochs=3, batch_size=2)) == 3  # these may change


@pytest.mark.slow
@pytest.mark.parametrize("config", ["configs.ssam_tiny_200_16x4", "configs.ssast_tiny_200_16x4"])
def test_compiled_and_checkpointed_models_learn_the_same(tmp_path, synthetic_archive, config):
    plain = run(tmp_path / "plain", synthetic_archive, config=config)
    assert run(tmp_path / "compiled", synthetic_archive, "--compile", config=config) == pytest.approx(plain, rel=1e-5)
    assert run(tmp_path / "less", synthetic_archive, "--gradient-checkpointing", config=config) == plain
