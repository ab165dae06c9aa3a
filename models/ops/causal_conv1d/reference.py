"""The causal convolution in plain PyTorch.

The taps are added one by one. For the few taps of Mamba this is faster than conv1d, and it reads channels-last views at
full speed.
"""

import torch.nn.functional as F
from torch import Tensor

from audio_mamba.models.ops.calls import ConvCall


def unsupported_reason(call: ConvCall) -> None:
    """It supports every call."""


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """See `models.ops.causal_conv1d`."""
    if reverse:
        return causal_conv1d(x.flip(-1), weight, bias, activation).flip(-1)
    length, taps = x.shape[-1], weight.shape[-1]
    y = x * weight[:, -1:]
    for lag in range(1, min(taps, length)):
        y[..., lag:] += x[..., : length - lag] * weight[:, -1 - lag, None]
    if bias is not None:
        y = y + bias[:, None]
    y = y.to(x.dtype)
    return F.silu(y) if activation == "silu" else y
