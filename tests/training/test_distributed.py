import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from audio_mamba.training import distributed

# Each process sees its own half of a batch; afterwards all must hold the gradient of the whole.
TWO_PROCESSES = """
import torch
from audio_mamba.training import distributed

device = distributed.init()
torch.manual_seed(0)
model = torch.nn.Linear(3, 1)
batch = torch.randn(4, 3)
mine = batch[2 * distributed.rank():][:2]
parallel = distributed.parallel(model, device)
with distributed.no_sync(parallel):
    parallel(mine).square().mean().backward()
apart = distributed.mean(model.weight.grad)
assert not torch.equal(apart, model.weight.grad), "gradients were averaged inside no_sync"
model.zero_grad()
parallel(mine).square().mean().backward()
together = model.weight.grad.clone()
model.zero_grad()
model(batch).square().mean().backward()
torch.testing.assert_close(together, model.weight.grad)
torch.testing.assert_close(apart, model.weight.grad)
value = torch.tensor(float(distributed.rank()))
assert distributed.mean(value) == 0.5 and value == distributed.rank()
assert distributed.is_main() == (distributed.rank() == 0)
assert distributed.world_size() == 2
from audio_mamba.system.machine import usable_cores
assert torch.get_num_threads() == max(1, usable_cores() // 2)
open(f"done.{distributed.rank()}", "w").close()
distributed.cleanup()
"""


def test_in_a_single_process_every_call_does_nothing(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    device = distributed.init()
    assert device.type in ("cpu", "cuda")
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    value, model = torch.tensor(3.0), nn.Linear(2, 1)
    assert distributed.mean(value) == 3.0
    assert distributed.parallel(model, device) is model
    with distributed.no_sync(model):
        pass
    distributed.cleanup()


@pytest.mark.parametrize(
    "processes, asked, by_user, expected",
    [
        (1, None, False, 3),
        (1, "1", True, 3),
        (2, None, False, 4),
        (2, "1", False, 4),
        (2, "1", True, 3),
        (2, "2", True, 3),
    ],
)
def test_cores_are_shared_if_torchrun_gave_each_process_one_thread(monkeypatch, processes, asked, by_user, expected):
    monkeypatch.setattr(distributed, "usable_cores", lambda: 8)
    monkeypatch.setattr(distributed, "_launcher_was_given", lambda variable: by_user)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)  # what torch has made of the environment at its import
        distributed._share_out_cores(processes)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("given", [True, False])
def test_what_the_launcher_gives_its_processes_is_not_what_the_user_gave_it(given):
    """torchrun puts OMP_NUM_THREADS into its own environment before it starts processes."""
    child = "from audio_mamba.training import distributed as d; print(d._launcher_was_given('OMP_NUM_THREADS'))"
    code = f"""
import os, subprocess, sys
os.environ["OMP_NUM_THREADS"] = "1"
subprocess.run([sys.executable, "-c", {child!r}], check=True)
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if given:
        environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(given)


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes of the test would need two GPUs")
def test_two_processes_average_gradients_and_values(tmp_path, pytestconfig):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath)}
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in tmp_path.glob("done.*")) == ["done.0", "done.1"]
