"""The scan group by group, for kernels that take channels-last sequences and one group of B and C [B, L, N]."""

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
