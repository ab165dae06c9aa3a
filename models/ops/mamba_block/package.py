"""A whole Mamba block by the fused function of the package mamba-ssm, if it is installed."""

import torch
from torch import Tensor

from audio_mamba.models.ops import packages
from audio_mamba.models.ops.calls import BlockCall, MambaParameters
from audio_mamba.models.ops.linear import linear
from audio_mamba.models.ops.selective_scan.package import MAX_STATES


def unsupported_reason(call: BlockCall) -> str | None:
    """Other devices, dtypes, states, taps or biases than the fused function has, reversed time, or no such packages."""
    block, (path, *others) = call.block, call.block.paths
    if others or path.reverse:
        return "the package mamba-ssm does not walk backward in time"
    if reason := packages.unsupported_tensors([call.hidden, path.A_log, path.conv1d.weight]):
        return reason
    if path.A_log.shape[1] > MAX_STATES:
        return f"there are more than {MAX_STATES} states per channel"
    if reason := packages.unsupported_taps(path.conv1d.weight.shape[-1], path.conv1d.bias):
        return reason
    if block.out_proj.bias is not None and torch.is_grad_enabled() and block.out_proj.bias.requires_grad:
        return "mamba-ssm sums the gradient of the output's bias over all its entries, which is wrong"
    return packages.incompatible_reason()


def mamba_block(hidden: Tensor, block: MambaParameters) -> Tensor:
    """See `models.mamba.Mamba`: hidden [B, L, D] -> [B, L, D]."""
    (path,) = block.paths
    # The function copies its input unless time is contiguous. The product [2 E, D] x [D, B L] makes it so.
    xz = linear(block.in_proj.weight, hidden.flatten(0, 1))  # [2 E, B L]
    xz = xz.unflatten(1, hidden.shape[:2]).transpose(0, 1)  # [B, 2 E, L]
    if block.in_proj.bias is not None:
        xz = xz + block.in_proj.bias.to(xz.dtype)[:, None]
    return packages.module("mamba-ssm").mamba_inner_fn(
        xz,
        path.conv1d.weight,
        path.conv1d.bias,
        path.x_proj.weight,
        path.dt_proj.weight,
        block.out_proj.weight,
        block.out_proj.bias,
        -torch.exp(path.A_log.float()),
        None,
        None,
        path.D.float(),
        delta_bias=path.dt_proj.bias.float(),
        delta_softplus=True,
    )
