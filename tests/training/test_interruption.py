import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import active_children, current_process, resource_sharer
from multiprocessing.connection import Client
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from audio_mamba.training import interruption
from audio_mamba.training.interruption import SIGNALS, Interruption, LostWorkerError, Shielded, begin_worker


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_recorded_and_requests_a_stop(number, caplog):
    before = signal.getsignal(number)
    with Interruption(minutes=0) as watch:
        assert not watch.poll() and not watch.requested
        os.kill(os.getpid(), number)
        assert watch.requested
        assert watch.poll() and watch.stop_now
        assert signal.Signals(number).name in caplog.text
    assert signal.getsignal(number) is before


def test_a_stop_is_always_announced_even_if_the_signal_comes_at_the_end_of_a_step(monkeypatch, caplog):
    with Interruption(minutes=0) as watch:
        monkeypatch.setattr(interruption.distributed, "is_main", lambda: os.kill(os.getpid(), signal.SIGTERM) or True)
        assert watch.poll() is bool(caplog.messages)  # none of both, or both
        assert watch.poll() and caplog.messages == ["SIGTERM: saving a checkpoint and stopping"]


def test_a_stop_outside_of_the_steps_is_announced_once(caplog):
    with Interruption(minutes=0) as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        watch.stop()
        watch.stop()
        assert watch.stop_now and caplog.messages == ["SIGTERM: saving a checkpoint and stopping"]


def test_a_second_ctrl_c_ends_at_once():
    with Interruption(minutes=0):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_the_timer_requests_checkpoints(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    watch, never = Interruption(minutes=2), Interruption(minutes=0)
    now[0] += 119
    watch.poll()
    assert not watch.save_now
    now[0] += 2
    assert not watch.poll() and watch.save_now
    watch.saved()
    watch.poll()
    assert not watch.save_now
    now[0] += 1e9
    never.poll()
    assert not never.save_now


class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor(index)


def threads_open_to_sigterm(pid):
    """Threads of a process that do not block SIGTERM, to any of which the system may deliver it."""
    masks = [
        int(re.search(r"SigBlk:\s*(\w+)", path.read_text())[1], 16)
        for path in Path(f"/proc/{pid}/task").glob("*/status")
    ]
    return sum(not mask >> (signal.SIGTERM - 1) & 1 for mask in masks)


def send_to_a_worker(number):
    """The signal comes from another process, as from a scheduler; the worker must do the rest of its work."""
    loader = DataLoader(Numbers(), batch_size=1, num_workers=1, persistent_workers=True, worker_init_fn=begin_worker)
    batches = iter(Shielded(loader))
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])  # the trainer itself still gets it
    seen = [next(batches).item()]
    (worker,) = active_children()
    assert threads_open_to_sigterm(worker.pid) <= 1, "a thread beside the waiting one may end the worker"
    subprocess.run(["/bin/sh", "-c", f"kill -{number} {worker.pid}"], check=True)
    time.sleep(0.1)
    assert seen + [batch.item() for batch in batches] == list(range(8))
    assert worker.is_alive()
    worker.terminate()  # as the trainer ends it, which it still heeds
    worker.join(20)
    assert worker.exitcode == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_outlive_the_signals_of_a_scheduler(number):
    send_to_a_worker(number.value)


def test_workers_with_a_thread_pool_outlive_sigterm_as_well():
    """Once the trainer has set the number of threads, torch starts that many in every worker."""
    script = (
        "import torch; torch.set_num_threads(3)\n"
        "from tests.training.test_interruption import send_to_a_worker; send_to_a_worker(15)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("system", ["pass", "import signal; del signal.sigwaitinfo"], ids=["Linux", "macOS"])
def test_workers_end_when_the_trainer_ends_them(system):
    """At exit, Python terminates the remaining workers and waits for them."""
    script = (
        system
        + """
from multiprocessing import active_children
from torch.utils.data import DataLoader
from tests.training.test_interruption import Numbers
from audio_mamba.training.interruption import Shielded, begin_worker
batches = iter(Shielded(DataLoader(Numbers(), num_workers=2, persistent_workers=True,
                                   worker_init_fn=begin_worker)))
next(batches)
for worker in active_children():
    worker.terminate()
    worker.join(20)
    assert not worker.is_alive()
"""
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


class Offered(Dataset):
    """Where a worker waits to hand over a file, as it does for the shared memory of every batch."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return resource_sharer.DupFd(0)._id


def test_a_worker_says_nothing_when_the_trainer_hangs_up(capfd):
    batches = iter(DataLoader(Offered(), batch_size=None, num_workers=1, worker_init_fn=begin_worker))
    address, _ = next(batches)
    Client(address, authkey=current_process().authkey).close()
    with Client(address, authkey=current_process().authkey) as call:
        call.send(("no such key", os.getpid()))
        with pytest.raises(EOFError):
            call.recv()
    errors, deadline = "", time.monotonic() + 20
    while "no such key" not in errors and time.monotonic() < deadline:
        time.sleep(0.01)
        errors += capfd.readouterr().err
    assert "KeyError: 'no such key'" in errors  # still serving after the first call, and other errors are told
    assert "EOFError" not in errors and "ConnectionResetError" not in errors


def kill_a_worker(others=()):
    """Kill a child process other than `others` and wait until it is dead, without reaping it: torch must notice."""
    worker = next(child for child in active_children() if child not in others)
    worker.kill()
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
    return worker


def test_a_lost_worker_is_reported_with_the_next_batch_and_not_before(tmp_path):
    """The main thread may be in the middle of a checkpoint when it hears of it."""
    for _ in range(2):  # torch has set its handler of SIGCHLD before the second loader
        others = active_children()
        batches = iter(Shielded(DataLoader(Numbers(), num_workers=2, worker_init_fn=begin_worker)))
        assert next(batches) == 0
        worker = kill_a_worker(others)
        for _ in range(20):
            torch.save({"weight": torch.zeros(1000)}, tmp_path / "checkpoint.pth")
        with pytest.raises(LostWorkerError, match=rf"a data-loading process was lost .*{worker.pid}"):
            next(batches)
        del batches


def test_a_broken_connection_to_a_dying_worker_is_a_lost_worker():
    """The kernel closes the files of a killed process first."""
    others = iter(DataLoader(Numbers(), num_workers=1, worker_init_fn=begin_worker))

    def batches():
        yield next(others)
        kill_a_worker()
        raise EOFError

    received = iter(Shielded(batches()))
    assert next(received) == 0
    with pytest.raises(LostWorkerError):
        next(received)
