import subprocess
import sys

import pytest

from tests.conftest import ROOT

# A worker that sends itself Ctrl-C and lives on; it holds stdout until it ends.
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
def test_a_worker_ends_with_a_killed_parent_and_leaves_ctrl_c_to_it(tmp_path, start_method):
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
