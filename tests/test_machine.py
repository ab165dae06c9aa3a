import os

import pytest
import torch

from audio_mamba.system import machine


@pytest.mark.parametrize(
    "quota, expected",
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("", 8),
    ],
)
def test_a_containers_share_of_the_cores_counts(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(machine, "_read", {"/sys/fs/cgroup/cpu.max": quota}.__getitem__)
    assert machine.usable_cores() == expected


def test_cached_files_of_a_container_are_free_memory(monkeypatch):
    gib = 2**30
    files = {
        "/proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\n",
        "/sys/fs/cgroup/memory.max": f"{8 * gib}\n",
        "/sys/fs/cgroup/memory.current": f"{7 * gib}\n",  # 2 in use by processes, 5 in files that were read
        "/sys/fs/cgroup/memory.stat": f"anon {2 * gib}\nfile {5 * gib}\ninactive_file {4 * gib}\nactive_file {gib}\n",
    }
    monkeypatch.setattr(machine, "_read", lambda path: files.get(path, ""))
    assert machine.available_memory() == 6 * gib
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert machine.available_memory() == 32 * gib
    files.clear()
    assert machine.available_memory() is None


@pytest.mark.parametrize("asked, threads, expected", [(None, 8, 2), (None, 1, 1), ("8", 8, 8)])
def test_torch_gets_no_more_threads_than_cores(monkeypatch, asked, threads, expected):
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    try:
        torch.set_num_threads(threads)
        machine.bound_threads()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_only_the_cores_of_the_affinity_count():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
