"""Commands whose standard error is closed (`2>&-`) and whose output goes to a program that ends (`| head`)."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.training.runs import arguments, write_archive

# Imports once, and forks a process per command. Python has None for a stream that was closed before it started.
COMMANDS = """
import json, os, runpy, sys, warnings
warnings.filterwarnings("ignore", category=RuntimeWarning)  # the modules are imported before they run
import audio_mamba.data.index, audio_mamba.data.inspect, audio_mamba.data.prepare, audio_mamba.data.verify
import audio_mamba.train, torch

def run(module, arguments, out, err):
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number, target in ((1, out), (2, err)):
        os.close(number) if target is None else os.dup2(target, number)
    if err is None:
        sys.stderr = None
    sys.argv = [module, *arguments]
    status = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(status)

closed, *commands = json.loads(sys.argv[1])
results = []
for number, (module, arguments) in enumerate(commands):
    out, err = (os.open(f"{number}.{name}", os.O_WRONLY | os.O_CREAT) for name in ("out", "err"))
    if closed == "stdout":
        nobody, out = os.pipe()
        os.close(nobody)
    results.append(run(module, arguments, out, None if closed == "stderr" else err))
print(json.dumps(results))
"""


@pytest.fixture
def commands(tmp_path):
    """The commands that write archives or read them, with arguments that end well."""
    from audio_mamba.data.synthetic import write_audio

    write_audio(tmp_path / "audio", minutes=0.5)
    archive = write_archive(tmp_path / "archive", [8])
    published = write_archive(tmp_path / "published", [2])
    (published / "shard-0.index.npz").unlink()
    training = arguments(tmp_path / "run", archive, "--print_freq", "1", num_epochs=1, batch_size=4)
    return {
        "audio_mamba.data.prepare": [str(tmp_path / "audio"), str(tmp_path / "made"), "--workers", "1"],
        "audio_mamba.data.index": [str(published), "--workers", "1"],
        "audio_mamba.data.verify": [str(archive)],
        "audio_mamba.data.inspect": [str(archive), "--picture", str(tmp_path / "picture.png")],
        "audio_mamba.train": training,
    }


def run_all(tmp_path, closed, commands):
    """The status of each command, its output and its messages."""
    run = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps([closed, *commands.items()])],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    statuses = json.loads(run.stdout)

    def written(number, name):
        path = tmp_path / f"{number}.{name}"
        return path.read_text() if path.exists() else ""

    return {
        module: (status, written(number, "out"), written(number, "err"))
        for number, (module, status) in enumerate(zip(commands, statuses, strict=True))
    }


@pytest.mark.slow
def test_commands_run_without_standard_error(tmp_path, commands):
    ended = run_all(tmp_path, "stderr", commands)
    assert {module: status for module, (status, _, _) in ended.items()} == dict.fromkeys(commands, 0), ended
    assert "clips" in ended["audio_mamba.data.prepare"][1] and "indexed" in ended["audio_mamba.data.index"][1]
    assert "all good" in ended["audio_mamba.data.verify"][1] and "train loss" in ended["audio_mamba.train"][1]
    assert (tmp_path / "made" / "manifest.json").exists() and (tmp_path / "run" / "log.txt").exists()
    assert (tmp_path / "picture.png").exists() and (tmp_path / "published" / "shard-0.index.npz").exists()


def test_commands_end_quietly_if_nobody_reads_their_output(tmp_path, commands):
    """By the status that shells give to SIGPIPE; only training continues, and says so in one line."""
    ended = run_all(tmp_path, "stdout", commands)
    for module, (status, _, messages) in ended.items():
        assert status == (0 if module == "audio_mamba.train" else 141), (module, messages)
        assert "Traceback" not in messages and "Error" not in messages, messages
    assert ended["audio_mamba.train"][2].count("standard output was closed; continuing without it") == 1
    assert (tmp_path / "made" / "manifest.json").exists() and (tmp_path / "run" / "log.txt").exists()
