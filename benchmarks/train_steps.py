"""The processes of benchmarks.train: timed training steps of train.py or of a plain loop.

    [torchrun ...] python -m benchmarks.train_steps SETTING.json FOLDER

writes a `Measured` to FOLDER/rank-<number>.json.
"""

import argparse
import functools
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

from audio_mamba import models, train
from audio_mamba.cli.train_config import load_config
from audio_mamba.cli.train_setup import Run, set_up
from audio_mamba.models.precision import autocast
from audio_mamba.training import distributed
from benchmarks.measure import peak_mib, resident_mib, without_kernels

WARM_UP_STEPS, LEAST_STEPS = 1, 2
WORK = ("forward", "backward", "optimizer")
TRAIN_PY, CHECKPOINTING = "train.py", "train.py, checkpointing"
PLAIN_SCANS = {"plain, chunked scan": "chunked", "plain, step-by-step scan": "reference", "plain": None}  # to back end
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Setting:
    """One row to measure. `step` is TRAIN_PY, CHECKPOINTING or one of PLAIN_SCANS."""

    model: str
    config: str
    processes: int
    precision: str
    step: str
    batch: int  # samples per process and step
    seconds: float
    archive: str
    overrides: list[str]  # KEY=VALUE entries of the config


@dataclass
class Measured:
    """The measurements of one process: seconds of each step and its parts, and peak MiB above the idle memory."""

    steps: list[dict[str, float]]
    peak_mib: float


class StepClock:
    """Times steps and their parts.

    The first steps of an epoch are not counted, because the loader and the allocator are still warming up.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.steps: list[dict[str, float]] = []
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Start a step now; the time before, such as that of a checkpoint, does not count."""
        self._warm_up = WARM_UP_STEPS
        self._begin()

    def _begin(self) -> None:
        self._start, self._spent = time.perf_counter(), {}

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count the time inside as part `name` of the step."""
        start = time.perf_counter()
        yield
        self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - start

    def timed(self, name: str, function: Callable) -> Callable:
        """`function`, with its calls counted as part `name` of the step."""

        @functools.wraps(function)
        def call(*args, **kwargs):
            with self.on(name):
                return function(*args, **kwargs)

        return call

    def end_step(self) -> bool:
        """End the step and start the next one; return whether enough steps were timed."""
        now = time.perf_counter()
        if self._warm_up:
            self._warm_up -= 1
        else:
            self.steps.append({**self._spent, "step": now - self._start})
        self._begin()
        return len(self.steps) >= LEAST_STEPS and sum(step["step"] for step in self.steps) >= self._seconds


class ClockedLoader:
    """A loader that counts the time spent waiting for its batches."""

    def __init__(self, loader: Any, clock: StepClock):
        self._loader, self._clock = loader, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self._clock.begin_epoch()
        batches = iter(self._loader)
        while True:
            with self._clock.on("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def measure_train_py(setting: Setting, folder: Path) -> Measured:
    """Run train.py with clocks around the functions it calls, and stop it by SIGTERM after enough steps.

    Forward is from the batch to the loss; optimizer is step and zero_grad.
    """
    clock = StepClock(setting.seconds)
    measured = Measured(clock.steps, peak_mib=0.0)

    def set_up_with_clock(args: argparse.Namespace, resources: ExitStack) -> Run:
        run = set_up(args, resources)
        idle_mib = resident_mib()
        run.loaders = run.loaders._replace(train=cast(Any, ClockedLoader(run.loaders.train, clock)))
        run.optimizer.zero_grad = clock.timed("optimizer", run.optimizer.zero_grad)
        make_step = clock.timed("optimizer", run.optimizer.step)

        @functools.wraps(run.optimizer.step)
        def step(*args, **kwargs):
            make_step(*args, **kwargs)
            if clock.end_step():
                measured.peak_mib = peak_mib() - idle_mib
                os.kill(os.getpid(), signal.SIGTERM)

        run.optimizer.step = step
        return run

    arguments = [
        "--config",
        setting.config,
        "--workdir",
        str(folder / "run"),
        "--data",
        setting.archive,
        "--no_wandb",
        "--device",
        "cpu",
        "--precision",
        setting.precision,
        *(["--gradient-checkpointing"] if setting.step == CHECKPOINTING else []),
        "--set",
        f"batch_size={setting.batch}",
        *setting.overrides,
    ]
    with (
        mock.patch.object(train, "set_up", set_up_with_clock),
        mock.patch.object(train, "loss_of", clock.timed("forward", train.loss_of)),
        mock.patch.object(torch.Tensor, "backward", clock.timed("backward", torch.Tensor.backward)),
    ):
        train.main(arguments)
    return measured


def measure_plain(setting: Setting) -> Measured:
    """A bare loop over random batches in memory with PyTorch's default AdamW: no loader, log, schedule or guard."""
    config, device = load_config(setting.config, setting.overrides), distributed.init("cpu")
    torch.manual_seed(0)
    model = models.build(config.model.arch, config.model.model_args.to_dict())
    if PLAIN_SCANS[setting.step]:
        without_kernels(model, PLAIN_SCANS[setting.step])
    parallel, optimizer = distributed.parallel(model, device), torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    rng = np.random.default_rng(0)
    batches = [
        (
            torch.randn(setting.batch, 1, *model.img_size),
            torch.from_numpy(np.stack([model.draw_mask(rng) for _ in range(setting.batch)])),
        )
        for _ in range(4)
    ]
    clock, idle_mib = StepClock(setting.seconds), resident_mib()
    for spectrogram, mask in itertools.cycle(batches):
        with clock.on("forward"), autocast(device, setting.precision):
            pred, target, _ = parallel(spectrogram, mask)
            loss = F.mse_loss(pred.float(), target)
        with clock.on("backward"):
            loss.backward()
        with clock.on("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
        if all(distributed.gather(clock.end_step())):
            break
    distributed.cleanup()
    return Measured(clock.steps, peak_mib() - idle_mib)


def main() -> None:
    setting, folder = Setting(**json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])
    measured = measure_plain(setting) if setting.step in PLAIN_SCANS else measure_train_py(setting, folder)
    (folder / f"rank-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
