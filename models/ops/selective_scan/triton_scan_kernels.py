"""Triton kernels of the selective scan over one chunk of time; `triton_scan` launches them and says what they cost.

All state is float32. A comes times log2(e), so that exp2 serves. In the forward kernel a tile of states is [n, d]: a
thread holds several states of a channel, and the sum over n is short. In the backward kernel it is [d, n], which makes
the sums over channels for dB and dC short. The inputs of a GROUP of steps are loaded together, ahead of its steps.
"""
import triton
import triton.language as tl

from models.ops.selective_scan.triton_tiles import (
    load, load_row, load_states, load_step, pick, place, put, softplus, store_states)

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def forward(u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr, bias_ptr, carry_ptr, y_ptr, last_ptr, starts_ptr,
            length, channels, states, chunks, chunk_length, u_batch, u_time, delta_batch, delta_time, B_batch, B_time,
            C_batch, C_time, z_batch, z_time, SOFTPLUS: tl.constexpr, SPAN: tl.constexpr, GROUP: tl.constexpr,
            BLOCK: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """y, the last state, and the states before each span, for one chunk of time that starts at the state in carry."""
    batch, chunk, _, d = place(channels, chunks, BLOCK)
    used = d < channels
    bias = 0.0 if bias_ptr is None else load(bias_ptr + d, used)
    skip = 0.0 if D_ptr is None else load(D_ptr + d, used)
    A = load_states(A_ptr, 0, d, channels, states, WIDTH, PARTS, False)
    h = load_states(carry_ptr, batch * chunks + chunk, d, channels, states, WIDTH, PARTS, False)
    first = chunk * chunk_length
    end = tl.minimum(first + chunk_length, length)
    for group in range(tl.cdiv(end - first, GROUP)):
        begin = (first + group * GROUP).to(tl.int64)
        if starts_ptr is not None:
            if begin % SPAN == 0:
                number = batch * tl.cdiv(length, SPAN) + begin // SPAN
                store_states(starts_ptr, number, h, d, channels, states, WIDTH, False)
        us, steps, gates = (), (), ()
        for i in tl.static_range(GROUP):
            t = begin + i
            inside = used & (t < end)
            us = us + (load(u_ptr + batch * u_batch + t * u_time + d, inside),)
            steps = steps + (load_step(delta_ptr + batch * delta_batch + t * delta_time + d, bias, inside, SOFTPLUS),)
            if z_ptr is not None:
                gates = gates + (load(z_ptr + batch * z_batch + t * z_time + d, inside),)
        for i in tl.static_range(GROUP):
            t = begin + i
            weighted, after = us[i] * steps[i], ()
            outputs = tl.zeros([WIDTH, BLOCK], dtype=tl.float32)  # whose sum over n is the scan's output
            for j in tl.static_range(PARTS):
                B = load_row(B_ptr + batch * B_batch + t * B_time, j, states, t < end, WIDTH)
                C = load_row(C_ptr + batch * C_batch + t * C_time, j, states, t < end, WIDTH)
                state = tl.exp2(steps[i][None, :] * A[j]) * h[j] + weighted[None, :] * B[:, None]
                outputs += state * C[:, None]
                after = after + (state,)
            h = after
            y = tl.sum(outputs, axis=0) + skip * us[i]
            if z_ptr is not None:
                y *= gates[i] * tl.sigmoid(gates[i])
            out = y_ptr + (batch * length + t) * channels + d
            tl.store(out, y.to(y_ptr.dtype.element_ty), mask=used & (t < end))
    if chunk == chunks - 1:
        store_states(last_ptr, batch, h, d, channels, states, WIDTH, False)


@triton.jit
def advance(h, A, step, x, B_ptr, states, inside, WIDTH: tl.constexpr):
    """One step of the states, tiles [d, n]."""
    after = ()
    for j in tl.static_range(len(h)):
        B = load_row(B_ptr, j, states, inside, WIDTH)
        after = after + (tl.exp2(step[:, None] * A[j]) * h[j] + x[:, None] * B[None, :],)
    return after


@triton.jit
def backward(dy_ptr, d_carry_ptr, starts_ptr, scratch_ptr, u_ptr, delta_ptr, A_ptr, B_ptr, C_ptr, D_ptr, z_ptr,
             bias_ptr, du_ptr, d_delta_ptr, dz_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, d_bias_ptr,
             batches, length, channels, states, chunks, chunk_length, dy_batch, dy_time, u_batch, u_time, delta_batch,
             delta_time, B_batch, B_time, C_batch, C_time, z_batch, z_time, SOFTPLUS: tl.constexpr,
             SPAN: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """All gradients of one chunk of time; those of A, D and the bias are its share of a sum over chunks and batch,
    those of B and C its share of a sum over blocks of channels.

    d_carry holds q_t = a_t g_t of the step after the chunk, where g_t = C_t dy_t + q_{t+1} is the state's gradient.
    The states before each span are known. From them those before each group of a span go to the scratch memory, and
    from there those of a group's steps to registers.
    """
    batch, chunk, block, d = place(channels, chunks, BLOCK)
    used = d < channels
    bias = tl.zeros([BLOCK], dtype=tl.float32) if bias_ptr is None else load(bias_ptr + d, used)
    skip = tl.zeros([BLOCK], dtype=tl.float32) if D_ptr is None else load(D_ptr + d, used)
    A = load_states(A_ptr, 0, d, channels, states, WIDTH, PARTS, True)
    q = load_states(d_carry_ptr, batch * chunks + chunk, d, channels, states, WIDTH, PARTS, True)
    dA = load_states(None, 0, d, channels, states, WIDTH, PARTS, True)
    dD, d_bias = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    rows = tl.arange(0, GROUP)[:, None]
    scratch_ptr += tl.program_id(0).to(tl.int64) * (SPAN // GROUP) * PARTS * WIDTH * BLOCK
    d_local = tl.arange(0, BLOCK)
    u_ptr += batch * u_batch + d[None, :]
    delta_ptr += batch * delta_batch + d[None, :]
    dy_ptr += batch * dy_batch + d[None, :]
    B_ptr += batch * B_batch
    C_ptr += batch * C_batch
    first = chunk * chunk_length
    end = tl.minimum(first + chunk_length, length)
    spans = tl.cdiv(end - first, SPAN)
    for span_back in range(spans):
        span = first + (spans - 1 - span_back) * SPAN
        number = batch * tl.cdiv(length, SPAN) + span // SPAN
        h = load_states(starts_ptr, number, d, channels, states, WIDTH, PARTS, True)
        groups = tl.cdiv(tl.minimum(end - span, SPAN), GROUP)
        for group in range(groups):
            store_states(scratch_ptr, group, h, d_local, BLOCK, PARTS * WIDTH, WIDTH, True)
            begin = (span + group * GROUP).to(tl.int64)
            t = begin + rows
            inside = used[None, :] & (t < end)
            steps = load_step(delta_ptr + t * delta_time, bias[None, :], inside, SOFTPLUS)
            xs = steps * load(u_ptr + t * u_time, inside)
            for i in tl.static_range(GROUP):
                h = advance(h, A, pick(steps, i), pick(xs, i), B_ptr + (begin + i) * B_time, states,
                             begin + i < end, WIDTH)
        tl.debug_barrier()

        for back in range(groups):
            group = groups - 1 - back
            kept = (load_states(scratch_ptr, group, d_local, BLOCK, PARTS * WIDTH, WIDTH, PARTS, True),)
            begin = (span + group * GROUP).to(tl.int64)
            t = begin + rows
            inside = used[None, :] & (t < end)
            raw = load(delta_ptr + t * delta_time, inside) + bias[None, :]
            steps = tl.where(inside, softplus(raw) if SOFTPLUS else raw, 0.0)
            u = load(u_ptr + t * u_time, inside)
            xs = u * steps
            dy = load(dy_ptr + t * dy_time, inside)
            d_out = dy  # before the gate
            if z_ptr is not None:
                z = load(z_ptr + batch * z_batch + t * z_time + d[None, :], inside)
                gate = tl.sigmoid(z)
                d_out = dy * z * gate
            for i in tl.static_range(GROUP - 1):
                kept = kept + (advance(kept[i], A, pick(steps, i), pick(xs, i), B_ptr + (begin + i) * B_time, states,
                                        begin + i < end, WIDTH),)

            # Sums over n: the scan's output, and the gradients of its input and of the exponent.
            y = tl.zeros([GROUP, BLOCK], dtype=tl.float32)
            d_inputs = tl.zeros([GROUP, BLOCK], dtype=tl.float32)
            d_exponents = tl.zeros([GROUP, BLOCK], dtype=tl.float32)
            for i in tl.static_range(GROUP - 1, -1, -1):
                step, x, weight = pick(steps, i)[:, None], pick(xs, i)[:, None], pick(d_out, i)[:, None]
                there = begin + i < end
                outputs = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
                inputs = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
                exponents = tl.zeros([BLOCK, WIDTH], dtype=tl.float32)
                shares = ((block * batches + batch) * length + begin + i) * states
                q_before, dA_more = (), ()
                for j in tl.static_range(PARTS):
                    B = load_row(B_ptr + (begin + i) * B_time, j, states, there, WIDTH)[None, :]
                    C = load_row(C_ptr + (begin + i) * C_time, j, states, there, WIDTH)[None, :]
                    n = j * WIDTH + tl.arange(0, WIDTH)
                    decay = tl.exp2(step * A[j])
                    decayed = decay * kept[i][j]
                    state = decayed + x * B
                    g = q[j] + weight * C
                    tl.store(dC_ptr + shares + n, tl.sum(weight * state, axis=0), mask=(n < states) & there)
                    tl.store(dB_ptr + shares + n, tl.sum(x * g, axis=0), mask=(n < states) & there)
                    outputs += state * C
                    inputs += g * B
                    exponent = decayed * g
                    exponents += exponent * A[j]
                    dA_more = dA_more + (dA[j] + exponent * step,)
                    q_before = q_before + (decay * g,)
                q, dA = q_before, dA_more
                if z_ptr is not None:
                    y = put(y, i, tl.sum(outputs, axis=1))
                d_inputs = put(d_inputs, i, tl.sum(inputs, axis=1))
                d_exponents = put(d_exponents, i, tl.sum(exponents, axis=1))

            out = (batch * length + t) * channels + d[None, :]
            if z_ptr is not None:
                dz = dy * (y + skip[None, :] * u) * gate * (1.0 + z * (1.0 - gate))
                tl.store(dz_ptr + out, dz.to(dz_ptr.dtype.element_ty), mask=inside)
            du = d_inputs * steps + skip[None, :] * d_out
            tl.store(du_ptr + out, du.to(du_ptr.dtype.element_ty), mask=inside)
            d_steps = d_inputs * u + LN2 * d_exponents
            if SOFTPLUS:
                d_steps *= tl.sigmoid(raw)
            tl.store(d_delta_ptr + out, d_steps.to(d_delta_ptr.dtype.element_ty), mask=inside)
            dD += tl.sum(d_out * u, axis=0)
            d_bias += tl.sum(tl.where(inside, d_steps, 0.0), axis=0)
        tl.debug_barrier()
    number = batch * chunks + chunk
    store_states(dA_ptr, number, dA, d, channels, states, WIDTH, True)
    tl.store(dD_ptr + number * channels + d, dD, mask=used)
    tl.store(d_bias_ptr + number * channels + d, d_bias, mask=used)
