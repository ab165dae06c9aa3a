"""The private parts of torch that the operators use, each with a public fall-back for a torch without it."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable)


def constant_when_traced(function: Function) -> Function:
    """Makes torch.compile run the function while it traces, and take the result as a constant.

    `torch.compiler.assume_constant_result` is the public way. It imports the whole compiler, which takes 1.5 s at the
    start of every command, only to set the mark that is set here.
    """
    if not _compiler_knows_the_mark():
        return torch.compiler.assume_constant_result(function)
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@functools.cache
def _compiler_knows_the_mark() -> bool:
    source = Path(torch.__file__).parent / "_dynamo" / "decorators.py"
    return source.exists() and b"fn._dynamo_marked_constant = True" in source.read_bytes()


def untraced(*tensors: Tensor | None) -> bool:
    """Whether these are plain tensors and nothing traces or transforms the code. False in a torch that cannot tell."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    try:
        if (
            torch._C._len_torch_dispatch_stack()
            or torch._C._functorch.peek_interpreter_stack()
            or forward_ad._current_level >= 0
        ):
            return False
    except AttributeError:
        return False
    return all(t is None or type(t) in (Tensor, nn.Parameter) for t in tensors)


def unwatched(*tensors: Tensor | None) -> bool:
    """Whether a call may go straight to a kernel instead of through the torch operator that wraps it.

    True for plain tensors without gradients, while nothing traces or transforms the code. It saves tens of microseconds
    per call, and the import of the compiler at the first call. In a torch that cannot tell, the answer is False: the
    operator gives the same numbers.
    """
    grad = torch.is_grad_enabled()
    return untraced(*tensors) and not (grad and any(t is not None and t.requires_grad for t in tensors))


@constant_when_traced
def forward_mode() -> bool:
    """Whether derivatives are being computed in forward mode, as in `torch.func.jvp`."""
    try:
        return forward_ad._current_level >= 0
    except AttributeError:
        with contextlib.suppress(RuntimeError):  # outside of forward mode
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
            return True
        return False


def has_onednn_linear() -> bool:
    """Whether `onednn_linear` uses oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of float32 CPU tensors by oneDNN, without gradients; by `F.linear` itself in a torch without it."""
    if not has_onednn_linear():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
