"""Triton kernels of add + norm; `triton` launches them and says how they divide their work."""

import triton
import triton.language as tl


@triton.jit
def _load(ptr, mask):
    return tl.load(ptr, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    hidden_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    normed_ptr,
    total_ptr,
    mean_ptr,
    scale_ptr,
    channels,
    eps,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK)
    used = d < channels
    total = _load(hidden_ptr + row * channels + d, used)
    if residual_ptr is not None:
        total += _load(residual_ptr + row * channels + d, used)
    stored = total.to(total_ptr.dtype.element_ty)
    tl.store(total_ptr + row * channels + d, stored, mask=used)
    x = stored.to(weight_ptr.dtype.element_ty).to(tl.float32)  # rounded as in the reference
    mean = 0.0
    if not RMS:
        mean = tl.sum(x, axis=0) / channels
        tl.store(mean_ptr + row, mean)
    centred = tl.where(used, x - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / channels + eps)
    tl.store(scale_ptr + row, scale)
    normed = centred * scale * _load(weight_ptr + d, used)
    if bias_ptr is not None:
        normed += _load(bias_ptr + d, used)
    tl.store(normed_ptr + row * channels + d, normed.to(normed_ptr.dtype.element_ty), mask=used)


@triton.jit
def backward_kernel(
    d_normed_ptr,
    d_total_ptr,
    total_ptr,
    weight_ptr,
    mean_ptr,
    scale_ptr,
    d_hidden_ptr,
    d_residual_ptr,
    d_weight_ptr,
    d_bias_ptr,
    rows,
    channels,
    rows_each,
    RMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    d = tl.arange(0, BLOCK)
    used = d < channels
    weight = _load(weight_ptr + d, used)
    d_weight, d_bias = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    for step in range(rows_each):
        row = (program * rows_each + step).to(tl.int64)
        inside = used & (row < rows)
        at = row * channels + d
        scale = tl.load(scale_ptr + row, mask=row < rows, other=0.0)
        stored = tl.load(total_ptr + at, mask=inside, other=0.0)
        x = stored.to(weight_ptr.dtype.element_ty).to(tl.float32)
        if not RMS:
            x -= tl.load(mean_ptr + row, mask=row < rows, other=0.0)
        unit = tl.where(inside, x * scale, 0.0)
        d_normed = _load(d_normed_ptr + at, inside)
        d_weight += d_normed * unit
        d_bias += d_normed
        d_unit = d_normed * weight
        gradient = d_unit - unit * (tl.sum(d_unit * unit, axis=0) / channels)
        if not RMS:
            gradient -= tl.sum(d_unit, axis=0) / channels
        gradient *= scale
        if d_total_ptr is not None:
            gradient += _load(d_total_ptr + at, inside)
        tl.store(d_hidden_ptr + at, gradient.to(d_hidden_ptr.dtype.element_ty), mask=inside)
        if d_residual_ptr is not None:
            tl.store(d_residual_ptr + at, gradient.to(d_residual_ptr.dtype.element_ty), mask=inside)
    tl.store(d_weight_ptr + program * channels + d, d_weight, mask=used)
    tl.store(d_bias_ptr + program * channels + d, d_bias, mask=used)
