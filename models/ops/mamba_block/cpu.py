"""A whole Mamba block for training on a CPU, with a backward pass written by hand around the compiled kernels.

It computes what `models.mamba.Mamba.compose` does, value by value. Where autograd would sum, join or copy tensors
[B, L, E], the kernels here read and write them in place: the gradients of the two branches become one tensor
[B, L, 2 E], those of the step, B and C another, and the convolution sums the two gradients of its output. If the block
takes two paths through time, the second scan adds its output to that of the first, and the second path its gradients of
the two branches.

Symbols as in `models.mamba`: B batch, L tokens, D channels of the model, E inner channels, N state size, R rank; and K
taps of the convolution.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from audio_mamba.models.ops import native
from audio_mamba.models.ops.calls import BlockCall, MambaParameters
from audio_mamba.models.ops.causal_conv1d import cpu as conv
from audio_mamba.models.ops.linear import linear, product_gradients
from audio_mamba.models.ops.private_torch import untraced
from audio_mamba.models.ops.selective_scan import cpu as scan


def unsupported_reason(call: BlockCall) -> str | None:
    """Nothing to differentiate, traced code, other than float32 parameters, or no kernels."""
    parameters = [p for p in _parameters(call.block) if p is not None]
    if not call.needs_gradient:
        return "the input needs no gradient"
    if not untraced(call.hidden, *parameters):
        return "the call is traced or transformed"
    if any(p.dtype != torch.float32 for p in parameters):
        return "not all parameters are float32"
    if any(path.conv1d.weight.shape[-1] > conv.MAX_TAPS for path in call.block.paths):
        return f"there are more than {conv.MAX_TAPS} taps"
    autocast = torch.is_autocast_enabled("cpu")
    if not autocast and call.hidden.dtype != torch.float32:
        return f"the input is {call.hidden.dtype}, the parameters are float32"
    return native.unsupported_reason(call.hidden, *parameters)


def mamba_block(hidden: Tensor, block: MambaParameters) -> Tensor:
    """See `models.mamba.Mamba`: hidden [B, L, D] -> [B, L, D], under autocast in its dtype."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    with torch.autocast("cpu", enabled=False):
        return _MambaBlock.apply(dtype, [path.reverse for path in block.paths], hidden, *_parameters(block))


class _Path(NamedTuple):
    """The parameters of one path through time."""

    taps: Tensor
    b_conv: Tensor | None
    w_x: Tensor
    w_dt: Tensor
    b_dt: Tensor
    A_log: Tensor
    D: Tensor


class _Kept(NamedTuple):
    """What backward needs of one path."""

    u: Tensor  # output of the convolution [B, L, E]
    joined: Tensor  # R inputs of the step, then B and C, [B, L, R + 2 N]
    delta: Tensor  # step before bias and softplus [B, L, E]
    starts: Tensor  # states before each chunk of the scan [B, chunks, N, E]
    A: Tensor  # [E, N]
    taps: Tensor  # [E, 1, K]
    b_conv: Tensor | None  # [E]
    w_x: Tensor  # [R + 2 N, E]
    w_dt: Tensor  # [E, R]
    b_dt: Tensor  # [E]
    D: Tensor  # [E]


def _parameters(block: MambaParameters) -> list[Tensor | None]:
    """Those of the projections, then a `_Path` for each path."""
    projections = block.in_proj, block.out_proj
    parameters: list[Tensor | None] = [p for projection in projections for p in (projection.weight, projection.bias)]
    for conv1d, x_proj, dt_proj, A_log, D, _ in block.paths:
        parameters += _Path(conv1d.weight, conv1d.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, A_log, D)
    return parameters


class _MambaBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dtype, reverses, hidden, w_in, b_in, w_out, b_out, *of_paths):
        ctx.types, ctx.reverses = (hidden.dtype, dtype), reverses
        hidden, w_in, w_out = (t.to(dtype) for t in (hidden, w_in, w_out))
        b_in, b_out = (t if t is None else t.to(dtype) for t in (b_in, b_out))
        xz = linear(hidden, w_in, b_in)  # [B, L, 2 E]
        x, z = xz.chunk(2, dim=-1)
        y, kept = x.new_empty(x.shape), []
        for number, (reverse, path) in enumerate(zip(reverses, _by_path(of_paths, _Path), strict=True)):
            taps, b_conv, w_x, w_dt, b_dt, A_log, D = path
            w_x, w_dt = w_x.to(dtype), w_dt.to(dtype)
            u = conv.forward_in_c(x, taps.squeeze(1), b_conv, silu=True, reverse=reverse)
            joined = linear(u, w_x)  # [B, L, R + 2 N]
            dt, B, C = _split(joined, w_dt, A_log)
            delta = linear(dt, w_dt)
            A = -torch.exp(A_log)
            _, starts = scan.forward_into(
                y, u, delta, A, B, C, D, z, b_dt, softplus=True, save=True, reverse=reverse, add=number > 0
            )
            kept += _Kept(u, joined, delta, starts, A, taps, b_conv, w_x, w_dt, b_dt, D)
        ctx.save_for_backward(hidden, xz, y, w_in, w_out, *kept)
        ctx.biased = b_in is not None, b_out is not None
        return linear(y, w_out, b_out)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        with torch.autocast("cpu", enabled=False):
            return _backward(ctx, d_out)


def _backward(ctx, d_out):
    hidden, xz, y, w_in, w_out, *kept = ctx.saved_tensors
    d_xz = torch.empty_like(xz)
    d_out = d_out.contiguous()
    dy, d_w_out = product_gradients(d_out, y, w_out)
    of_paths = []
    for number, (reverse, path) in enumerate(zip(ctx.reverses, _by_path(kept, _Kept), strict=True)):
        of_paths += _path_backward(path, reverse, dy, xz, d_xz, add=number > 0)
    d_hidden, d_w_in = product_gradients(d_xz, hidden, w_in)
    d_b_in, d_b_out = (
        d.sum((0, 1)).float() if biased else None for d, biased in zip((d_xz, d_out), ctx.biased, strict=True)
    )
    return None, None, d_hidden.to(ctx.types[0]), d_w_in.float(), d_b_in, d_w_out.float(), d_b_out, *of_paths


def _path_backward(path: _Kept, reverse: bool, dy: Tensor, xz: Tensor, d_xz: Tensor, add: bool) -> _Path:
    """The gradients of a path's parameters; those of the branches are written to `d_xz` [B, L, 2 E], or added."""
    u, joined, delta, starts, A, taps, b_conv, w_x, w_dt, b_dt, D = path
    (x, z), (dx, dz) = xz.chunk(2, dim=-1), d_xz.chunk(2, dim=-1)
    d_joined = torch.empty_like(joined)
    (dt, B, C), (d_dt, *_) = _split(joined, w_dt, A), _split(d_joined, w_dt, A)
    du, d_delta, dA, d_matrices, dD, d_b_dt = scan.backward_in_c(
        dy, None, starts, u, delta, A, B, C, D, z, b_dt, softplus=True, reverse=reverse, dz=dz, add=add
    )
    d_dt_product, d_w_dt = product_gradients(d_delta, dt, w_dt)
    d_dt.copy_(d_dt_product)
    d_joined[..., w_dt.shape[1] :].unflatten(-1, (2, -1)).copy_(d_matrices.permute(1, 2, 0, 3))
    du_more, d_w_x = product_gradients(d_joined, u, w_x)
    d_taps, d_b_conv = conv.backward_in_c(
        du, du_more, x, taps.squeeze(1), b_conv, silu=True, reverse=reverse, dx=dx, add=add
    )
    return _Path(
        d_taps.unsqueeze(1),
        None if b_conv is None else d_b_conv,
        d_w_x.float(),
        d_w_dt.float(),
        d_b_dt,
        dA * A,  # A = -exp(A_log)
        dD,
    )


def _by_path(values: Sequence[Tensor | None], kind: Any) -> list[Any]:
    """`values` as tuples of one kind, one for each path."""
    size = len(kind._fields)
    return [kind(*values[first : first + size]) for first in range(0, len(values), size)]


def _split(joined: Tensor, w_dt: Tensor, A: Tensor) -> tuple[Tensor, ...]:
    """[B, L, R + 2 N] -> dt [B, L, R], B and C [B, L, N], as views."""
    return joined.split([w_dt.shape[1], A.shape[1], A.shape[1]], dim=-1)
