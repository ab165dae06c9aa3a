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
