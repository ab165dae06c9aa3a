"""Several processes under torchrun, or one alone: the same calls serve both, and alone they do nothing."""

import os
import time
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def init() -> torch.device:
    """Joins the processes that torchrun started (nccl on CUDA, gloo on a CPU) and returns the device of this one.

    Started without torchrun, it only picks the device. On a CPU the cores are shared out among the machine's processes.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", _from_torchrun("LOCAL_RANK", 0))
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"process {device.index} on this machine has no GPU: it has {torch.cuda.device_count()}")
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if "RANK" in os.environ:
        if device.type == "cpu":  # torchrun gives each process a single thread, which may leave most cores idle
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // _from_torchrun("LOCAL_WORLD_SIZE", 1)))
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def _from_torchrun(name: str, alone: int) -> int:
    return int(os.environ.get(name, alone))


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
    if not dist.is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)  # a sum, since gloo has no mean
    return total / world_size()


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
