"""The same calls for one process and for several under torchrun. In a single process they do nothing."""

import ctypes
import logging
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from audio_mamba.system.machine import bound_threads, usable_cores

logger = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=10)  # how long a process waits for the others in a collective
ROLL_CALL_SECONDS = 5.0  # how long survivors wait for each other to report

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

_store: dist.Store | None = None  # used by the processes when the group has failed


def init(device_name: str = "auto") -> torch.device:
    """Join the process group if torchrun started this process; return the device of this process.

    The back end is nccl for CUDA and gloo for a CPU. On a CPU, the processes of a machine share its cores equally
    unless the user has set OMP_NUM_THREADS.

    Args:
        device_name: "auto", "cpu" or "cuda".

    Raises:
        ValueError: there is no such device for this process.
    """
    device = _pick_device(device_name)
    if device.type == "cpu":
        bound_threads()
    if "RANK" in os.environ:
        if device.type == "cpu":
            _share_out_cores(_from_torchrun("LOCAL_WORLD_SIZE", 1))
        _stop_with_the_launcher()
        _join("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def _share_out_cores(processes: int) -> None:
    # If OMP_NUM_THREADS is not set, torchrun gives each of several processes one thread, which may leave most cores
    # idle. What the user set is kept: more threads than cores, as with two runs in parallel, wait for each other and
    # are many times slower.
    if processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1" and not _launcher_was_given("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, usable_cores() // processes))


def _launcher_was_given(variable: str) -> bool:
    """Whether the environment in which the parent process was started has a variable; False where nobody can tell."""
    try:
        entries = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(f"{variable}=".encode()) for entry in entries)


def _pick_device(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: PyTorch {torch.__version__} finds no CUDA device on this machine")
    device = torch.device("cuda", _from_torchrun("LOCAL_RANK", 0))
    if device.index >= torch.cuda.device_count():
        raise ValueError(
            f"local process {device.index} needs a GPU of its own, but this machine has {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(device)
    return device


def _from_torchrun(name: str, alone: int) -> int:
    return int(os.environ.get(name, alone))


def _stop_with_the_launcher() -> None:
    """Get a SIGTERM when torchrun is killed, which would otherwise leave its processes running."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _join(backend: str) -> None:
    global _store
    store, rank_, world_size_ = next(rendezvous("env://", timeout=PATIENCE))
    # After a restart, torchrun reuses its store, which still holds the addresses of the previous processes. On one
    # machine the restart count separates them. On several machines each torchrun has its own count.
    if _from_torchrun("LOCAL_WORLD_SIZE", 1) == world_size_:
        store = dist.PrefixStore(f"restart {_from_torchrun('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank_, world_size=world_size_, timeout=PATIENCE
    )
    _store = dist.PrefixStore("roll call", store)
    _store.set_timeout(timedelta(seconds=ROLL_CALL_SECONDS))


def rank() -> int:
    """The rank of this process; 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes on all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and logs."""
    return rank() == 0


def seed_all(seed: int) -> None:
    """Seed the generators of torch, NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_apart(seed: int) -> None:
    """Give every process but the main one random numbers of its own, so that a dropout is not the same in all.

    Call it once the weights are drawn; the processes share those of the main one.
    """
    if not is_main():
        seed_all(seed + rank())


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of `value` over the processes; `value` itself is not changed."""
    return total(value) / world_size() if dist.is_initialized() else value


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of `value` over the processes; `value` itself is not changed."""
    if not dist.is_initialized():
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def from_main(value: torch.Tensor) -> None:
    """Overwrite the tensor of every process with that of rank 0."""
    if dist.is_initialized():
        dist.broadcast(value, src=0)


def gather(value: Any) -> list[Any]:
    """The picklable `value` of every process, in the order of ranks."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class Agreement:
    """Yes-or-no questions that all processes answer alike at the same step, without waiting for each other."""

    def __init__(self, questions: int):
        self._questions = questions
        self._answers: torch.Tensor | None = None
        self._exchange: dist.Work | None = None

    def vote(self, *answers: bool) -> list[bool]:
        """For each question, whether any process voted yes: in this call alone, or with others in the previous call."""
        if not dist.is_initialized():
            return list(answers)
        agreed = [False] * self._questions
        if self._exchange is not None and self._answers is not None:
            self._exchange.wait()
            agreed = self._answers.bool().tolist()
        self._answers = torch.tensor(answers, dtype=torch.int32)
        self._exchange = dist.all_reduce(self._answers, op=dist.ReduceOp.MAX, async_op=True)
        return agreed

    def finish(self) -> None:
        """Wait for the last exchange. Call it in all processes after the last vote."""
        if self._exchange is not None:
            self._exchange.wait()


@contextmanager
def reporting_lost_processes() -> Iterator[None]:
    """Say which process died or hangs, instead of where in this process the communication failed.

    Raises:
        ConnectionError: a collective failed inside the block; the message lists the lost ranks.
    """
    try:
        yield
    except Exception as error:
        if _store is None or not _is_communication_error(error):
            raise
        raise ConnectionError(_roll_call(_store)) from error


def _is_communication_error(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
    )


def _roll_call(store: dist.Store) -> str:
    try:
        store.set(f"here {rank()}", "")
        time.sleep(ROLL_CALL_SECONDS)
        lost = [number for number in range(world_size()) if not store.check([f"here {number}"])]
    except dist.DistError:
        return f"rank {rank()} of {world_size()} lost the connection to all other processes and to torchrun"
    if not lost:
        return "the connection between the processes broke, but all of them are still running"
    return f"rank(s) {', '.join(map(str, lost))} of {world_size()} died or do not answer; rank {rank()} stops as well"


def fail(message: str) -> NoReturn:
    """End this process with a message and status 1.

    In a process group it exits at once: leaving the group properly would mean waiting for processes that may be dead.
    """
    if not dist.is_initialized():
        raise SystemExit(message)
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    logging.shutdown()
    os._exit(1)


def cleanup() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        # A gloo thread may be about to release the tensor of the last collective, for which it needs the interpreter
        # lock. destroy_process_group joins that thread while holding the lock: a deadlock, seen with torch 2.13 in one
        # run out of ten. Sleeping releases the lock for long enough.
        time.sleep(0.1)
        dist.destroy_process_group()


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap `model` so that gradients are averaged over the processes; a single process gets `model` itself."""
    if not dist.is_initialized():
        return model
    # The gradient of the patch convolution, with one channel, may have either of two equivalent stride patterns.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def no_sync(model: nn.Module) -> AbstractContextManager:
    """Inside, backward passes add to the gradients of each process without averaging, as gradient accumulation needs
    in all passes but the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
