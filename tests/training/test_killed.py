"""Real processes: a data worker killed for memory, and signals during the exit."""

import os
import signal
import time

import pytest
import torch

from audio_mamba import train
from audio_mamba.training import checkpoint, resume
from tests.training.runs import arguments, children, finish, follow, start, write_archive

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU process starts for too long")


@pytest.fixture
def data(tmp_path):
    return write_archive(tmp_path / "data", [32])


def begin(workdir, data, *options, **overrides):
    options = ["--print_freq", "1", "--checkpoint-minutes", "0.0005", *options]
    return start(1, arguments(workdir, data, *options, **({"num_epochs": 10_000, "batch_size": 4} | overrides)))


def test_a_killed_data_worker_is_reported_in_one_sentence_and_the_run_resumes(tmp_path, data, monkeypatch):
    workdir = tmp_path / "run"
    process = begin(workdir, data, "--num_workers", "2")
    follow(process, 3)
    os.kill(children(process)[0], signal.SIGKILL)  # as the system does when memory is short
    output = finish(process, timeout=60)
    assert process.returncode == 1, output
    (message,) = [line for line in output.splitlines() if line.startswith("train.py: ")]
    assert message.startswith("train.py: a data-loading process was lost (DataLoader worker (pid")
    assert message.endswith(
        "probably for lack of memory; use fewer --num-workers; run the same command to resume from the newest "
        f"checkpoint in {workdir}"
    )
    assert "Traceback" not in output
    (place, path), *_ = resume.checkpoints(workdir)
    checkpoint.load_checkpoint(path)
    monkeypatch.setattr("audio_mamba.training.figures._save", lambda figure, path: None)  # takes most of the time
    train.main(arguments(workdir, data, num_epochs=place.epoch + 1, batch_size=4))
    assert resume.checkpoints(workdir)[0][0] == (place.epoch + 1, 0)


def test_signals_during_the_exit_change_nothing(tmp_path, data):
    """Schedulers repeat SIGTERM while the process still writes its checkpoint and ends its threads."""
    process = begin(tmp_path / "run", data, "--num_workers", "1")
    follow(process, 3)
    sent = 0
    while process.poll() is None:
        process.send_signal((signal.SIGTERM, signal.SIGUSR1)[sent % 2])
        sent += 1
        time.sleep(0.002)
    output = finish(process)
    assert process.returncode == 0, output
    assert sent > 10 and "saved at step" in output
    for _, path in resume.checkpoints(tmp_path / "run"):
        checkpoint.load_checkpoint(path)
    assert not list((tmp_path / "run").rglob("*.partial"))
