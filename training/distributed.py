"""Several processes under torchrun, or one alone: the same calls serve both, and alone they do nothing."""

import ctypes
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from audio_mamba.system.machine import bound_threads, usable_cores

logger = logging.getLogger(__name__)

# How long a process waits for the others in one exchange, and how long survivors wait for word of each other.
PATIENCE = timedelta(minutes=10)
ROLL_CALL_SECONDS = 5.0

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

_store: dist.Store | None = None  # what the processes know of each other while the group cannot be used


def init(device_name: str = "auto") -> torch.device:
    """Joins the processes that torchrun started (nccl on CUDA, gloo on a CPU) and returns the device of this one.

    Started without torchrun, it only picks the device. On a CPU the cores are shared out among the machine's processes,
    unless OMP_NUM_THREADS says otherwise.
    ValueError if the device that is asked for ("auto", "cpu" or "cuda") is not there.
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
    # To several processes torchrun gives one thread each where OMP_NUM_THREADS is not set, which may leave most cores
    # idle. One process keeps what its user set: threads that outnumber the cores, as of two runs side by side, wait for
    # each other and are many times slower.
    if processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, usable_cores() // processes))


def _pick_device(name: str) -> torch.device:
    if name == "cpu" or name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name}: PyTorch {torch.__version__} sees no CUDA device on this machine")
    device = torch.device("cuda", _from_torchrun("LOCAL_RANK", 0))
    if device.index >= torch.cuda.device_count():
        raise ValueError(f"process {device.index} on this machine has no GPU: it has {torch.cuda.device_count()}")
    torch.cuda.set_device(device)
    return device


def _from_torchrun(name: str, alone: int) -> int:
    return int(os.environ.get(name, alone))


def _stop_with_the_launcher() -> None:
    """A torchrun that was killed would leave its processes running: let the system tell them by SIGTERM."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _join(backend: str) -> None:
    global _store
    store, rank_, world_size_ = next(rendezvous("env://", timeout=PATIENCE))
    # torchrun hands the same store to the processes of each restart, in which the addresses of those before would be
    # found. On one machine its count tells them apart; on several, each torchrun counts for itself.
    if _from_torchrun("LOCAL_WORLD_SIZE", 1) == world_size_:
        store = dist.PrefixStore(f"restart {_from_torchrun('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=rank_, world_size=world_size_, timeout=PATIENCE
    )
    _store = dist.PrefixStore("roll call", store)
    _store.set_timeout(timedelta(seconds=ROLL_CALL_SECONDS))


def rank() -> int:
    """The number of this process among all, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, over all machines."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and logs."""
    return rank() == 0


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of `value` over the processes, on each of them; `value` itself is not changed."""
    return total(value) / world_size() if dist.is_initialized() else value


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of `value` over the processes, on each of them; `value` itself is not changed."""
    if not dist.is_initialized():
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def gather(value: Any) -> list[Any]:
    """The picklable `value` of every process in the order of ranks, on each of them."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


class Agreement:
    """Yes-or-no questions on which all processes act alike, at the same step and without waiting for each other."""

    def __init__(self, questions: int):
        self._questions = questions
        self._answers: torch.Tensor | None = None
        self._exchange: dist.Work | None = None

    def vote(self, *answers: bool) -> list[bool]:
        """For each question, whether any process said yes: alone in this call, with others in the call before."""
        if not dist.is_initialized():
            return list(answers)
        agreed = [False] * self._questions
        if self._exchange is not None:
            self._exchange.wait()
            agreed = self._answers.bool().tolist()
        self._answers = torch.tensor(answers, dtype=torch.int32)
        self._exchange = dist.all_reduce(self._answers, op=dist.ReduceOp.MAX, async_op=True)
        return agreed

    def finish(self) -> None:
        """Waits for the exchange under way; call it in all processes when there are no more votes."""
        if self._exchange is not None:
            self._exchange.wait()


@contextmanager
def naming_lost_processes() -> Iterator[None]:
    """If an exchange fails inside because another process died or hangs, says which in place of where it broke.

    Raises ConnectionError, after a roll call of the survivors.
    """
    try:
        yield
    except Exception as error:
        if not dist.is_initialized() or not _is_of_an_exchange(error):
            raise
        raise ConnectionError(_roll_call()) from error


def _is_of_an_exchange(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
    )


def _roll_call() -> str:
    try:
        _store.set(f"here {rank()}", "")
        time.sleep(ROLL_CALL_SECONDS)
        lost = [number for number in range(world_size()) if not _store.check([f"here {number}"])]
    except dist.DistError:
        return f"rank {rank()} of {world_size()} has lost all the others and the launcher's store"
    if not lost:
        return "the connection between the processes broke, but all of them are still there"
    return f"rank(s) {', '.join(map(str, lost))} of {world_size()} died or do not answer; rank {rank()} stops as well"


def fail(message: str) -> NoReturn:
    """Ends this process with a message and status 1, in company at once: to leave the group in order, with exchanges
    under way, would mean to wait for processes that may be gone."""
    if not dist.is_initialized():
        raise SystemExit(message)
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
    logging.shutdown()
    os._exit(1)


def cleanup() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        # A gloo thread may be about to let go of the last collective's tensor, for which it needs the interpreter
        # lock. destroy_process_group joins that thread while it holds the lock: a deadlock, seen with torch 2.13 in
        # one of ten runs. Sleeping releases the lock for long enough.
        time.sleep(0.1)
        dist.destroy_process_group()


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with gradients averaged over the processes; alone, `model` itself."""
    if not dist.is_initialized():
        return model
    # The gradient of the patch convolution, over one channel, may have either of two equivalent stride patterns.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def no_sync(model: nn.Module) -> AbstractContextManager:
    """Backward passes inside only add to each process's own gradients: all but the last of an accumulation."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()
