"""How kernels stay cheap where nobody watches, and visible to torch.compile, autograd and their like where they do."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def constant_when_traced(function: Callable) -> Callable:
    """What `torch.compiler.assume_constant_result` does: the function runs at tracing, and its result is a constant.

    That one imports the whole compiler, a second and a half at the start of every command.
    """
    function._dynamo_marked_constant = True
    return function


def untraced(*tensors: Tensor | None) -> bool:
    """Whether these are plain tensors, and nothing traces or transforms the code."""
    if (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack()
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return False
    return all(t is None or type(t) in (Tensor, nn.Parameter) for t in tensors)


def unwatched(*tensors: Tensor | None) -> bool:
    """Whether a call may go straight to a kernel instead of through the torch operator around it: plain tensors, no
    gradients, nothing that traces or transforms. That saves tens of microseconds each time and, at the first time, the
    import of the compiler."""
    grad = torch.is_grad_enabled()
    return untraced(*tensors) and not (grad and any(t is not None and t.requires_grad for t in tensors))


def has_onednn_product() -> bool:
    """Whether `onednn_product` is there."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of float32 CPU tensors by oneDNN, without gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
