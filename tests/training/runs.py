"""Start, follow and end train.py as its users do, for the tests."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from audio_mamba.training.records import read_log
from tests.conftest import ROOT

EPOCHS = 8
STANDALONE = ("--standalone", "--nnodes=1")
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


def write_archive(folder, counts, seed=0):
    """Shards with these numbers of random samples; the content of each depends on the seed and its number."""
    from audio_mamba.data.archives import write_shard  # not above, so that GPU tests need no audio libraries
    from audio_mamba.data.samples import Sample

    folder.mkdir()
    for shard, count in enumerate(counts):
        draw = np.random.default_rng((seed, shard))
        write_shard(
            folder / f"shard-{shard}.tar",
            [
                Sample(f"clip{shard}-{i}", draw.normal(size=(200, 80)).astype(np.float32), np.zeros(0, np.int64))
                for i in range(count)
            ],
        )
    return folder


def losses(workdir):
    return [line["train_loss"] for line in read_log(workdir / "log.txt")]


def start(processes, train_arguments, launcher_options=STANDALONE):
    """Start train.py, under torchrun if there is more than one process."""
    launcher = ["-m", "torch.distributed.run", *launcher_options, f"--nproc-per-node={processes}"]
    alone = processes == 1 and launcher_options == STANDALONE
    return subprocess.Popen(
        [sys.executable, *([] if alone else launcher), "train.py", *train_arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


SUCCESSIVE_RUNS = """
import json, os, sys
from audio_mamba import train
train.figures._save = lambda figure, path: None  # drawing takes most of the time of a short run
for port, arguments in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    train.main(arguments)
"""


def start_ranks(*runs):
    """Start one process per rank without a launcher, so that each rank can have arguments of its own.

    Args:
        runs: successive runs of the same processes, each a list of the arguments of every rank. Processes end at the
            first run that fails.
    """
    sockets = [socket.socket() for _ in runs]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    world_size = len(runs[0])
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                SUCCESSIVE_RUNS,
                json.dumps([(port, run[rank]) for port, run in zip(ports, runs, strict=True)]),
            ],
            cwd=ROOT,
            env=os.environ
            | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "RANK": str(rank), "WORLD_SIZE": str(world_size)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(world_size)
    ]


def children(process):
    """The process ids that a launcher started."""
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in listing.read_text().split()] if listing.exists() else []


def rank_of(pid):
    return int(re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())[1])


def kill(process):
    """Send SIGKILL to the launcher and to its workers, which have their own sessions."""
    for pid in (process.pid, *children(process)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def finish(process, timeout=200):
    """Wait for the end and return what was printed since `follow`; kill the process after `timeout` seconds."""
    late = threading.Timer(timeout, kill, [process])
    late.start()
    try:
        output = process.stdout.read()  # communicate() would miss what `follow` has buffered
        process.wait()
        return output
    finally:
        late.cancel()


def run_undisturbed(workdir, data):
    """Train eight epochs in two processes, 4 samples each; return what they printed."""
    process = start(2, arguments(workdir, data, num_epochs=EPOCHS, batch_size=4))
    output = finish(process)
    assert process.returncode == 0, output
    return output


def start_checkpointing(processes, workdir, data, launcher_options=STANDALONE):
    """Start eight epochs in steps of 8 samples, with a printed line per step and a checkpoint at nearly every step."""
    options = ["--print_freq", "1", "--checkpoint-minutes", "0.0005"]
    return start(
        processes,
        arguments(workdir, data, *options, num_epochs=EPOCHS, batch_size=8 // processes),
        launcher_options,
    )


def follow(process, steps):
    """Read and return the output up to the line of step number `steps`, with one line per step."""
    seen, text = 0, ""
    while line := process.stdout.readline():
        text += line
        seen += bool(re.match(r"\d\d:\d\d:\d\d epoch \d+/\d+  step ", line))
        if seen == steps:
            return text
    raise AssertionError(f"it ended after {seen} of {steps} steps:\n{text}")
