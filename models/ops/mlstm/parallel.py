"""The mLSTM cell as its equation reads, in any dtype up to float64: the ground truth of the tests."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6
LARGEST = 80.0  # exponent that float32 can hold; there the result is 0 for all purposes


def mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """See `models.ops.mlstm`. Without gradients two matrices [L, L] per head are in memory at a time."""
    length, width = q.shape[-2:]
    left = F.pad(F.logsigmoid(f).cumsum(-1), (1, 0))  # [B, H, 1 + L]
    left = left[..., None].expand(*left.shape, 1 + length)  # rounded as published, on the way back too
    D = (left - left.transpose(-2, -1))[..., 1:, 1:]  # [B, H, L, L]
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    D = D.masked_fill(future, -math.inf).add_(i[..., None, :])
    m = D.max(-1, keepdim=True).values  # [B, H, L, 1]
    C = (q @ (k / math.sqrt(width)).transpose(-1, -2)) * (D - m).exp_()
    n = torch.maximum(C.sum(-1, keepdim=True).abs(), torch.exp((-m).clamp(max=LARGEST)))
    return C / (n + EPSILON) @ v
