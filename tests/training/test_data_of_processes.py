"""Two real processes and their data: validation sets smaller than the number of processes, and different copies."""

import shutil

import pytest
import torch

from audio_mamba import train
from audio_mamba.data.archives import write_manifest
from audio_mamba.training.records import read_log
from tests.training.runs import arguments, finish, follow, start_ranks, write_archive

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="two processes of the test would need two GPUs")


def run_alone(workdir, data, validation, monkeypatch):
    """One process with the batch of two."""
    monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)
    train.main(arguments(workdir, data, "--val-data", str(validation), "--device", "cpu", num_epochs=2, batch_size=4))
    return [(line["train_loss"], line["val_loss"]) for line in read_log(workdir / "log.txt")]


@pytest.mark.slow
def test_validation_sets_of_any_size_have_the_loss_of_a_single_process(tmp_path, monkeypatch):
    data = write_archive(tmp_path / "data", [8])
    one, three = write_archive(tmp_path / "one", [1], 1), write_archive(tmp_path / "three", [1, 2], 2)
    empty = write_archive(tmp_path / "empty", [])
    (empty / "manifest.json").write_text('{"samples": 0, "settings": {}, "shards": []}')

    def together(workdir, validation, num_epochs):
        options = ("--val-data", str(validation))
        return [arguments(tmp_path / workdir, data, *options, num_epochs=num_epochs, batch_size=2)] * 2

    processes = start_ranks(
        together("one clip", one, 1),
        together("one clip", one, 2),  # resumes
        together("three clips", three, 2),
        together("no clip", empty, 2),
    )
    outputs = [finish(process, timeout=90) for process in processes]
    for number, validation in (("one clip", one), ("three clips", three)):
        log = read_log(tmp_path / number / "log.txt")
        expected = run_alone(tmp_path / f"{number} alone", data, validation, monkeypatch)
        assert len(log) == 2, outputs
        for line, losses in zip(log, expected, strict=True):
            assert (line["train_loss"], line["val_loss"]) == pytest.approx(losses, abs=1e-5)
    assert "resuming from" in outputs[0]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 1 and f"train.py: no shards (*.tar) in {empty}" in output
    assert not (tmp_path / "no clip" / "log.txt").exists()


def test_data_that_are_read_twice_or_judge_themselves_are_named(tmp_path, caplog):
    data, other = (str(write_archive(tmp_path / name, [4])) for name in ("data", "other"))
    options = ("--data", other, "--data", f"{data}/../data", "--device", "cpu", "--val-data", other)
    train.main(arguments(tmp_path / "run", data, *options, num_epochs=1, batch_size=2))
    assert f"{data} is named twice as training data" in caplog.text
    assert f"{other} is training and validation data" in caplog.text


def test_a_copy_of_the_training_data_that_judges_is_named(tmp_path, caplog):
    data = write_archive(tmp_path / "data", [2, 2])
    shards = [{"name": f"shard-{n}.tar", "samples": 2, "sha256": {f"shard-{n}.tar": str(n)}} for n in range(2)]
    write_manifest(data, {"samples": 4, "settings": {}, "shards": shards})
    copy = shutil.copytree(data, tmp_path / "copy")
    options = ("--val-data", str(copy), "--device", "cpu")
    train.main(arguments(tmp_path / "run", data, *options, num_epochs=1, batch_size=2))
    assert f"{copy} is training and validation data" in caplog.text


def test_different_copies_of_the_data_are_refused_by_all(tmp_path):
    first = write_archive(tmp_path / "first", [4, 4])
    other = write_archive(tmp_path / "other", [4, 4], seed=1)
    shutil.copytree(first, same := tmp_path / "same")
    (same / "note.txt").write_text("a file that nobody reads")

    def copies(*folders):
        return [arguments(tmp_path / "run", folder, num_epochs=1, batch_size=2) for folder in folders]

    processes = start_ranks(copies(first, same), copies(first, other))
    outputs = [finish(process, timeout=90) for process in processes]
    assert len(read_log(tmp_path / "run" / "log.txt")) == 1, outputs  # of the first run
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 1
        assert (
            "train.py: the processes see different training data; rank 1 compared with rank 0: shard-0.tar has other "
            "content\n" in output
        )


def test_a_problem_of_one_process_is_known_to_all(tmp_path):
    data = write_archive(tmp_path / "data", [8])
    processes = start_ranks([arguments(tmp_path / "run", folder, batch_size=2) for folder in (data, tmp_path / "none")])
    outputs = [finish(process, timeout=90) for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert f"train.py: rank 1: {tmp_path / 'none'} is not a folder" in outputs[0]
    assert f"train.py: {tmp_path / 'none'} is not a folder" in outputs[1]


@pytest.mark.slow
def test_a_copy_that_changes_during_training_ends_all(tmp_path):
    first = write_archive(tmp_path / "first", [8])
    shutil.copytree(first, second := tmp_path / "second")
    processes = start_ranks(
        [
            arguments(tmp_path / "run", folder, "--print_freq", "1", num_epochs=10_000, batch_size=2)
            for folder in (first, second)
        ]
    )
    follow(processes[0], 3)
    other = write_archive(tmp_path / "other", [8], seed=1)
    for path in other.iterdir():
        path.rename(second / path.name)
    outputs = [finish(process, timeout=90) for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 1
        assert "train.py: the processes see different training data; rank 1 compared with rank 0: " in output
