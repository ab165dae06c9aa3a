"""Add + LayerNorm or RMSNorm by Triton kernels of our own, forward and backward, with statistics in float32.

A program holds one row of D channels in registers and works through a share of the rows. Forward moves four numbers per
element (hidden, residual in and out, normalised), backward five. The gradients of weight and bias are summed within
each program, then over programs in a fixed order.
"""

import torch
from torch import Tensor, nn

from audio_mamba.models.ops import triton_support
from audio_mamba.models.ops.calls import AddNormCall
from audio_mamba.models.ops.private_torch import unwatched

AUTO_DEVICES = ("cuda",)  # on the CPU runs Triton's interpreter, which is for tests
PROGRAMS = 2048  # of a backward pass, at most; each leaves one row of weight gradients


def unsupported_reason(call: AddNormCall) -> str | None:
    """A norm without eps, whose meaning depends on the dtype; or see `models.ops.triton_support.unsupported_reason`."""
    if call.norm.eps is None:
        return "the norm's eps is None"
    return triton_support.unsupported_reason(*call.tensors, call.norm.weight)


def add_norm(
    hidden: Tensor, residual: Tensor | None, norm: nn.LayerNorm | nn.RMSNorm, residual_in_fp32: bool = False
) -> tuple[Tensor, Tensor]:
    """See `models.ops.add_norm`.

    Under autocast the norm comes out in autocast's dtype. A linear layer would convert it to that dtype anyway, so the
    numbers are the same and one pass over memory is saved.
    """
    rms = isinstance(norm, nn.RMSNorm)
    dtype = hidden.dtype if residual is None else torch.promote_types(hidden.dtype, residual.dtype)
    autocast = torch.is_autocast_enabled(hidden.device.type)
    normed_dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else norm.weight.dtype
    weight, bias = norm.weight, norm.bias if isinstance(norm, nn.LayerNorm) else None
    assert norm.eps is not None
    fast = unwatched(hidden, residual, weight, bias)
    operator = _forward_in_triton if fast else torch.ops.audio_mamba.add_norm_triton
    normed, total, _, _ = operator(
        hidden,
        residual,
        weight,
        bias,
        norm.eps,
        rms,
        torch.float32 if residual_in_fp32 else dtype,
        normed_dtype,
    )
    return normed, total


def _forward_in_triton(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    rms: bool,
    dtype: torch.dtype,
    normed_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, residual [..., D] -> normalised in `normed_dtype`, their sum in `dtype`, and per row the mean (empty
    for RMSNorm) and 1 / sqrt(variance + eps)."""
    from audio_mamba.models.ops.add_norm import triton_kernels as kernels

    normed, total, mean, scale = _outputs(hidden, rms, dtype, normed_dtype)
    if hidden.numel():
        hidden, residual = hidden.contiguous(), residual if residual is None else residual.contiguous()
        with triton_support.device_of(hidden):
            kernels.forward_kernel[(scale.numel(),)](
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


_forward = torch.library.custom_op("audio_mamba::add_norm_triton", _forward_in_triton, mutates_args=())


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
    from audio_mamba.models.ops.add_norm import triton_kernels as kernels

    rows, channels = scale.numel(), total.shape[-1]
    d_hidden, d_residual = _gradients_like(total, hidden_dtype, residual_dtype)
    rows_each = max(1, -(-rows // PROGRAMS))
    programs = -(-rows // rows_each)
    d_weight, d_bias = scale.new_empty(2, programs, channels).unbind(0)
    if rows:
        d_normed, d_total = d_normed.contiguous(), d_total if d_total is None else d_total.contiguous()
        with triton_support.device_of(total):
            kernels.backward_kernel[(programs,)](
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
    block = triton_support.power_of_two(rows.shape[-1])
    return {"BLOCK": block, "num_warps": min(max(block // 256, 1), 8)}
