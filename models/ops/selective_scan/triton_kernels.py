# mypy: disable-error-code="assignment, misc, var-annotated"
# Triton compiles these functions: in them, tuples grow, and ranges are unrolled.
"""Triton kernels of the selective scan over one chunk of time; `triton` launches them and says what they cost.

All states are float32. A is multiplied by log2(e) beforehand, so decays are exp2. Forward, a tile of states is [n, d]:
a thread holds all states of a channel, so the sum over n stays within the thread. Backward it is [d, n]: a thread holds
some states of some channels, which makes the sums over channels for dB and dC short. The inputs of a GROUP of steps are
loaded together, ahead of its steps.

Time t counts the steps of the walk. Where the scan walks backward, SIGN is -1, the addresses of sequences are those of
their last step, and the strides of time are negative.

Triton lays a tile out over threads by the widest loads and stores that it can prove to be aligned. Wide ones are wanted
for [d, n] but not for [n, d]. Hence it must not specialise on `channels`, nor on the `pitch` of the scratch memory.
"""

import triton
import triton.language as tl

from audio_mamba.models.ops.selective_scan.triton_tiles import (
    load,
    load_row,
    load_states,
    load_step,
    place,
    softplus,
    store_states,
    zero_states,
)

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["channels"])
def forward(
    u_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    z_ptr,
    bias_ptr,
    carry_ptr,
    y_ptr,
    last_ptr,
    starts_ptr,
    length,
    channels,
    chunks,
    chunk_length,
    u_batch,
    u_time,
    delta_batch,
    delta_time,
    z_batch,
    z_time,
    SIGN: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """y, the last state, and the states before each span, of one chunk of time that starts from the state in carry."""
    batch, chunk, _, d = place(channels, chunks, BLOCK)
    used = d < channels
    bias = 0.0 if bias_ptr is None else load(bias_ptr + d, used)
    skip = 0.0 if D_ptr is None else load(D_ptr + d, used)
    A = load_states(A_ptr, 0, d, channels, WIDTH, PARTS, False)
    h = load_states(carry_ptr, batch * chunks + chunk, d, channels, WIDTH, PARTS, False)
    first = chunk * chunk_length
    end = tl.minimum(first + chunk_length, length)
    u_ptr += batch * u_batch + first.to(tl.int64) * u_time + d
    delta_ptr += batch * delta_batch + first.to(tl.int64) * delta_time + d
    if z_ptr is not None:
        z_ptr += batch * z_batch + first.to(tl.int64) * z_time + d
    y_ptr += (batch * length + SIGN * first) * channels + d
    B_ptr += batch * length * (PARTS * WIDTH)
    C_ptr += batch * length * (PARTS * WIDTH)
    for span_number in range(tl.cdiv(end - first, SPAN)):
        span = first + span_number * SPAN
        if starts_ptr is not None:
            number = batch * tl.cdiv(length, SPAN) + span // SPAN
            store_states(starts_ptr, number, h, d, channels, WIDTH, False)
        for group in range(tl.cdiv(tl.minimum(end - span, SPAN), GROUP)):
            begin = span + group * GROUP
            us, steps, gates = (), (), ()
            for i in tl.static_range(GROUP):
                inside = used & (begin + i < end)
                us = us + (load(u_ptr + i * u_time, inside),)
                steps = steps + (load_step(delta_ptr + i * delta_time, bias, inside, SOFTPLUS),)
                if z_ptr is not None:
                    gates = gates + (load(z_ptr + i * z_time, inside),)
            u_ptr += GROUP * u_time
            delta_ptr += GROUP * delta_time
            if z_ptr is not None:
                z_ptr += GROUP * z_time
            for i in tl.static_range(GROUP):
                t = begin + i
                row = tl.minimum(t, end - 1)
                weighted, after = us[i] * steps[i], ()
                outputs = tl.zeros([WIDTH, BLOCK], dtype=tl.float32)  # their sum over n is the scan's output
                for j in tl.static_range(PARTS):
                    B = load_row(B_ptr, SIGN * row, j, WIDTH, PARTS)
                    C = load_row(C_ptr, SIGN * row, j, WIDTH, PARTS)
                    state = tl.exp2(steps[i][None, :] * A[j]) * h[j] + weighted[None, :] * B[:, None]
                    outputs += state * C[:, None]
                    after = after + (state,)
                h = after
                y = tl.sum(outputs, axis=0) + skip * us[i]
                if z_ptr is not None:
                    y *= gates[i] * tl.sigmoid(gates[i])
                tl.store(y_ptr + SIGN * i * channels, y.to(y_ptr.dtype.element_ty), mask=used & (t < end))
            y_ptr += SIGN * GROUP * channels
    if chunk == chunks - 1:
        store_states(last_ptr, batch, h, d, channels, WIDTH, False)


@triton.jit
def advance(h, A, step, x, B_ptr, row, D_FIRST: tl.constexpr):
    """The states after one step, tiles [n, d] or [d, n]."""
    after = ()
    for j in tl.static_range(len(h)):
        if D_FIRST:
            B = load_row(B_ptr, row, j, h[j].shape[1], len(h))
            state = tl.exp2(step[:, None] * A[j]) * h[j] + x[:, None] * B[None, :]
        else:
            B = load_row(B_ptr, row, j, h[j].shape[0], len(h))
            state = tl.exp2(step[None, :] * A[j]) * h[j] + x[None, :] * B[:, None]
        after = after + (state,)
    return after


@triton.jit(do_not_specialize=["channels", "pitch"])
def backward(
    dy_ptr,
    d_carry_ptr,
    starts_ptr,
    scratch_ptr,
    u_ptr,
    delta_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    D_ptr,
    z_ptr,
    bias_ptr,
    du_ptr,
    d_delta_ptr,
    dz_ptr,
    dA_ptr,
    dB_ptr,
    dC_ptr,
    dD_ptr,
    d_bias_ptr,
    batches,
    length,
    channels,
    pitch,
    chunks,
    chunk_length,
    dy_batch,
    dy_time,
    u_batch,
    u_time,
    delta_batch,
    delta_time,
    z_batch,
    z_time,
    SIGN: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
):
    """All gradients of one chunk of time. For A, D and the bias they are partial sums, to be added over chunks and
    batch; for B and C, to be added over blocks of channels.

    d_carry holds q_t = a_t g_t of the step after the chunk, where g_t = C_t dy_t + q_{t+1} is the state's gradient.
    The states before each span are known. A pass forward through the span stores the states before each group in the
    scratch memory [groups, S, pitch = BLOCK]. On the way back, two steps at a time are recomputed from the state before
    their group.
    """
    batch, chunk, block, d = place(channels, chunks, BLOCK)
    used = d < channels
    bias = tl.zeros([BLOCK], dtype=tl.float32) if bias_ptr is None else load(bias_ptr + d, used)
    skip = tl.zeros([BLOCK], dtype=tl.float32) if D_ptr is None else load(D_ptr + d, used)
    A = load_states(A_ptr, 0, d, channels, WIDTH, PARTS, True)
    q = load_states(d_carry_ptr, batch * chunks + chunk, d, channels, WIDTH, PARTS, True)
    dA = zero_states(d, WIDTH, PARTS, True)
    dD, d_bias = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    scratch_ptr += tl.program_id(0).to(tl.int64) * (SPAN // GROUP * PARTS * WIDTH * BLOCK)
    d_local = tl.arange(0, BLOCK)
    u_ptr += batch * u_batch
    delta_ptr += batch * delta_batch
    dy_ptr += batch * dy_batch
    if z_ptr is not None:
        z_ptr += batch * z_batch
    B_ptr += batch * length * (PARTS * WIDTH)
    C_ptr += batch * length * (PARTS * WIDTH)
    dB_ptr += (block.to(tl.int64) * batches + batch) * length * (PARTS * WIDTH)
    dC_ptr += (block.to(tl.int64) * batches + batch) * length * (PARTS * WIDTH)
    first = chunk * chunk_length
    end = tl.minimum(first + chunk_length, length)
    spans = tl.cdiv(end - first, SPAN)
    for span_back in range(spans):
        span = first + (spans - 1 - span_back) * SPAN
        groups = tl.cdiv(tl.minimum(end - span, SPAN), GROUP)
        A_forth = load_states(A_ptr, 0, d, channels, WIDTH, PARTS, False)
        h = load_states(starts_ptr, batch * tl.cdiv(length, SPAN) + span // SPAN, d, channels, WIDTH, PARTS, False)
        for group in range(groups):
            store_states(scratch_ptr, group, h, d_local, pitch, WIDTH, False)
            for i in tl.static_range(GROUP):
                t = (span + group * GROUP + i).to(tl.int64)
                inside = used & (t < end)
                step = load_step(delta_ptr + t * delta_time + d, bias, inside, SOFTPLUS)
                x = step * load(u_ptr + t * u_time + d, inside)
                h = advance(h, A_forth, step, x, B_ptr, SIGN * tl.minimum(t, end - 1), False)
        tl.debug_barrier()

        pairs = tl.cdiv(tl.minimum(end - span, SPAN), 2)
        for back in range(pairs):
            begin = span + 2 * (pairs - 1 - back)
            group = (begin - span) // GROUP
            before = load_states(scratch_ptr, group, d_local, BLOCK, WIDTH, PARTS, True)
            for i in range((begin - span) % GROUP):
                at = (span + group * GROUP + i).to(tl.int64)
                step = load_step(delta_ptr + at * delta_time + d, bias, used, SOFTPLUS)
                x = step * load(u_ptr + at * u_time + d, used)
                before = advance(before, A, step, x, B_ptr, SIGN * at, True)

            raws, steps, us, dys, zs = (), (), (), (), ()
            for i in tl.static_range(2):
                t = (begin + i).to(tl.int64)
                inside = used & (t < end)
                raw = load(delta_ptr + t * delta_time + d, inside) + bias
                raws, steps = raws + (raw,), steps + (tl.where(inside, softplus(raw) if SOFTPLUS else raw, 0.0),)
                us, dys = us + (load(u_ptr + t * u_time + d, inside),), dys + (load(dy_ptr + t * dy_time + d, inside),)
                if z_ptr is not None:
                    zs = zs + (load(z_ptr + t * z_time + d, inside),)

            # The first step's decays, and the states before it times them.
            decays, decayeds = (), ()
            for j in tl.static_range(PARTS):
                decay = tl.exp2(steps[0][:, None] * A[j])
                decays, decayeds = decays + (decay,), decayeds + (decay * before[j],)
            for i in tl.static_range(1, -1, -1):
                t = (begin + i).to(tl.int64)
                inside = used & (t < end)
                step, u, dy = steps[i], us[i], dys[i]
                x = step * u
                d_out = dy  # before the gate
                if z_ptr is not None:
                    gate = tl.sigmoid(zs[i])
                    d_out = dy * zs[i] * gate
                row = tl.minimum(t, end - 1)
                outputs = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
                inputs = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
                exponents = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
                q_before, dA_more = (), ()
                for j in tl.static_range(PARTS):
                    if i == 0:
                        decay, decayed = decays[j], decayeds[j]
                    else:
                        between = load_row(B_ptr, SIGN * tl.maximum(row - 1, 0), j, WIDTH, PARTS)  # row 0 where L is 1
                        decay = tl.exp2(step[:, None] * A[j])
                        decayed = decay * (decayeds[j] + (steps[0] * us[0])[:, None] * between[None, :])
                    B = load_row(B_ptr, SIGN * row, j, WIDTH, PARTS)[None, :]
                    C = load_row(C_ptr, SIGN * row, j, WIDTH, PARTS)[None, :]
                    share = SIGN * t * (PARTS * WIDTH) + j * WIDTH + tl.arange(0, WIDTH)
                    state = decayed + x[:, None] * B
                    g = q[j] + d_out[:, None] * C
                    tl.store(dC_ptr + share, tl.sum(d_out[:, None] * state, axis=0), mask=t < end)
                    tl.store(dB_ptr + share, tl.sum(x[:, None] * g, axis=0), mask=t < end)
                    outputs += state * C
                    inputs += g * B
                    exponent = decayed * g
                    exponents += exponent * A[j]
                    dA_more = dA_more + (dA[j] + exponent * step[:, None],)
                    q_before = q_before + (decay * g,)
                q, dA = q_before, dA_more

                d_inputs = tl.sum(inputs, axis=1)
                out = (batch * length + SIGN * t) * channels + d
                if z_ptr is not None:
                    dz = dy * (tl.sum(outputs, axis=1) + skip * u) * gate * (1.0 + zs[i] * (1.0 - gate))
                    tl.store(dz_ptr + out, dz.to(dz_ptr.dtype.element_ty), mask=inside)
                du = d_inputs * step + skip * d_out
                tl.store(du_ptr + out, du.to(du_ptr.dtype.element_ty), mask=inside)
                d_step = d_inputs * u + LN2 * tl.sum(exponents, axis=1)
                if SOFTPLUS:
                    d_step *= tl.sigmoid(raws[i])
                tl.store(d_delta_ptr + out, d_step.to(d_delta_ptr.dtype.element_ty), mask=inside)
                dD += d_out * u
                d_bias += tl.where(inside, d_step, 0.0)
        tl.debug_barrier()
    number = batch * chunks + chunk
    store_states(dA_ptr, number, dA, d, channels, WIDTH, True)
    tl.store(dD_ptr + number * channels + d, dD, mask=used)
    tl.store(d_bias_ptr + number * channels + d, d_bias, mask=used)
