"""The inside of a Mamba block in one call: the fused function of the package mamba-ssm, where it is installed."""

import torch
from torch import Tensor

from audio_mamba.models.ops import published_kernels
from audio_mamba.models.ops.selective_scan import mamba_ssm


def why_not(
    hidden: Tensor, A: Tensor, conv_weight: Tensor, conv_bias: Tensor | None, out_bias: Tensor | None
) -> str | None:
    """The reason why the fused function cannot serve a block's hidden [B, L, D], A [E, N], taps [E, 1, K] and their
    bias, and the bias of its output."""
    if reason := mamba_ssm.why_not(hidden, A, conv_weight):
        return reason
    if not 2 <= conv_weight.shape[-1] <= 4:
        return f"the package causal-conv1d has kernels for 2 to 4 taps, not {conv_weight.shape[-1]}"
    if conv_bias is None:
        return "the gradients of causal-conv1d want a bias"
    if out_bias is not None and torch.is_grad_enabled() and out_bias.requires_grad:
        return "the package mamba-ssm has no gradient of the output's bias"  # but the sum of all its entries
    return published_kernels.why_not_together()


def mamba_inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    out_proj: Tensor,
    out_bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """Convolution, scan, gate and output of a Mamba block.

    xz: [B, 2 E, L], the scan's branch and the gate's, copied unless time is contiguous; conv_weight: [E, 1, K];
    x_proj: [R + 2 N, E]; dt_proj: [E, R]; out_proj: [D, E]; A: [E, N]; D, delta_bias: [E]. Returns [B, L, D].
    """
    function = published_kernels.module("mamba-ssm").mamba_inner_fn
    return function(
        xz,
        conv_weight,
        conv_bias,
        x_proj,
        dt_proj,
        out_proj,
        out_bias,
        A,
        None,
        None,
        D.float(),
        delta_bias=delta_bias.float(),
        delta_softplus=True,
    )
