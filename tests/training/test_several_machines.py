"""Restarts by torchrun, two simulated machines, and signals to one of several processes."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import ROOT
from tests.training.runs import EPOCHS, arguments, children, finish, follow, losses, rank_of, start, start_checkpointing

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="compares CPU processes bit for bit")

AGREEMENT = """
import time
from audio_mamba.training import distributed
distributed.init()
agreement = distributed.Agreement(2)
rank = distributed.rank()
answers = []
for step in range(5):
    time.sleep(0.05 * rank)                              # one process is always late
    answers.append(agreement.vote(rank == 1 and step == 2, rank == 0 and step == 3))
assert answers == [[False, False], [False, False], [False, False], [True, False], [False, True]], answers
assert distributed.gather({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
open(f"done.{rank}", "w").close()
distributed.cleanup()
"""


@pytest.mark.slow
def test_all_processes_learn_of_a_vote_at_the_same_step(tmp_path):
    (tmp_path / "script.py").write_text(AGREEMENT)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in tmp_path.glob("done.*")) == ["done.0", "done.1"]


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_process(tmp_path, larger_archive, references):
    run = start_checkpointing(2, tmp_path, larger_archive, ["--standalone", "--nnodes=1", "--max-restarts=1"])
    follow(run, 14)
    (victim,) = [pid for pid in children(run) if rank_of(pid) == 1]
    os.kill(victim, signal.SIGKILL)
    output = finish(run)
    assert run.returncode == 0, output
    assert "rank(s) 1 of 2 died or do not answer; rank 0 stops as well" in output
    assert "resuming from" in output
    assert losses(tmp_path) == references(2)[0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_machines_train_as_one_with_two_processes(tmp_path, larger_archive, references):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        start(
            1,
            arguments(tmp_path, larger_archive, num_epochs=EPOCHS, batch_size=4),
            ["--nnodes=2", f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"],
        )
        for node in (0, 1)
    ]
    outputs = [finish(node) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    # The only process of a machine uses all its cores, and rounding depends on the number of threads.
    assert losses(tmp_path) == pytest.approx(references(2)[0], abs=1e-5)


def test_processes_save_and_stop_when_the_launcher_is_killed(tmp_path, larger_archive):
    run = start(2, arguments(tmp_path, larger_archive, "--print_freq", "1", num_epochs=500, batch_size=4))
    follow(run, 3)
    workers = children(run)
    run.kill()
    finish(run)
    deadline = time.monotonic() + 90
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    assert len(list((tmp_path / "resume").glob("*.pth"))) == 1


def test_a_signal_to_one_process_stops_all_with_status_0(tmp_path, larger_archive):
    run = start(2, arguments(tmp_path, larger_archive, "--print_freq", "1", num_epochs=500, batch_size=4))
    follow(run, 3)
    (one,) = [pid for pid in children(run) if rank_of(pid) == 1]
    os.kill(one, signal.SIGUSR1)
    output = finish(run, timeout=90)
    assert run.returncode == 0, output
    assert "SIGUSR1: saving a checkpoint and stopping" in output and "saved at step" in output
