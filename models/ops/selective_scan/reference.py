"""The selective scan as the equation reads, one time step after another: the ground truth of the tests."""

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_mamba.models.ops.calls import ScanCall


def unsupported_reason(call: ScanCall) -> None:
    """It supports every call."""


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
    """See `models.ops.selective_scan`. Autograd keeps every state: memory O(B D L N)."""
    if reverse:
        u, delta, B, C = (t.flip(-1) for t in (u, delta, B, C))
        z = z if z is None else z.flip(-1)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, delta, A, B, C = (t.to(dtype) for t in (u, delta, A, B, C))
    B, C = (_per_channel(t, u.shape[1]) for t in (B, C))  # [B, D, N, L] each
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        delta = F.softplus(delta)

    state, outputs = x.new_zeros(x.shape[0], *A.shape), []  # [B, D, N]
    for x_t, delta_t, B_t, C_t in zip(*(t.unbind(-1) for t in (x, delta, B, C))):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * x_t)[..., None] * B_t
        outputs.append((C_t * state).sum(-1))
    y = torch.stack(outputs, dim=-1) if outputs else torch.zeros_like(x)  # [B, D, L]

    if D is not None:
        y = y + D.to(dtype)[:, None] * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    y = y.to(u.dtype).flip(-1) if reverse else y.to(u.dtype)
    return (y, state) if return_last_state else y


def _per_channel(matrix: Tensor, channels: int) -> Tensor:
    """B or C as [B, N, L] or [B, G, N, L] -> one row per channel, [B, D, N, L]."""
    if matrix.dim() == 3:
        matrix = matrix[:, None]
    return matrix.repeat_interleave(channels // matrix.shape[1], dim=1)
