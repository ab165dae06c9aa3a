"""Whether Triton kernels can serve tensors, found out without importing triton, and how they are launched."""

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from audio_mamba.models.ops.tracing import constant_when_traced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(*tensors: Tensor | None) -> str | None:
    """The reason why our Triton kernels cannot serve these tensors, as a sentence.

    Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported) serves CPU tensors. It is slow and meant
    for tests, so that nothing chooses it for a CPU by itself.
    """
    tensors = [t for t in tensors if t is not None]
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"a tensor is {tensor.dtype}, not float32, bfloat16 or float16"
        if tensor.device != tensors[0].device:
            return f"the tensors are on {tensors[0].device} and {tensor.device}"
    device = tensors[0].device.type
    if device != ("cpu" if interpreted() else "cuda"):
        return f"the tensors are on {device}, " + (
            "and Triton's interpreter serves the CPU" if interpreted() else "not on a CUDA device"
        )
    return None if _installed() else "the package triton is not installed"


def why_not_on_cuda(*tensors: Tensor | None) -> str | None:
    """`why_not` for those who choose a kernel by themselves: no interpreter."""
    if tensors[0].device.type != "cuda":
        return f"the tensors are on {tensors[0].device}, not on a CUDA device"
    return why_not(*tensors)


@constant_when_traced
def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Makes the tensor's device the current one, where Triton launches its kernels."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@constant_when_traced
def _installed() -> bool:
    return _spec_found()


@functools.cache
def _spec_found() -> bool:
    return importlib.util.find_spec("triton") is not None
