"""Helpers of the benchmarks of speed and memory."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

from torch import nn

from audio_mamba.models.ops import native

Result = TypeVar("Result")
SECONDS = 3.0  # each measurement is repeated for this long, and the fastest run counts


def fastest(function: Callable[[], object]) -> float:
    """Seconds of the fastest run. Runs are repeated for SECONDS, at least once."""
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """Peak resident memory of this process in MiB. Unlike getrusage's value, it excludes the parent process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def without_kernels(model: nn.Module, backend: str = "chunked") -> None:
    """Make an SSAM, and this process, run in plain PyTorch as on a machine without a compiler, with scan `backend`."""
    native.unsupported_reason = lambda *tensors: "the benchmark wants plain PyTorch"
    for block in model.blocks:
        block.mixer.backend = backend


def in_turns(rounds: int, old: Callable[[], Result], new: Callable[[], Result]) -> tuple[list[Result], list[Result]]:
    """What two functions return, called in turns so that a change in the machine's load affects both."""
    pairs = [(old(), new()) for _ in range(rounds)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def ratio_and_spread(above: list[float], below: list[float]) -> str:
    """The ratios of each round as two cells of a table: their median, and the lowest to the highest."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    return f"{median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
