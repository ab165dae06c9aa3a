"""What the scans by kernels of our own share: the scan group by group, since a kernel takes channels-last sequences and
one group of B and C [B, L, N], and the gradients of their operators."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def scan_by_group(
    operator: Callable[..., tuple[Tensor, ...]],
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """y [B, D, L] and the last state [B, D, N] for the arguments of `models.ops.selective_scan`.

    operator(u, delta, A, B, C, D, z, delta_bias, softplus, save, reverse) takes u, delta, z [B, L, D] and B, C
    [B, L, N]; `save` asks it to keep what backward needs. It returns y [B, L, D], the last state [B, N, D] and more.
    """
    groups = math.lcm(*(t.shape[1] for t in (B, C) if t.dim() == 4))
    parts = _split(u, delta, A, B, C, D, z, delta_bias, groups)
    results = [_call(operator, part, softplus, reverse) for part in parts]
    y, last = (torch.cat(part, dim=1) if groups > 1 else part[0] for part in zip(*results))
    return y, last


def _split(u, delta, A, B, C, D, z, delta_bias, groups) -> Iterable[tuple]:
    """The same arguments for the channels of each group, with B and C [B, N, L]."""
    if groups == 1:
        B, C = (t if t.dim() == 3 else t.squeeze(1) for t in (B, C))
        return [(u, delta, A, B, C, D, z, delta_bias)]
    of_channels = [
        groups * [None] if t is None else t.chunk(groups, dim)
        for t, dim in ((u, 1), (delta, 1), (A, 0), (D, 0), (z, 1), (delta_bias, 0))
    ]
    u, delta, A, D, z, delta_bias = of_channels
    B, C = ([t if t.dim() == 3 else t[:, group * t.shape[1] // groups] for group in range(groups)] for t in (B, C))
    return zip(u, delta, A, B, C, D, z, delta_bias)


def _call(operator, tensors, softplus, reverse) -> tuple[Tensor, Tensor]:
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    u, delta, A, B, C, D, z, delta_bias = tensors
    u, delta, B, C = (t.transpose(1, 2) for t in (u, delta, B, C))
    z = z if z is None else z.transpose(1, 2)
    y, last, *_ = operator(u, delta, A, B, C, D, z, delta_bias, softplus, save, reverse)
    return y.transpose(1, 2), last.transpose(1, 2)


def register_gradients(forward: torch.library.CustomOpDef, backward: Callable[..., tuple[Tensor, ...]]) -> None:
    """Let autograd take the gradients of an operator as in `scan_by_group` from another one.

    Args:
        forward: returns y, the last state and what backward needs.
        backward: (dy, gradient of the last state or None, what forward kept, u, delta, A, B, C, D, z, delta_bias,
            softplus, reverse) -> the gradients of the eight tensors, of which those of absent ones are not used.
    """

    def setup_context(ctx, inputs, output):
        *tensors, ctx.softplus, ctx.saved, ctx.reverse = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[2], *tensors)

    def gradients(ctx, dy, d_last, _):
        kept, *tensors = ctx.saved_tensors
        if dy is None:
            dy = torch.zeros_like(tensors[0])
        if not ctx.saved:  # in a program that was exported without gradients
            kept = forward(*tensors, ctx.softplus, True, ctx.reverse)[2]
        grads = backward(dy, d_last, kept, *tensors, ctx.softplus, ctx.reverse)
        return *(None if t is None else grad for t, grad in zip(tensors, grads, strict=True)), None, None, None

    forward.register_autograd(gradients, setup_context=setup_context)
