import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from audio_mamba.training import interruption
from audio_mamba.training.interruption import SIGNALS, Interruption, leave_signals_to_the_trainer


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_asks_for_a_stop(number, caplog):
    before = signal.getsignal(number)
    with Interruption(minutes=0) as watch:
        assert not watch.ask() and not watch.requested
        os.kill(os.getpid(), number)
        assert watch.requested
        assert watch.ask() and watch.stop_now
        assert signal.Signals(number).name in caplog.text
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_at_once():
    with Interruption(minutes=0):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_the_clock_asks_for_checkpoints(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    watch, never = Interruption(minutes=2), Interruption(minutes=0)
    now[0] += 119
    watch.ask()
    assert not watch.save_now
    now[0] += 2
    assert not watch.ask() and watch.save_now
    watch.saved()
    watch.ask()
    assert not watch.save_now
    now[0] += 1e9
    never.ask()
    assert not never.save_now


class Numbers(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.tensor(index)


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_outlive_the_signals_of_a_scheduler(number):
    """Each comes from another process here, as from a scheduler."""
    loader = DataLoader(
        Numbers(), batch_size=1, num_workers=1, persistent_workers=True, worker_init_fn=leave_signals_to_the_trainer
    )
    batches = iter(loader)
    seen = [next(batches).item()]
    (worker,) = batches._workers
    subprocess.run(["/bin/sh", "-c", f"kill -{number.value} {worker.pid}"], check=True)
    time.sleep(0.1)
    assert seen + [batch.item() for batch in batches] == list(range(8))
    assert worker.is_alive()


@pytest.mark.parametrize("system", ["pass", "import signal; del signal.sigwaitinfo"], ids=["Linux", "macOS"])
def test_workers_end_when_the_trainer_ends_them(system):
    """Python terminates and then waits for the workers that are left at its end."""
    script = (
        system
        + """
from torch.utils.data import DataLoader
from tests.training.test_interruption import Numbers
from audio_mamba.training.interruption import leave_signals_to_the_trainer
batches = iter(DataLoader(Numbers(), num_workers=2, persistent_workers=True,
                          worker_init_fn=leave_signals_to_the_trainer))
next(batches)
for worker in batches._workers:
    worker.terminate()
    worker.join(20)
    assert not worker.is_alive()
"""
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
