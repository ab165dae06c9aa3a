"""What the benchmarks of speed and memory share."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

from torch import nn

from audio_mamba.models.ops import native

SECONDS = 3.0  # each measurement is repeated for this long and its fastest run counts


def fastest(function: Callable[[], object]) -> float:
    """Seconds of the fastest run among those that fit into SECONDS, at least one."""
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < SECONDS:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """The most memory that this process has had; unlike getrusage's figure, never that of the process it came from."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def without_kernels(model: nn.Module, backend: str = "chunked") -> None:
    """Makes an SSAM, and this process, run in plain PyTorch as where there is no compiler, its scan by `backend`."""
    native.unsupported_reason = lambda *tensors: "the benchmark wants plain PyTorch"
    for block in model.blocks:
        block.mixer.backend = backend
