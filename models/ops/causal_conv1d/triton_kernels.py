# mypy: disable-error-code="assignment, misc, var-annotated"
# Triton compiles these functions: in them, tuples grow, and ranges are unrolled.
"""Triton kernels of the causal convolution; `triton` launches them and says how they divide their work.

Time t counts the steps of the walk. Where it goes backward, SIGN is -1, the addresses of sequences are those of their
last step, and the strides of time are negative.
"""

import triton
import triton.language as tl


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
    SIGN: tl.constexpr,
    TAPS: tl.constexpr,
    SILU: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    batch, t, d = _place(length, channels, STEPS, BLOCK)
    y = _convolve(x_ptr + batch * x_batch, x_time, weight_ptr, bias_ptr, t, d, length, channels, TAPS)
    if SILU:
        y *= tl.sigmoid(y)
    out = (batch * length + SIGN * t) * channels + d
    tl.store(y_ptr + out, y.to(y_ptr.dtype.element_ty), mask=(t < length) & (d < channels))


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
    SIGN: tl.constexpr,
    TAPS: tl.constexpr,
    SILU: tl.constexpr,
    STEPS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Steps back through the tile's time, from TAPS - 1 steps after it. `recent` are the inputs x_t, x_{t-1}, ... and
    `later` the gradients of what enters SiLU at t, t + 1, ...; each step adds one to both."""
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
            out = (batch * length + SIGN * t) * channels + d
            tl.store(dx_ptr + out, dx.to(dx_ptr.dtype.element_ty), mask=used & own)
    for lag in tl.static_range(TAPS):
        row = share.to(tl.int64) * TAPS + TAPS - 1 - lag
        tl.store(d_weight_ptr + row * channels + d, d_weights[lag], mask=used)
    tl.store(d_bias_ptr + share.to(tl.int64) * channels + d, d_bias, mask=used)
