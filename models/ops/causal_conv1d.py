"""Causal depthwise convolution along time, as in the Mamba block."""

import torch.nn.functional as F
from torch import Tensor

from audio_mamba.models.ops import causal_conv1d_cpu, published_kernels, triton_support


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """y_t = sum_k weight_k x_{t-K+1+k} + bias for each channel alone, then SiLU if asked for.

    x: [B, D, L]; weight: [D, K]; bias: [D]. Returns [B, D, L] in x's dtype. Compiled kernels serve CPU tensors where
    there are some; CUDA tensors are served by the package causal-conv1d where it is installed, else by our Triton
    kernels. Else the taps are added one by one, which beats conv1d for the few taps of Mamba and reads channels-last
    views at full speed. ValueError for an unknown activation.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d: activation must be None or 'silu', got {activation!r}")
    if causal_conv1d_cpu.why_not(x, weight, bias) is None:
        return causal_conv1d_cpu.causal_conv1d(x, weight, bias, activation == "silu")
    if x.is_cuda and _package_fits(x, weight, bias):
        return published_kernels.module("causal-conv1d").causal_conv1d_fn(x, weight, bias, activation=activation)
    if triton_support.why_not_on_cuda(x, weight, bias) is None:
        from audio_mamba.models.ops import conv1d_triton

        return conv1d_triton.causal_conv1d(x, weight, bias, activation == "silu")
    length, taps = x.shape[-1], weight.shape[-1]
    y = x * weight[:, -1:]
    for lag in range(1, min(taps, length)):
        y[..., lag:] += x[..., : length - lag] * weight[:, -1 - lag, None]
    if bias is not None:
        y = y + bias[:, None]
    y = y.to(x.dtype)
    return F.silu(y) if activation == "silu" else y


def _package_fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """2 to 4 taps with a bias, which its gradients want; channels-last views need strides in eights."""
    channels_last = x.stride(1) == 1 and x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0
    return (
        2 <= weight.shape[-1] <= 4
        and bias is not None
        and x.dtype in triton_support.DTYPES
        and (x.stride(2) == 1 or channels_last and x.shape[1] % 8 == 0)
        and published_kernels.why_not("causal-conv1d") is None
    )
