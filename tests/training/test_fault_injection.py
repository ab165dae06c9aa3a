"""A small training run is disturbed at a random step in one of five ways and started again; it always ends the same.

Thirty cases; those of the default suite are in test_killed.py and test_train.py.
"""

import os
import resource
import signal

import numpy as np
import pytest
import torch

from audio_mamba.training import checkpoint, resume
from tests.training.runs import children, finish, follow, kill, losses, rank_of, start_checkpointing

CASES = 30
STEPS = 48
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="compares CPU processes bit for bit")


def sigkill(run, workdir):
    kill(run)
    finish(run)


def sigterm(run, workdir):
    run.send_signal(signal.SIGTERM)
    output = finish(run, timeout=90)
    assert run.returncode == 0, output
    assert "SIGTERM: saving a checkpoint and stopping" in output and "saved at step" in output


def full_disk(run, workdir):
    """No file may grow, as with an exhausted quota."""
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    output = finish(run)
    assert run.returncode == 1, output
    (message,) = [line for line in output.splitlines() if line.startswith("train.py: ")]
    assert str(workdir) in message and "run the same command to resume from the newest checkpoint" in message


def truncated_newest(run, workdir):
    sigkill(run, workdir)
    _, newest = resume.checkpoints(workdir)[0]
    os.truncate(newest, newest.stat().st_size * 2 // 3)


def dead_rank(run, workdir):
    (victim,) = [pid for pid in children(run) if rank_of(pid) == 1]
    os.kill(victim, signal.SIGKILL)
    output = finish(run, timeout=90)
    assert run.returncode != 0, output
    assert "rank(s) 1 of 2 died or do not answer; rank 0 stops as well" in output


FAULTS = [(sigterm, 1), (truncated_newest, 1), (full_disk, 1), (dead_rank, 2), (sigkill, 2), (sigkill, 1)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.slow
def test_a_disturbed_run_ends_like_an_undisturbed_one(case, tmp_path, references, larger_archive):
    hurt, processes = FAULTS[case % len(FAULTS)]
    # Neither so early that there are fewer than two checkpoints, nor so late that the run ends by itself.
    at_step = int(np.random.default_rng(case).integers(4, STEPS - 12))
    run = start_checkpointing(processes, tmp_path, larger_archive)
    follow(run, at_step)
    hurt(run, tmp_path)

    found = resume.checkpoints(tmp_path)
    intact = found[1:] if hurt is truncated_newest else found
    assert intact
    for _, path in intact:
        checkpoint.load_checkpoint(path)

    run = start_checkpointing(processes, tmp_path, larger_archive)
    output = finish(run)
    assert run.returncode == 0, output
    if hurt is truncated_newest:
        assert f"cannot read checkpoint {found[0][1]}" in output
        found = found[1:]
    assert f"resuming from {found[0][1]}" in output  # nothing was lost
    expected_losses, expected = references(processes)
    assert losses(tmp_path) == expected_losses
    ended = checkpoint.load_checkpoint(tmp_path / "checkpoints" / "checkpoint-7.pth")
    for key, value in expected["model"].items():
        assert torch.equal(ended["model"][key], value), key
    for index, moments in expected["optimizer"]["state"].items():
        assert all(torch.equal(ended["optimizer"]["state"][index][name], value) for name, value in moments.items())
