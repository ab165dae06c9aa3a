# mypy: disable-error-code="assignment, misc, var-annotated"
# Triton compiles these functions: in them, tuples grow, and ranges are unrolled.
"""Triton kernels that let the selective scan walk through all chunks of a long clip at once; see `triton`."""

import triton
import triton.language as tl

from audio_mamba.models.ops.selective_scan.triton_tiles import (
    load,
    load_row,
    load_states,
    load_step,
    place,
    store_states,
    zero_states,
)


@triton.jit(do_not_specialize=["channels"])
def chunk_ends(
    x_ptr,
    gate_ptr,
    delta_ptr,
    A_ptr,
    row_ptr,
    bias_ptr,
    ends_ptr,
    totals_ptr,
    length,
    channels,
    chunks,
    chunk_length,
    x_batch,
    x_time,
    gate_batch,
    gate_time,
    delta_batch,
    delta_time,
    SIGN: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """What a chunk of time adds to the state, from zero, and the sum of its steps.

    Forward h = a h + (step x) row, with x = u and row = B. In REVERSE q = a (q + silu(gate) x row), with x = dy,
    gate = z and row = C. SIGN: see `triton_kernels`.
    """
    batch, chunk, _, d = place(channels, chunks, BLOCK)
    used = d < channels
    bias = 0.0 if bias_ptr is None else load(bias_ptr + d, used)
    A = load_states(A_ptr, 0, d, channels, WIDTH, PARTS, False)
    h = zero_states(d, WIDTH, PARTS, False)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    first = chunk * chunk_length
    end = tl.minimum(first + chunk_length, length)
    groups = tl.cdiv(end - first, GROUP)
    for group in range(groups):
        begin = (first + (groups - 1 - group if REVERSE else group) * GROUP).to(tl.int64)
        inputs, steps = (), ()
        for i in tl.static_range(GROUP):
            t = begin + (GROUP - 1 - i if REVERSE else i)
            inside = used & (t < end)
            step = load_step(delta_ptr + batch * delta_batch + t * delta_time + d, bias, inside, SOFTPLUS)
            x = load(x_ptr + batch * x_batch + t * x_time + d, inside)
            if not REVERSE:
                x *= step
            elif gate_ptr is not None:
                gate = load(gate_ptr + batch * gate_batch + t * gate_time + d, inside)
                x *= gate * tl.sigmoid(gate)
            inputs, steps = inputs + (x,), steps + (step,)
        for i in tl.static_range(GROUP):
            t = begin + (GROUP - 1 - i if REVERSE else i)
            after = ()
            for j in tl.static_range(PARTS):
                row = load_row(row_ptr, batch * length + SIGN * tl.minimum(t, end - 1), j, WIDTH, PARTS)
                decay, added = tl.exp2(steps[i][None, :] * A[j]), inputs[i][None, :] * row[:, None]
                after = after + (decay * (h[j] + added) if REVERSE else decay * h[j] + added,)
            h = after
            total += steps[i]
    number = batch * chunks + chunk
    store_states(ends_ptr, number, h, d, channels, WIDTH, False)
    tl.store(totals_ptr + number * channels + d, total, mask=used)


@triton.jit
def combine(
    ends_ptr,
    totals_ptr,
    A_ptr,
    carry_ptr,
    entry_ptr,
    channels,
    states,
    chunks,
    REVERSE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What each chunk of time starts from, one state of a block of channels per program: the first from the entry or 0,
    the next from h = exp(A total) h + end. REVERSE starts at the last chunk.
    """
    blocks = tl.cdiv(channels, BLOCK)
    program = tl.program_id(0)
    d = program % blocks * BLOCK + tl.arange(0, BLOCK)
    n, batch = program // blocks % states, (program // (blocks * states)).to(tl.int64)
    used = d < channels
    A = load(A_ptr + n * channels + d, used)
    h = tl.zeros([BLOCK], dtype=tl.float32)
    if entry_ptr is not None:
        h = load(entry_ptr + (batch * states + n) * channels + d, used)
    for group in range(tl.cdiv(chunks, GROUP)):
        ends, decays = (), ()
        for i in tl.static_range(GROUP):
            number = group * GROUP + i
            inside = used & (number < chunks)
            chunk = batch * chunks + (chunks - 1 - number if REVERSE else number)
            ends = ends + (load(ends_ptr + (chunk * states + n) * channels + d, inside),)
            decays = decays + (tl.exp2(A * load(totals_ptr + chunk * channels + d, inside)),)
        for i in tl.static_range(GROUP):
            number = group * GROUP + i
            chunk = batch * chunks + (chunks - 1 - number if REVERSE else number)
            tl.store(carry_ptr + (chunk * states + n) * channels + d, h, mask=used & (number < chunks))
            h = decays[i] * h + ends[i]
