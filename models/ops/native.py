"""The compiled C kernels: loading them, and handing tensors to them through ctypes."""

import ctypes
import functools
import logging

import torch
from torch import Tensor

from audio_mamba.models.ops.build import BuildError, build, cache_directory
from audio_mamba.models.ops.tracing import constant_when_traced

logger = logging.getLogger(__name__)

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/tensor.h


def why_not(*tensors: Tensor) -> str | None:
    """The kernels serve CPU tensors of at most float32 precision, on a machine that could compile them."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device}, not on the CPU"
        if tensor.dtype not in TYPES:
            return f"a tensor is {tensor.dtype}, not float32, bfloat16 or float16"
    return _reason()


@constant_when_traced
def _reason() -> str | None:
    return _library_or_reason()[1]


@functools.cache
def _library_or_reason() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        return ctypes.CDLL(str(build(cache_directory()))), None
    except (RuntimeError, OSError, ImportError) as error:
        logger.warning("No compiled CPU kernels, so plain PyTorch serves instead (slower): %s", error)
        return None, str(error)


def call(name: str, *arguments: ctypes.Structure | int) -> int:
    """Call a kernel with structs and addresses. BuildError where there are no kernels."""
    library, reason = _library_or_reason()
    if reason:
        raise BuildError(reason)
    return getattr(library, name)(
        *(ctypes.byref(a) if isinstance(a, ctypes.Structure) else ctypes.c_void_p(a) for a in arguments)
    )


class View(ctypes.Structure):
    """`View` of csrc/tensor.h."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "time", "last", "type"))]

    @classmethod
    def of(cls, tensor: Tensor | None) -> "View":
        """Of a tensor [batch, time, last], or of an absent one."""
        return cls() if tensor is None else cls(tensor.data_ptr(), *tensor.stride(), TYPES[tensor.dtype])


def rows(tensor: Tensor) -> Tensor:
    """[batch, time, channels] with neighbouring channels side by side in memory, copied only if need be."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor's data."""
    return None if tensor is None else tensor.data_ptr()
