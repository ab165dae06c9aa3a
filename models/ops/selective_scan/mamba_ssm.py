"""The selective scan by the CUDA kernels of the package mamba-ssm, where it is installed."""

import math

import torch
from torch import Tensor

from audio_mamba.models.ops import published_kernels

MAX_STATES = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(*tensors: Tensor) -> str | None:
    """The reason why the package cannot serve these tensors, as a sentence."""
    for tensor in tensors:
        if tensor.device.type != "cuda":
            return f"a tensor is on {tensor.device}, not on a CUDA device"
        if tensor.dtype not in DTYPES:
            return f"a tensor is {tensor.dtype}, not float32, bfloat16 or float16"
    if any(tensor.dim() == 2 and tensor.shape[1] > MAX_STATES for tensor in tensors):  # A
        return f"there are more than {MAX_STATES} states per channel"
    return published_kernels.why_not("mamba-ssm")


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
) -> Tensor | tuple[Tensor, Tensor]:
    """See `models.ops.selective_scan`. RuntimeError for a gradient of the last state, which the package leaves out."""
    if (
        return_last_state
        and torch.is_grad_enabled()
        and any(t is not None and t.requires_grad for t in (u, delta, A, B, C, D, z, delta_bias))
    ):
        raise RuntimeError(
            "selective_scan: the package mamba-ssm gives no gradient of the last state; "
            "call under torch.no_grad() or name another back end"
        )
    groups = math.lcm(*(t.shape[1] for t in (B, C) if t.dim() == 4))
    B, C = (_in_groups(t, groups) for t in (B, C))  # the package takes one number of groups for both
    delta, B, C, z = (t if t is None else t.to(u.dtype) for t in (delta, B, C, z))
    A, D, delta_bias = (t if t is None else t.float() for t in (A, D, delta_bias))
    function = published_kernels.module("mamba-ssm").selective_scan_fn
    return function(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def _in_groups(matrix: Tensor, groups: int) -> Tensor:
    """B or C as [B, N, L] or [B, G', N, L] with G' dividing G -> the same or [B, G, N, L]."""
    if groups == 1:
        return matrix
    matrix = matrix if matrix.dim() == 4 else matrix[:, None]
    return matrix.repeat_interleave(groups // matrix.shape[1], dim=1)
