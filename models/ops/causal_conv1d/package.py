"""The causal convolution by the CUDA kernels of the package causal-conv1d, if it is installed."""

from torch import Tensor

from audio_mamba.models.ops import packages
from audio_mamba.models.ops.calls import ConvCall


def unsupported_reason(call: ConvCall) -> str | None:
    """Other devices, dtypes, taps or strides than the package's kernels have, reversed time, or no such package."""
    x = call.x
    if call.reverse:
        return "the package causal-conv1d does not walk backward in time"
    if reason := packages.unsupported_tensors([x]) or packages.unsupported_taps(call.weight.shape[-1], call.bias):
        return reason
    channels_last = x.stride(1) == 1 and x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0 and x.shape[1] % 8 == 0
    if x.stride(2) != 1 and not channels_last:
        return f"causal-conv1d needs contiguous time or channels-last strides in multiples of 8, not {x.stride()}"
    return packages.unavailable_reason("causal-conv1d")


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """See `models.ops.causal_conv1d`."""
    return packages.module("causal-conv1d").causal_conv1d_fn(x, weight, bias, activation=activation)
