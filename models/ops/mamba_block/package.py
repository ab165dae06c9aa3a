"""A whole Mamba block by the fused function of the package mamba-ssm, if it is installed."""

import torch
from torch import Tensor

from audio_mamba.models.ops import packages
from audio_mamba.models.ops.calls import BlockCall, MambaParameters
from audio_mamba.models.ops.linear import linear
from audio_mamba.models.ops.selective_scan.package import MAX_STATES


def unsupported_reason(call: BlockCall) -> str | None:
    """Other devices, dtypes, states, taps or biases than the fused function has, or no such packages."""
    block = call.block
    if reason := packages.unsupported_tensors([call.hidden, block.A_log, block.conv1d.weight]):
        return reason
    if block.A_log.shape[1] > MAX_STATES:
        return f"there are more than {MAX_STATES} states per channel"
    if reason := packages.unsupported_taps(block.conv1d.weight.shape[-1], block.conv1d.bias):
        return reason
    if block.out_proj.bias is not None and torch.is_grad_enabled() and block.out_proj.bias.requires_grad:
        return "mamba-ssm sums the gradient of the output's bias over all its entries, which is wrong"
    return packages.incompatible_reason()


def mamba_block(hidden: Tensor, block: MambaParameters) -> Tensor:
    """See `models.mamba.Mamba`: hidden [B, L, D] -> [B, L, D]."""
    # The function copies its input unless time is contiguous. The product [2 E, D] x [D, B L] makes it so.
    xz = linear(block.in_proj.weight, hidden.flatten(0, 1))  # [2 E, B L]
    xz = xz.unflatten(1, hidden.shape[:2]).transpose(0, 1)  # [B, 2 E, L]
    if block.in_proj.bias is not None:
        xz = xz + block.in_proj.bias.to(xz.dtype)[:, None]
    return packages.module("mamba-ssm").mamba_inner_fn(
        xz,
        block.conv1d.weight,
        block.conv1d.bias,
        block.x_proj.weight,
        block.dt_proj.weight,
        block.out_proj.weight,
        block.out_proj.bias,
        -torch.exp(block.A_log.float()),
        None,
        None,
        block.D.float(),
        delta_bias=block.dt_proj.bias.float(),
        delta_softplus=True,
    )
