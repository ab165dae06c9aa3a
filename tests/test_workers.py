import subprocess
import sys
import time

import pytest

from audio_mamba.system.workers import Stopped, check_stop, stoppable_pool
from tests.conftest import ROOT

# A worker that sends itself Ctrl-C and survives; stdout stays open until it ends.
MAIN = """
import multiprocessing, os, signal, sys, time
from audio_mamba.system.workers import exit_with_parent

def work():
    exit_with_parent()
    os.kill(os.getpid(), signal.SIGINT)
    print("lives on", flush=True)
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context(sys.argv[1]).Process(target=work).start()
    time.sleep(60)
"""


@pytest.mark.parametrize("start_method", ["fork", "forkserver", "spawn"])
def test_a_worker_exits_with_a_killed_parent_and_ignores_ctrl_c(tmp_path, start_method):
    (tmp_path / "main.py").write_text(MAIN)
    main = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), start_method],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    try:
        assert main.stdout.readline() == "lives on\n"
    finally:
        main.kill()
    assert main.communicate(timeout=20) == ("", None)


def work_until_stopped():
    while True:
        check_stop()
        time.sleep(0.01)


def test_an_exception_ends_the_call_at_hand_of_a_stoppable_pool_and_cancels_the_others():
    with pytest.raises(KeyError), stoppable_pool(1) as pool:
        calls = [pool.submit(work_until_stopped) for _ in range(6)]
        while not calls[0].running():
            time.sleep(0.01)
        raise KeyError
    assert isinstance(calls[0].exception(), Stopped) and calls[-1].cancelled()


def test_a_stoppable_pool_sets_up_each_worker():
    with stoppable_pool(1, initializer=sys.setrecursionlimit, initargs=(1234,)) as pool:
        assert pool.submit(sys.getrecursionlimit).result() == 1234
