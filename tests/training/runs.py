"""Starting, following and ending train.py as its users do, for the tests."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from audio_mamba.training.records import read_log
from tests.conftest import ROOT

EPOCHS = 8
TINY = ["opt.warmup_epochs=1", "model.model_args.depth=1", "model.model_args.embed_dim=48"]


def arguments(workdir, data=None, *options, config="configs.ssast_tiny_200_16x4", **overrides):
    data = ["--data", str(data)] if data else ["--fake_data"]
    changes = TINY + [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return [
        "--config",
        config,
        "--workdir",
        str(workdir),
        *data,
        "--no_wandb",
        "--num_workers",
        "0",
        "--print_freq",
        "2",
        *options,
        "--set",
        *changes,
    ]


def losses(workdir):
    return [line["train_loss"] for line in read_log(workdir / "log.txt")]


def start(processes, train_arguments, launcher_options=("--standalone", "--nnodes=1")):
    """train.py, by torchrun if there is more than one process."""
    launcher = ["-m", "torch.distributed.run", *launcher_options, f"--nproc-per-node={processes}"]
    alone = processes == 1 and launcher_options == ("--standalone", "--nnodes=1")
    return subprocess.Popen(
        [sys.executable, *([] if alone else launcher), "train.py", *train_arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def children(process):
    """The processes that a launcher started."""
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listing.read_text().split()] if listing.exists() else []


def rank_of(pid):
    return int(re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())[1])


def kill(process):
    """SIGKILL for the launcher and for its workers, which have sessions of their own."""
    for pid in (process.pid, *children(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def finish(process, timeout=120):
    """Waits for its end, which comes by SIGKILL after `timeout` seconds, and returns what it printed since `follow`."""
    late = threading.Timer(timeout, kill, [process])
    late.start()
    try:
        output = process.stdout.read()  # not communicate(), which would miss what `follow` has read ahead
        process.wait()
        return output
    finally:
        late.cancel()


def run_undisturbed(workdir, data):
    """Eight epochs by two processes, 4 samples each; returns what they printed."""
    process = start(2, arguments(workdir, data, num_epochs=EPOCHS, batch_size=4))
    output = finish(process)
    assert process.returncode == 0, output
    return output


def follow(process, steps):
    """Reads what it prints up to the line of its `steps`-th step (one line per step), and returns that."""
    seen, text = 0, ""
    while line := process.stdout.readline():
        text += line
        seen += bool(re.match(r"\d\d:\d\d:\d\d epoch \d+/\d+  step ", line))
        if seen == steps:
            return text
    raise AssertionError(f"it ended after {seen} of {steps} steps:\n{text}")
