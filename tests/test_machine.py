import os

import pytest

import machine


@pytest.mark.parametrize("quota, expected", [("max 100000\n", 8), ("200000 100000\n", 2), ("150000 100000", 1),
                                             ("50000 100000", 1), ("1600000 100000", 8), ("", 8)])
def test_a_containers_share_of_the_cores_counts(monkeypatch, quota, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(machine, "_read", {"/sys/fs/cgroup/cpu.max": quota}.__getitem__)
    assert machine.usable_cores() == expected


def test_the_cores_that_this_process_is_bound_to():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert machine.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
