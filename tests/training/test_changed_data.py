"""Training data that change between a stop and the next start, in this process and in a process of their own."""

import json
import logging
import os
import shutil
import signal

import pytest
import torch

from audio_mamba import train
from audio_mamba.data.contents import Contents, ShardContents
from audio_mamba.training import checkpoint, resume
from audio_mamba.training.records import read_log, read_steps
from tests.training.runs import arguments, finish, follow, losses, start, write_archive


@pytest.fixture(autouse=True)
def nothing_drawn(monkeypatch):
    """Drawing would take most of the time of these runs."""
    monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)


@pytest.fixture
def data(tmp_path):
    return write_archive(tmp_path / "data", [8, 8])


def run(workdir, data, *options, **overrides):
    train.main(
        arguments(workdir, data, "--device", "cpu", *options, **({"num_epochs": 2, "batch_size": 4} | overrides))
    )
    return losses(workdir)


def stop_at(monkeypatch, step):
    """Send SIGTERM in the given training step; return the samples of each step."""
    plain, steps = train.loss_of, []

    def loss_of(run, model, batch):
        steps.append(batch["index"].tolist())
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(run, model, batch)

    monkeypatch.setattr(train, "loss_of", loss_of)
    return steps


@pytest.fixture
def stopped(tmp_path, data, monkeypatch):
    """The work folder of a run that has completed one of the four steps of its second epoch."""
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        run(tmp_path / "run", data)
    assert resume.checkpoints(tmp_path / "run")[0][0] == (1, 1)
    return tmp_path / "run"


def replace(data, tmp_path, counts, seed=0):
    """Put other shards into the folder."""
    shutil.rmtree(data)
    write_archive(data, counts, seed)


FEWER, MORE, OTHER, RENAMED_SHARD = "fewer samples", "more samples", "as many other samples", "another name of a shard"
CHANGES = {
    FEWER: "8 samples in 1 shard(s) instead of 16 samples in 2 shard(s); no shard-1.tar",
    MORE: "24 samples in 3 shard(s) instead of 16 samples in 2 shard(s); shard-2.tar is new",
    OTHER: "shard-0.tar has other content",
    RENAMED_SHARD: "shard-9.tar instead of shard-1.tar",
}


def change(data, tmp_path, kind):
    match kind:
        case "fewer samples":
            replace(data, tmp_path, [8])
        case "more samples":
            replace(data, tmp_path, [8, 8, 8])
        case "as many other samples":
            replace(data, tmp_path, [8, 8], seed=1)
        case _:
            for path in data.glob("shard-1.*"):
                path.rename(data / path.name.replace("shard-1", "shard-9"))


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_data_are_refused_and_with_restart_epoch_trained_from_its_start(
    tmp_path, data, stopped, monkeypatch, caplog, kind
):
    change(data, tmp_path, kind)
    before = {path: path.read_bytes() for path in stopped.rglob("*.*")}
    with pytest.raises(SystemExit) as ended:
        run(stopped, data)
    newest = resume.checkpoints(stopped)[0][1]
    assert ended.value.code == (
        f"train.py: the training data have changed since {newest}: {CHANGES[kind]}; restore them, or add "
        "--data-changed restart-epoch to start epoch 2 again with the data as they are now"
    )
    assert {path: path.read_bytes() for path in stopped.rglob("*.*")} == before

    seen = stop_at(monkeypatch, 0)
    with caplog.at_level(logging.WARNING):
        assert len(run(stopped, data, "--data-changed", "restart-epoch")) == 2
    number = {FEWER: 8, MORE: 24}.get(kind, 16)
    assert sorted(sum(seen, [])) == list(range(number))  # each sample once
    assert "the training data have changed since" in caplog.text and "epoch 2 starts again" in caplog.text
    steps = [(row["epoch"], row["step"]) for row in read_steps(stopped / "steps.csv")]
    assert steps == sorted(set(steps))
    state = checkpoint.load_checkpoint(stopped / "checkpoints" / "checkpoint-1.pth")
    assert state["global_step"] == 5 + number // 4
    assert run(stopped, data, num_epochs=3)[:2] == losses(stopped)[:2]  # the new data are now those of the run


def test_a_folder_may_be_renamed_and_copied(tmp_path, data, stopped, monkeypatch):
    expected = run(tmp_path / "whole", data)
    shutil.copytree(data, tmp_path / "elsewhere" / "copy")  # the files get a new time
    shutil.rmtree(data)
    assert run(stopped, tmp_path / "elsewhere" / "copy") == expected


def test_other_folders_may_be_named_between_epochs_and_changed_ones_are_refused(tmp_path, data, caplog):
    run(tmp_path / "run", data, num_epochs=1)
    other = write_archive(tmp_path / "other", [8], seed=2)
    with caplog.at_level(logging.WARNING):
        assert len(run(tmp_path / "run", other)) == 2
    assert "8 samples in 1 shard(s) instead of 16 samples in 2 shard(s); " in caplog.text
    replace(other, tmp_path, [8], seed=3)
    with pytest.raises(SystemExit, match="shard-0.tar has other content; restore them, or add --data-changed "):
        run(tmp_path / "run", other, num_epochs=3)
    assert len(run(tmp_path / "run", other, num_epochs=2)) == 2, "it is complete"
    assert len(run(tmp_path / "run", other, "--data-changed", "restart-epoch", num_epochs=3)) == 3


def test_another_share_of_the_data_is_refused(tmp_path, data):
    """By config.json and, where that is lost, by the config and the data in the checkpoint."""
    share = {"data__fraction": 0.75, "batch_size": 2}
    before = run(tmp_path / "run", data, **share, num_epochs=1)
    with pytest.raises(SystemExit, match="belongs to another config: data.fraction is 0.75 there and 1.0 here"):
        run(tmp_path / "run", data, batch_size=2)
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(SystemExit, match="checkpoint-0.pth belongs to another config: data.fraction is 0.75 there"):
        run(tmp_path / "run", data, batch_size=2)
    assert run(tmp_path / "run", data, **share)[:1] == before


def test_the_checksum_of_the_manifest_shows_a_change_in_the_middle_of_a_shard():
    def contents(checksum, digest="ends"):
        return Contents(8, [ShardContents("shard-0.tar", 8, digest, checksum)])

    assert contents("b").difference(contents("a")) == "shard-0.tar has other content"
    assert contents("a", "other ends").difference(contents("a")) == "shard-0.tar has other content"
    assert contents("").difference(contents("a")) is None  # the manifest is gone, the shard is the same
    assert Contents.from_state(json.loads(json.dumps(contents("a").state()))) == contents("a")


def forget(workdir, *keys):
    """Remove entries from the newest checkpoint, as it was in earlier versions."""
    path = resume.checkpoints(workdir)[0][1]
    state = checkpoint.load_checkpoint(path)
    torch.save({key: value for key, value in state.items() if key not in keys}, path)


def test_checkpoints_of_earlier_versions_resume(tmp_path, data, stopped):
    expected = run(tmp_path / "whole", data)
    forget(stopped, "data", "global_step")
    assert run(stopped, data) == expected
    assert [row["step"] for row in read_steps(stopped / "steps.csv")] == [2, 4, 6, 8]


def test_an_earlier_checkpoint_beyond_the_end_of_a_shorter_epoch_is_refused(tmp_path, data, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        run(tmp_path / "run", data)
    forget(tmp_path / "run", "data")
    replace(data, tmp_path, [8])
    with pytest.raises(SystemExit, match="an epoch has 2 steps, and 3 of this one are complete"):
        run(tmp_path / "run", data)
    assert len(run(tmp_path / "run", data, "--data-changed", "restart-epoch")) == 2


def test_other_validation_data_are_reported(tmp_path, data, caplog):
    validation = write_archive(tmp_path / "validation", [3])
    options = ["--val-data", str(validation)]
    run(tmp_path / "run", data, *options, num_epochs=1)
    replace(validation, tmp_path, [4])
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "run", data, *options)
    assert "the validation data have changed since" in caplog.text
    assert "4 samples in 1 shard(s) instead of 3 samples" in caplog.text
    assert len(read_log(tmp_path / "run" / "log.txt")) == 2


@pytest.mark.slow
def test_a_process_of_its_own_is_stopped_and_then_refuses_changed_data(tmp_path, data):
    def begin():
        return start(1, arguments(tmp_path / "run", data, "--print_freq", "1", num_epochs=10_000, batch_size=1))

    process = begin()
    follow(process, 3)
    process.send_signal(signal.SIGTERM)
    assert "saved at step" in finish(process) and process.returncode == 0
    replace(data, tmp_path, [4, 2])
    refused = begin()
    assert "train.py: the training data have changed since" in finish(refused) and refused.returncode == 1
