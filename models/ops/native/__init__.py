"""The compiled C kernels of csrc/: loading them, and passing tensors to them through ctypes."""

import ctypes
import functools
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from audio_mamba.models.ops.native.build import BuildError, build_library, cache_directory
from audio_mamba.models.ops.private_torch import constant_when_traced

logger = logging.getLogger(__name__)

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as in csrc/tensor.h


def unsupported_reason(*tensors: Tensor) -> str | None:
    """Why the kernels do not support these tensors, as a sentence.

    They read CPU tensors of at most float32 precision, on a machine that could compile them.
    """
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"a tensor is on {tensor.device}, not on the CPU"
        if tensor.dtype not in TYPES:
            return f"a tensor is {tensor.dtype}, not float32, bfloat16 or float16"
    return _unavailable_reason()


@constant_when_traced
def _unavailable_reason() -> str | None:
    return _library_or_reason()[1]


@functools.cache
def _library_or_reason() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        return ctypes.CDLL(str(build_library(cache_directory()))), None
    except (RuntimeError, OSError, ImportError) as error:
        logger.warning("no compiled CPU kernels; plain PyTorch is used instead, which is slower: %s", error)
        return None, str(error)


def or_in_pytorch(kernel: Callable, plain: Callable) -> Callable:
    """`kernel`, but `plain` for tensors that the kernels do not support.

    For operators: an exported program calls them on whatever device and machine it is loaded.
    """

    @functools.wraps(kernel)
    def operator(*arguments):
        reason = unsupported_reason(*(a for a in arguments if isinstance(a, Tensor)))
        return (kernel if reason is None else plain)(*arguments)

    return operator


def gradients_in_pytorch(
    plain: Callable, tensors: Sequence[Tensor | None], d_outputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of the tensors from those of the outputs of plain(*tensors)."""
    leaves = [t if t is None else t.detach().requires_grad_() for t in tensors]
    with torch.enable_grad():
        outputs = plain(*leaves)
    d_outputs = [torch.zeros_like(y) if dy is None else dy for y, dy in zip(outputs, d_outputs, strict=True)]
    found = iter(torch.autograd.grad(outputs, [t for t in leaves if t is not None], d_outputs))
    return [t if t is None else next(found) for t in leaves]


def call(name: str, *arguments: ctypes.Structure | int) -> int:
    """Calls a kernel with structs and addresses. BuildError if the kernels could not be compiled or loaded."""
    library, reason = _library_or_reason()
    if library is None:
        raise BuildError(reason)
    return getattr(library, name)(
        *(ctypes.byref(a) if isinstance(a, ctypes.Structure) else ctypes.c_void_p(a) for a in arguments)
    )


class View(ctypes.Structure):
    """`View` of csrc/tensor.h."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "time", "last", "type"))]

    @classmethod
    def of(cls, tensor: Tensor | None, reverse: bool = False) -> "View":
        """The view of a tensor [batch, time, last], in `reverse` from its last time step to its first.

        None gives the view of an absent tensor.
        """
        if tensor is None:
            return cls()
        (batch, time, last), start = tensor.stride(), tensor.data_ptr()
        if reverse:
            start, time = start + (tensor.shape[1] - 1) * time * tensor.element_size(), -time
        return cls(start, batch, time, last, TYPES[tensor.dtype])


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a tensor's data."""
    return None if tensor is None else tensor.data_ptr()
