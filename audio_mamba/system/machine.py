"""How many cores and how much memory this process may use, inside a container too."""

import os
import sys
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use: its CPU affinity, limited by the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")  # microseconds, or "max"
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else cores


def bound_threads() -> None:
    """Limit torch to the usable cores, unless OMP_NUM_THREADS is set.

    By default torch starts a thread for each core of the machine. With more threads than the container's share of
    cores, they spend their time waiting for each other.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def available_memory() -> int | None:
    """Free memory in bytes, of the machine or within the container's limit; None if the system does not say.

    Cached files count as free, since the kernel drops them when memory is needed.
    """
    limits = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        stat = dict(line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines())
        cached = sum(int(stat.get(name, 0)) for name in ("active_file", "inactive_file"))
        limits.append(int(limit) - int(used) + cached)
    return min(limits, default=None)


def peak_memory() -> int:
    """The most memory in bytes that this process has had so far (resident)."""
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def processes_that_fit(memory_each: int) -> int:
    """How many processes of `memory_each` bytes can run in parallel: at most one per core, and at least 1."""
    memory = available_memory()
    return max(1, usable_cores() if memory is None else min(usable_cores(), memory // memory_each))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
