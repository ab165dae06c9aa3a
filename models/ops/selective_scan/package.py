"""The selective scan by the CUDA kernels of the package mamba-ssm, if it is installed."""

import math

from torch import Tensor

from audio_mamba.models.ops import packages
from audio_mamba.models.ops.calls import ScanCall

MAX_STATES = 256


def unsupported_reason(call: ScanCall) -> str | None:
    """Other devices, dtypes or states than the package's kernels have, reversed time, a gradient that it lacks, or no
    such package."""
    if call.reverse:
        return "the package mamba-ssm does not walk backward in time"
    if reason := packages.unsupported_tensors(call.tensors):
        return reason
    if call.A.shape[1] > MAX_STATES:
        return f"there are more than {MAX_STATES} states per channel"
    if call.return_last_state and call.needs_gradient:
        return "the package mamba-ssm computes no gradient of the last state; call it under torch.no_grad()"
    return packages.unavailable_reason("mamba-ssm")


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `models.ops.selective_scan`. The last state has no gradient."""
    groups = math.lcm(*(t.shape[1] for t in (B, C) if t.dim() == 4))
    B, C = (_in_groups(t, groups).to(u.dtype) for t in (B, C))  # the package takes one number of groups for both
    z = z if z is None else z.to(u.dtype)
    D, delta_bias = (t if t is None else t.float() for t in (D, delta_bias))
    function = packages.module("mamba-ssm").selective_scan_fn
    return function(u, delta.to(u.dtype), A.float(), B, C, D, z, delta_bias, delta_softplus, return_last_state)


def _in_groups(matrix: Tensor, groups: int) -> Tensor:
    """B or C as [B, N, L] or [B, G', N, L] with G' dividing G -> the same or [B, G, N, L]."""
    if groups == 1:
        return matrix
    matrix = matrix if matrix.dim() == 4 else matrix[:, None]
    return matrix.repeat_interleave(groups // matrix.shape[1], dim=1)
