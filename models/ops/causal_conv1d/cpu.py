"""The causal convolution by the compiled kernels of native/csrc, registered as a torch operator.

An exported program may run where the kernels cannot; there the operator computes in plain PyTorch.
"""

import ctypes

import torch
from torch import Tensor

from audio_mamba.models.ops import native
from audio_mamba.models.ops.calls import ConvCall
from audio_mamba.models.ops.causal_conv1d import reference
from audio_mamba.models.ops.causal_conv1d.tensors import prepared, setup_context
from audio_mamba.models.ops.memory_layout import channels_adjacent
from audio_mamba.models.ops.native import View, pointer
from audio_mamba.models.ops.private_torch import unwatched

MAX_TAPS = 16  # as in csrc/causal_conv1d.c


def unsupported_reason(call: ConvCall) -> str | None:
    """Too many taps, or see `models.ops.native.unsupported_reason`."""
    if call.weight.shape[-1] > MAX_TAPS:
        return f"{call.weight.shape[-1]} taps are more than {MAX_TAPS}"
    return native.unsupported_reason(*call.tensors)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """See `models.ops.causal_conv1d`. The sums are float32 for every dtype."""
    weight, bias = weight.float(), bias if bias is None else bias.float()
    operator = forward_in_c if unwatched(x, weight, bias) else torch.ops.audio_mamba.causal_conv1d_cpu
    y = operator(x.transpose(1, 2), weight, bias, activation == "silu", reverse)
    return y.transpose(1, 2)  # [B, L, D] -> [B, D, L]


def forward_in_c(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool = False) -> Tensor:
    """x [B, L, D], float32 weight [D, K] and bias [D] -> [B, L, D] in x's dtype."""
    y = x.new_empty(x.shape)
    x, weight, bias = prepared(x, weight, bias)
    native.call(
        "causal_conv1d_forward",
        _Convolution(
            *x.shape,
            weight.shape[1],
            torch.get_num_threads(),
            silu,
            False,
            View.of(x, reverse),
            View.of(y, reverse),
            View(),
            View(),
            View(),
            pointer(weight),
            pointer(bias),
        ),
    )
    return y


def _in_pytorch(x, weight, bias, silu, reverse=False):
    """`forward_in_c` without the kernels."""
    y = reference.causal_conv1d(x.transpose(1, 2), weight, bias, "silu" if silu else None, reverse)
    return y.transpose(1, 2).contiguous()


_forward = torch.library.custom_op(
    "audio_mamba::causal_conv1d_cpu", native.or_in_pytorch(forward_in_c, _in_pytorch), mutates_args=()
)


@_forward.register_fake
def _(x, weight, bias, silu, reverse=False):
    return x.new_empty(x.shape)


def backward_in_c(
    dy: Tensor,
    more: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    dx: Tensor,
    add: bool = False,
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias; that of x is written to `dx` [B, L, D], whose channels are adjacent, or added
    to it with `add`.

    `more` [B, L, D] is added to dy.
    """
    d_weight, d_bias = weight.new_empty(len(x), *weight.shape), weight.new_empty(len(x), x.shape[-1])
    dy, more = channels_adjacent(dy), more if more is None else channels_adjacent(more)
    x, weight, bias = prepared(x, weight, bias)
    native.call(
        "causal_conv1d_backward",
        _Convolution(
            *x.shape,
            weight.shape[1],
            torch.get_num_threads(),
            silu,
            add,
            View.of(x, reverse),
            View(),
            View.of(dy, reverse),
            View.of(more, reverse),
            View.of(dx, reverse),
            pointer(weight),
            pointer(bias),
            pointer(d_weight),
            pointer(d_bias),
        ),
    )
    return d_weight.sum(0), d_bias.sum(0)


@torch.library.custom_op("audio_mamba::causal_conv1d_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    dx = x.new_empty(x.shape)
    return dx, *backward_in_c(dy, None, x, weight, bias, silu, reverse, dx)


@_backward.register_fake
def _(dy, x, weight, bias, silu, reverse=False):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(x.shape[-1])


def _autograd(ctx, dy):
    x, weight, bias = ctx.saved_tensors
    if native.unsupported_reason(x, weight) is None:
        operator = torch.ops.audio_mamba.causal_conv1d_cpu_backward
        dx, d_weight, d_bias = operator(dy, x, weight, bias, ctx.silu, ctx.reverse)
    else:
        dx, d_weight, d_bias = native.gradients_in_pytorch(
            lambda *tensors: (_in_pytorch(*tensors, ctx.silu, ctx.reverse),), (x, weight, bias), (dy,)
        )
    return dx, d_weight, None if bias is None else d_bias, None, None


_forward.register_autograd(_autograd, setup_context=setup_context)


class _Convolution(ctypes.Structure):
    """`Convolution` of csrc/causal_conv1d.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "taps", "threads", "silu", "add")),
        *((name, View) for name in ("x", "y", "dy", "more", "dx")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "d_weight", "d_bias")),
    ]
