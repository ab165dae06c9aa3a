"""The causal convolution by Triton kernels of our own: with bias and SiLU, forward and backward, sums in float32.

A program takes a block of channels and a tile of time. Forward reads the tile once per tap, all but the first time from
cache; backward steps through it with the latest inputs and gradients in registers. So forward moves 2 numbers per
channel and step, and backward 3 (x, dy and dx). Backward leaves one partial gradient of weight and bias per tile; these
are summed afterwards in a fixed order.
"""

import torch
from torch import Tensor

from audio_mamba.models.ops import triton_support
from audio_mamba.models.ops.calls import ConvCall
from audio_mamba.models.ops.causal_conv1d.tensors import prepared, setup_context
from audio_mamba.models.ops.memory_layout import channels_adjacent
from audio_mamba.models.ops.private_torch import unwatched
from audio_mamba.models.ops.triton_support import walk_start, walk_strides

AUTO_DEVICES = ("cuda",)  # on the CPU runs Triton's interpreter, which is for tests
STEPS, BLOCK = 32, 64  # time steps and channels of a program
STEPS_BACK, GROUP = 64, 8  # time steps of a backward program, and how many of them it loads ahead


def unsupported_reason(call: ConvCall) -> str | None:
    """See `models.ops.triton_support.unsupported_reason`."""
    return triton_support.unsupported_reason(*call.tensors)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, reverse: bool = False
) -> Tensor:
    """See `models.ops.causal_conv1d`."""
    weight, bias = weight.float(), bias if bias is None else bias.float()
    operator = _forward_in_triton if unwatched(x, weight, bias) else torch.ops.audio_mamba.causal_conv1d_triton
    y = operator(x.transpose(1, 2), weight, bias, activation == "silu", reverse)
    return y.transpose(1, 2)  # [B, L, D] -> [B, D, L]


def _forward_in_triton(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool = False) -> Tensor:
    """x [B, L, D], weight [D, K] and bias [D] in float32 -> [B, L, D]."""
    from audio_mamba.models.ops.causal_conv1d import triton_kernels as kernels

    y = x.new_empty(x.shape)
    if x.numel():
        x, weight, bias = prepared(x, weight, bias)
        with triton_support.device_of(x):
            kernels.forward_kernel[_grid(x, STEPS)](
                walk_start(x, reverse),
                weight,
                bias,
                walk_start(y, reverse),
                *x.shape[1:],
                *walk_strides(x, reverse),
                SIGN=-1 if reverse else 1,
                TAPS=weight.shape[1],
                SILU=silu,
                STEPS=STEPS,
                BLOCK=BLOCK,
            )
    return y


_forward = torch.library.custom_op("audio_mamba::causal_conv1d_triton", _forward_in_triton, mutates_args=())


@_forward.register_fake
def _(x, weight, bias, silu, reverse=False):
    return x.new_empty(x.shape)


@torch.library.custom_op("audio_mamba::causal_conv1d_triton_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    from audio_mamba.models.ops.causal_conv1d import triton_kernels as kernels

    dx = x.new_empty(x.shape)
    (channels, taps), shares = weight.shape, len(x) * -(-x.shape[1] // STEPS_BACK)
    d_weight, d_bias = weight.new_empty(shares, taps, channels), weight.new_empty(shares, channels)
    if x.numel():
        dy, (x, weight, bias) = channels_adjacent(dy), prepared(x, weight, bias)
        with triton_support.device_of(x):
            kernels.backward_kernel[_grid(x, STEPS_BACK)](
                walk_start(dy, reverse),
                walk_start(x, reverse),
                weight,
                bias,
                walk_start(dx, reverse),
                d_weight,
                d_bias,
                *x.shape[1:],
                *walk_strides(dy, reverse),
                *walk_strides(x, reverse),
                SIGN=-1 if reverse else 1,
                TAPS=taps,
                SILU=silu,
                STEPS=STEPS_BACK,
                GROUP=GROUP,
                BLOCK=BLOCK,
                num_warps=1,
            )
    return dx, d_weight.sum(0).t().contiguous(), d_bias.sum(0)


@_backward.register_fake
def _(dy, x, weight, bias, silu, reverse=False):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _autograd(ctx, dy):
    x, weight, bias = ctx.saved_tensors
    operator = torch.ops.audio_mamba.causal_conv1d_triton_backward
    dx, d_weight, d_bias = operator(dy, x, weight, bias, ctx.silu, ctx.reverse)
    return dx, d_weight, None if bias is None else d_bias, None, None


_forward.register_autograd(_autograd, setup_context=setup_context)


def _grid(x, steps):
    batch, length, channels = x.shape
    return (batch * -(-length // steps) * -(-channels // BLOCK),)
