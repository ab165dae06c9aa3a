"""The causal convolution by Triton kernels: depthwise, with bias and SiLU, forward and backward, sums in float32.

A program takes a block of channels and a tile of time. Forward reads the tile once per tap, all but the first from
cache; backward walks through it with the last inputs and gradients in registers. So forward moves 2 numbers per channel
and step, and backward 3 (x, dy and dx). Backward leaves one share of the gradients of weight and bias per tile, summed
after in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from audio_mamba.models.ops.native import rows
from audio_mamba.models.ops.triton_support import device_of

STEPS, BLOCK = 32, 64  # a program's time and channels
STEPS_BACK, GROUP = 64, 8  # those of backward, which loads GROUP of them ahead


@triton.jit
def _load(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _place(length, channels, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """The program's batch entry, times [STEPS, 1] and channels [1, BLOCK]."""
    program, blocks, tiles = tl.program_id(0), tl.cdiv(channels, BLOCK), tl.cdiv(length, STEPS)
    share = program // blocks
    t = share % tiles * STEPS + tl.arange(0, STEPS)
    return (
        (share // tiles).to(tl.int64),
        t.to(tl.int64)[:, None],
        (program % blocks * BLOCK + tl.arange(0, BLOCK))[None, :],
    )


@triton.jit
def _convolve(x_ptr, x_time, weight_ptr, bias_ptr, t, d, length, channels, TAPS: tl.constexpr):
    """What enters SiLU at times t, 0 outside."""
    inside = (t >= 0) & (t < length) & (d < channels)
    total = tl.zeros(inside.shape, dtype=tl.float32)
    if bias_ptr is not None:
        total += _load(bias_ptr + d, d < channels)
    for tap in tl.static_range(TAPS):
        source = t - (TAPS - 1 - tap)
        weight = _load(weight_ptr + d * TAPS + tap, d < channels)
        total += weight * _load(x_ptr + source * x_time + d, inside & (source >= 0))
    return tl.where(inside, total, 0.0)


@triton.jit
def forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    length,
    channels,
    x_batch,
    x_time,
    TAPS: tl.constexpr,
    SILU: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch, t, d = _place(length, channels, STEPS, BLOCK)
    y = _convolve(x_ptr + batch * x_batch, x_time, weight_ptr, bias_ptr, t, d, length, channels, TAPS)
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(
        y_ptr + (batch * length + t) * channels + d, y.to(y_ptr.dtype.element_ty), mask=(t < length) & (d < channels)
    )


@triton.jit
def backward_kernel(
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    dx_ptr,
    d_weight_ptr,
    d_bias_ptr,
    length,
    channels,
    dy_batch,
    dy_time,
    x_batch,
    x_time,
    TAPS: tl.constexpr,
    SILU: tl.constexpr,
    STEPS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Walks back through the tile's time. `recent` are the inputs x_t, x_{t-1}, ... and `later` the gradients of what
    enters SiLU at t, t + 1, ..., of which a step adds one each. It begins TAPS - 1 steps after the tile."""
    blocks, tiles = tl.cdiv(channels, BLOCK), tl.cdiv(length, STEPS)
    share = tl.program_id(0) // blocks
    batch, first = (share // tiles).to(tl.int64), share % tiles * STEPS
    d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    used = d < channels
    dy_ptr += batch * dy_batch
    x_ptr += batch * x_batch
    bias = tl.zeros([BLOCK], dtype=tl.float32) if bias_ptr is None else _load(bias_ptr + d, used)
    end = tl.minimum(first + STEPS, length)
    last = tl.minimum(end + TAPS - 1, length) - 1
    weights, recent, later, d_weights = (), (), (), ()  # by lag: the weight of x_{t-1} in the output t comes second
    for lag in tl.static_range(TAPS):
        weights = weights + (_load(weight_ptr + d * TAPS + TAPS - 1 - lag, used),)
        at = (last + 1 - lag).to(tl.int64)
        recent = recent + (_load(x_ptr + at * x_time + d, used & (at >= 0) & (at < length)),)
        later = later + (tl.zeros([BLOCK], dtype=tl.float32),)
        d_weights = d_weights + (tl.zeros([BLOCK], dtype=tl.float32),)
    d_bias = tl.zeros([BLOCK], dtype=tl.float32)
    for group in range(tl.cdiv(last + 1 - first, GROUP)):
        begin = last - group * GROUP
        dys, xs = (), ()
        for i in tl.static_range(GROUP):
            t = (begin - i).to(tl.int64)
            oldest = t - (TAPS - 1)
            dys = dys + (_load(dy_ptr + t * dy_time + d, used & (t >= first)),)
            xs = xs + (_load(x_ptr + oldest * x_time + d, used & (oldest >= 0)),)
        for i in tl.static_range(GROUP):
            t = (begin - i).to(tl.int64)
            inputs, total = (), bias
            for lag in tl.static_range(TAPS):
                inputs = inputs + (recent[lag + 1] if lag + 1 < TAPS else xs[i],)
                total += weights[lag] * inputs[lag]
            gradient = dys[i]
            if SILU:
                gate = tl.sigmoid(total)
                gradient *= gate * (1.0 + total * (1.0 - gate))
            own = (t >= first) & (t < end)
            x = tl.where(own, inputs[0], 0.0)
            d_bias += tl.where(own, gradient, 0.0)
            gradients, d_weights_more, dx = (), (), tl.zeros([BLOCK], dtype=tl.float32)
            for lag in tl.static_range(TAPS):
                gradients = gradients + (gradient if lag == 0 else later[lag - 1],)
                dx += weights[lag] * gradients[lag]
                d_weights_more = d_weights_more + (d_weights[lag] + x * gradients[lag],)
            recent, later, d_weights = inputs, gradients, d_weights_more
            tl.store(dx_ptr + (batch * length + t) * channels + d, dx.to(dx_ptr.dtype.element_ty), mask=used & own)
    for lag in tl.static_range(TAPS):
        row = share.to(tl.int64) * TAPS + TAPS - 1 - lag
        tl.store(d_weight_ptr + row * channels + d, d_weights[lag], mask=used)
    tl.store(d_bias_ptr + share.to(tl.int64) * channels + d, d_bias, mask=used)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """See `models.ops.causal_conv1d`."""
    bias = bias if bias is None else bias.float()
    y = torch.ops.audio_mamba.causal_conv1d_triton(x.transpose(1, 2), weight.float(), bias, silu)
    return y.transpose(1, 2)  # [B, L, D] -> [B, D, L]


@torch.library.custom_op("audio_mamba::causal_conv1d_triton", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """x [B, L, D], weight [D, K] and bias [D] in float32 -> [B, L, D]."""
    y = x.new_empty(x.shape)
    if x.numel():
        x, weight, bias = _prepare(x, weight, bias)
        with device_of(x):
            forward_kernel[_grid(x, STEPS)](
                x,
                weight,
                bias,
                y,
                *x.shape[1:],
                *x.stride()[:2],
                TAPS=weight.shape[1],
                SILU=silu,
                STEPS=STEPS,
                BLOCK=BLOCK,
            )
    return y


@_forward.register_fake
def _(x, weight, bias, silu):
    return x.new_empty(x.shape)


@torch.library.custom_op("audio_mamba::causal_conv1d_triton_backward", mutates_args=())
def _backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    dx = x.new_empty(x.shape)
    (channels, taps), shares = weight.shape, len(x) * -(-x.shape[1] // STEPS_BACK)
    d_weight, d_bias = weight.new_empty(shares, taps, channels), weight.new_empty(shares, channels)
    if x.numel():
        dy, (x, weight, bias) = rows(dy), _prepare(x, weight, bias)
        with device_of(x):
            backward_kernel[_grid(x, STEPS_BACK)](
                dy,
                x,
                weight,
                bias,
                dx,
                d_weight,
                d_bias,
                *x.shape[1:],
                *dy.stride()[:2],
                *x.stride()[:2],
                TAPS=taps,
                SILU=silu,
                STEPS=STEPS_BACK,
                GROUP=GROUP,
                BLOCK=BLOCK,
                num_warps=1,
            )
    return dx, d_weight.sum(0).t().contiguous(), d_bias.sum(0)


@_backward.register_fake
def _(dy, x, weight, bias, silu):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _setup_context(ctx, inputs, output):
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx, dy):
    x, weight, bias = ctx.saved_tensors
    dx, d_weight, d_bias = torch.ops.audio_mamba.causal_conv1d_triton_backward(dy, x, weight, bias, ctx.silu)
    return dx, d_weight, None if bias is None else d_bias, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _prepare(x, weight, bias):
    return rows(x), weight.contiguous(), bias if bias is None else bias.contiguous()


def _grid(x, steps):
    batch, length, channels = x.shape
    return (batch * -(-length // steps) * -(-channels // BLOCK),)
