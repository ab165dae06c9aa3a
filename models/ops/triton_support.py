"""Whether our Triton kernels support some tensors, without importing triton, and helpers to launch them."""

import functools
import importlib.util
import logging
import os
import shutil
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from audio_mamba.models.ops.private_torch import constant_when_traced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

logger = logging.getLogger(__name__)


def unsupported_reason(*tensors: Tensor | None) -> str | None:
    """Why our Triton kernels do not support these tensors, as a sentence.

    Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported) runs kernels on CPU tensors. It is slow and
    meant for tests, so "auto" never takes it: see AUTO_DEVICES of the back ends.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    for tensor in present:
        if tensor.dtype not in DTYPES:
            return f"a tensor is {tensor.dtype}, not float32, bfloat16 or float16"
        if tensor.device != present[0].device:
            return f"the tensors are on {present[0].device} and {tensor.device}"
    device = present[0].device.type
    if interpreted() and device != "cpu":
        return f"the tensors are on {device}, and Triton's interpreter runs on the CPU"
    if not interpreted() and device != "cuda":
        return f"the tensors are on {device}, not on a CUDA device"
    return _unavailable_reason()


@constant_when_traced
def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Makes the tensor's device the current one: Triton launches kernels there."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def walk_start(sequence: Tensor, reverse: bool) -> Tensor:
    """[..., L, D] as the kernels get it: its address is that of the first step of the walk through time."""
    return sequence[..., -1:, :] if reverse else sequence


def walk_strides(sequence: Tensor | None, reverse: bool) -> tuple[int, int]:
    """Of batch and time of a sequence [B, L, D], the latter negative if the walk goes backward; 0 for an absent one."""
    if sequence is None:
        return 0, 0
    batch, time, _ = sequence.stride()
    return batch, -time if reverse else time


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


@constant_when_traced
def _unavailable_reason() -> str | None:
    if not _installed():
        return "the package triton is not installed"
    return None if interpreted() else _cannot_build_reason()


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _cannot_build_reason() -> str | None:
    """Why Triton could not launch a kernel on a GPU: it compiles a small C module of Python for that."""
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        reason = "Triton needs a C compiler, and there is no gcc, no clang and no CC"
    elif not (header.is_file() or os.environ.get("CPATH") or os.environ.get("C_INCLUDE_PATH")):
        reason = f"Triton needs Python's headers, and there is no {header}"
    else:
        return None
    logger.warning("no Triton kernels; other kernels are used instead, which may be much slower: %s", reason)
    return reason
