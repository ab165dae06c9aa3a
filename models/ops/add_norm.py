"""Add to the residual stream and normalise: the step between two Mamba blocks, in one kernel where there is one."""

from torch import Tensor, nn

from audio_mamba.models.ops import triton_support


def add_norm(
    hidden: Tensor, residual: Tensor | None, norm: nn.LayerNorm | nn.RMSNorm, residual_in_fp32: bool, fused: bool
) -> tuple[Tensor, Tensor]:
    """residual + hidden, in float32 if asked for, and its norm in the dtype of the norm's weight, all [B, L, D].

    `fused` allows a Triton kernel for CUDA tensors, which gives the norm in the dtype of autocast where that is on.
    Returns (normalised, residual).
    """
    if fused and triton_support.why_not_on_cuda(hidden, residual, norm.weight) is None:
        from audio_mamba.models.ops import add_norm_triton

        return add_norm_triton.add_norm(hidden, residual, norm, residual_in_fp32)
    residual = hidden if residual is None else residual + hidden
    residual = residual.float() if residual_in_fp32 else residual
    return norm(residual.to(norm.weight.dtype)), residual
