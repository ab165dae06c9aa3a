"""Add + LayerNorm or RMSNorm by Triton kernels, forward and backward, statistics in float32.

A program holds one row of D channels in registers and goes through a share of the rows. Forward moves four numbers per
element (hidden, residual in and out, normalised), backward five. The gradients of weight and bias are summed within
each program, then over programs in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from audio_mamba.models.ops.triton_support import device_of

PROGRAMS = 2048  # of a backward pass at most; each leaves one row of weight gradients


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
    x = stored.to(weight_ptr.dtype.element_ty).to(tl.float32)  # as the plain path rounds it
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


def add_norm(
    hidden: Tensor, residual: Tensor | None, norm: nn.LayerNorm | nn.RMSNorm, residual_in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """See `models.ops.add_norm`. Under autocast the norm is in autocast's dtype, which is what a linear layer makes of
    it: a pass over memory less, and the same numbers."""
    rms = isinstance(norm, nn.RMSNorm)
    dtype = hidden.dtype if residual is None else torch.promote_types(hidden.dtype, residual.dtype)
    autocast = torch.is_autocast_enabled(hidden.device.type)
    normed_dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else norm.weight.dtype
    normed, total, _, _ = torch.ops.audio_mamba.add_norm_triton(
        hidden,
        residual,
        norm.weight,
        None if rms else norm.bias,
        norm.eps,
        rms,
        torch.float32 if residual_in_fp32 else dtype,
        normed_dtype,
    )
    return normed, total


@torch.library.custom_op("audio_mamba::add_norm_triton", mutates_args=())
def _forward(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    rms: bool,
    dtype: torch.dtype,
    normed_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, residual [..., D] -> normalised in `normed_dtype`, their sum in `dtype`, and per row the mean (none for
    RMSNorm) and 1 / sqrt(variance + eps)."""
    normed, total, mean, scale = _outputs(hidden, rms, dtype, normed_dtype)
    if hidden.numel():
        hidden, residual = (t if t is None else t.contiguous() for t in (hidden, residual))
        with device_of(hidden):
            forward_kernel[(scale.numel(),)](
                hidden,
                residual,
                weight,
                bias,
                normed,
                total,
                mean,
                scale,
                hidden.shape[-1],
                eps,
                RMS=rms,
                **_block(hidden),
            )
    return normed, total, mean, scale


def _outputs(hidden, rms, dtype, normed_dtype):
    rows = hidden.shape[:-1].numel()
    return (
        hidden.new_empty(hidden.shape, dtype=normed_dtype),
        hidden.new_empty(hidden.shape, dtype=dtype),
        hidden.new_empty(0 if rms else rows, dtype=torch.float32),
        hidden.new_empty(rows, dtype=torch.float32),
    )


@_forward.register_fake
def _(hidden, residual, weight, bias, eps, rms, dtype, normed_dtype):
    return _outputs(hidden, rms, dtype, normed_dtype)


@torch.library.custom_op("audio_mamba::add_norm_triton_backward", mutates_args=())
def _backward(
    d_normed: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    rms: bool,
    hidden_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of hidden, residual (empty where `residual_dtype` is None), weight and bias."""
    rows, channels = scale.numel(), total.shape[-1]
    d_hidden, d_residual = _gradients_like(total, hidden_dtype, residual_dtype)
    rows_each = max(1, -(-rows // PROGRAMS))
    programs = -(-rows // rows_each)
    d_weight, d_bias = scale.new_empty(2, programs, channels).unbind(0)
    if rows:
        d_normed, d_total = (t if t is None else t.contiguous() for t in (d_normed, d_total))
        with device_of(total):
            backward_kernel[(programs,)](
                d_normed,
                d_total,
                total,
                weight,
                mean,
                scale,
                d_hidden,
                None if residual_dtype is None else d_residual,
                d_weight,
                d_bias,
                rows,
                channels,
                rows_each,
                RMS=rms,
                **_block(total),
            )
    return d_hidden, d_residual, d_weight.sum(0).to(weight.dtype), d_bias.sum(0).to(weight.dtype)


def _gradients_like(total, hidden_dtype, residual_dtype):
    return (
        total.new_empty(total.shape, dtype=hidden_dtype),
        total.new_empty(0 if residual_dtype is None else total.shape, dtype=residual_dtype),
    )


@_backward.register_fake
def _(d_normed, d_total, total, weight, mean, scale, rms, hidden_dtype, residual_dtype):
    return (*_gradients_like(total, hidden_dtype, residual_dtype), torch.empty_like(weight), torch.empty_like(weight))


def _setup_context(ctx, inputs, output):
    hidden, residual, weight, bias, _, ctx.rms, _, _ = inputs
    ctx.dtypes = hidden.dtype, residual if residual is None else residual.dtype
    ctx.bias_dtype = bias if bias is None else bias.dtype
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weight, *output[1:])


def _autograd(ctx, d_normed, d_total, *_):
    weight, total, mean, scale = ctx.saved_tensors
    if d_normed is None:
        d_normed = torch.zeros_like(total)
    d_hidden, d_residual, d_weight, d_bias = torch.ops.audio_mamba.add_norm_triton_backward(
        d_normed, d_total, total, weight, mean, scale, ctx.rms, *ctx.dtypes
    )
    return (
        d_hidden,
        None if ctx.dtypes[1] is None else d_residual,
        d_weight,
        None if ctx.bias_dtype is None else d_bias.to(ctx.bias_dtype),
        None,
        None,
        None,
        None,
    )


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _block(rows: Tensor) -> dict[str, int]:
    block = triton.next_power_of_2(rows.shape[-1])
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 8)}
