"""Add + norm in plain PyTorch."""

from torch import Tensor, nn

from audio_mamba.models.ops.calls import AddNormCall


def unsupported_reason(call: AddNormCall) -> None:
    """It supports every call."""


def add_norm(
    hidden: Tensor, residual: Tensor | None, norm: nn.LayerNorm | nn.RMSNorm, residual_in_fp32: bool = False
) -> tuple[Tensor, Tensor]:
    """See `models.ops.add_norm`."""
    residual = hidden if residual is None else residual + hidden
    residual = residual.float() if residual_in_fp32 else residual
    return norm(residual.to(norm.weight.dtype)), residual
