"""How much of this machine is free for processes side by side."""

import os
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, or the share that its container is given of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")  # microseconds of time, or "max"
    return max(1, min(cores, int(quota) // int(period))) if quota.isdigit() and period.isdigit() else cores


def bound_threads() -> None:
    """Take from torch the threads beyond the usable cores, unless OMP_NUM_THREADS says how many it shall have.

    torch counts the machine's cores, and with more threads than a container's share each waits for the others.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


def available_memory() -> int | None:
    """Bytes that can still be taken: of the machine, or of the container's limit; None where nothing tells."""
    limits = []
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            limits.append(int(line.split()[1]) * 1024)
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        limits.append(int(limit) - int(used))
    return min(limits, default=None)


def processes_that_fit(memory_each: int) -> int:
    """Processes that the machine bears side by side, at least 1: one a core, `memory_each` bytes each."""
    memory = available_memory()
    return max(1, usable_cores() if memory is None else min(usable_cores(), memory // memory_each))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
