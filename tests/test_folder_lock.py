import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from audio_mamba.system import folder_lock
from audio_mamba.system.folder_lock import FolderInUseError, lock_folder
from tests.conftest import ROOT

HOLD = """
import multiprocessing, sys, time
from audio_mamba.system.folder_lock import lock_folder
with lock_folder(sys.argv[1], shared=sys.argv[2] == "shared"):
    if sys.argv[2] == "helper":
        multiprocessing.get_context("fork").Process(target=time.sleep, args=(1.5,), daemon=True).start()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """A function that starts another process, which locks tmp_path."""
    processes = []

    def start(how="alone"):
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLD, str(tmp_path), how], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
        )
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("theirs, ours", [("alone", False), ("alone", True), ("shared", False)])
def test_a_folder_in_use_is_refused_by_name(tmp_path, hold, monkeypatch, theirs, ours):
    monkeypatch.setattr(folder_lock, "PATIENCE", 0.3)
    hold(theirs)
    with pytest.raises(FolderInUseError, match=f"{tmp_path}: another process is using this folder"):  # noqa: SIM117
        with lock_folder(tmp_path, shared=ours):
            raise AssertionError("both are inside")
    assert not list(tmp_path.iterdir())


def test_shared_locks_are_compatible(tmp_path, hold):
    hold("shared")
    with lock_folder(tmp_path, shared=True):
        pass


def test_the_lock_is_released_after_the_block_an_error_and_a_kill(tmp_path, hold):
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path):
        raise ZeroDivisionError
    process = hold()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock_folder(tmp_path):
        pass


def test_children_that_outlive_a_killed_process_are_waited_for(tmp_path, hold):
    process = hold("helper")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lock_folder(tmp_path):  # the child ends within two seconds
        pass


def test_children_that_outlive_the_block_do_not_hold_the_lock(tmp_path):
    with lock_folder(tmp_path):
        helper = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        helper.start()
    try:
        begin = time.monotonic()
        with lock_folder(tmp_path):
            assert time.monotonic() - begin < folder_lock.PATIENCE / 2
    finally:
        helper.kill()
        helper.join()


def test_a_file_system_without_locks_locks_nobody_out(tmp_path, monkeypatch):
    def flock(descriptor, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_folder(tmp_path):
        pass
