"""The selective scan by the compiled kernels of native/csrc: forward and backward on CPU tensors.

Registered as torch operators on channels-last tensors [B, L, D], the layout of the Mamba block, so that torch.compile,
torch.export and torch.utils.checkpoint see one node. An exported program may run where the kernels cannot; there the
operators compute in plain PyTorch. Training keeps the state before each chunk of CHUNK steps; the backward operator
recomputes the states in between.
"""

import ctypes

import torch
from torch import Tensor

from audio_mamba.models.ops import native
from audio_mamba.models.ops.calls import ScanCall
from audio_mamba.models.ops.memory_layout import channels_adjacent
from audio_mamba.models.ops.native import View, pointer
from audio_mamba.models.ops.private_torch import unwatched
from audio_mamba.models.ops.selective_scan import chunked, reference
from audio_mamba.models.ops.selective_scan.groups import register_gradients, scan_by_group

# As in csrc/selective_scan.c: steps per chunk, and channels per task of backward, which gives one partial dB and dC.
CHUNK, BACKWARD_BLOCK = 16, 192


def unsupported_reason(call: ScanCall) -> str | None:
    """See `models.ops.native.unsupported_reason`."""
    return native.unsupported_reason(*call.tensors)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `models.ops.selective_scan`."""
    A = A.float()
    D, delta_bias = (t if t is None else t.float() for t in (D, delta_bias))
    watched = not unwatched(u, delta, A, B, C, D, z, delta_bias)
    operator = torch.ops.audio_mamba.selective_scan_cpu if watched else forward_in_c
    y, last = scan_by_group(operator, u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse)
    return (y, last) if return_last_state else y


def forward_in_c(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    save: bool,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """u, delta, z [B, L, D] and B, C [B, L, N] of any of `native.TYPES`, float32 A [D, N], D [D], delta_bias [D]
    -> y [B, L, D], last state [B, N, D], and for backward the states before each chunk
    [B, chunks, N, D] in an order of its own (no chunks unless `save`)."""
    y = u.new_empty(u.shape)
    return y, *forward_into(y, u, delta, A, B, C, D, z, delta_bias, softplus, save, reverse)


def forward_into(
    y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    save: bool,
    reverse: bool,
    add: bool = False,
) -> tuple[Tensor, Tensor]:
    """`forward_in_c` that writes its result to `y` [B, L, D], whose channels are adjacent, or adds it with `add`."""
    last, starts = _states(u, A, save)
    problem, kept = _problem(u, delta, A, B, C, D, z, delta_bias, softplus, starts if save else None, reverse, add)
    _run("selective_scan_forward", problem, View.of(y, reverse), last.data_ptr())
    return last, starts


def _states(u, A, save):
    (batch, length, channels), state = u.shape, A.shape[1]
    chunks = -(-length // CHUNK) if save else 0
    return A.new_empty(batch, state, channels), A.new_empty(batch, chunks, state, channels)


def _in_pytorch(u, delta, A, B, C, D, z, delta_bias, softplus, save, reverse=False):
    """`forward_in_c` without the kernels; it keeps nothing for backward."""
    module = reference if u.dtype == torch.float64 else chunked
    x, delta, B, C, z = (t if t is None else t.transpose(1, 2) for t in (u, delta, B, C, z))
    y, last = module.selective_scan(x, delta, A, B, C, D, z, delta_bias, softplus, True, reverse)
    return y.transpose(1, 2).contiguous(), last.transpose(1, 2).contiguous(), _states(u, A, save)[1]


_forward = torch.library.custom_op(
    "audio_mamba::selective_scan_cpu", native.or_in_pytorch(forward_in_c, _in_pytorch), mutates_args=()
)


@_forward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, softplus, save, reverse=False):
    return u.new_empty(u.shape), *_states(u, A, save)


def backward_in_c(
    dy: Tensor,
    d_last: Tensor | None,
    starts: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool,
    dz: Tensor | None,
    add: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, delta and A, those of B and C together as float32 [2, B, L, N], and those of D and
    delta_bias. The gradient of z is written to `dz` [B, L, D], whose channels are adjacent, or added to it with `add`.
    """
    du, d_delta = u.new_empty(u.shape), delta.new_empty(u.shape)
    (batch, length, channels), state = u.shape, A.shape[1]
    blocks = -(-channels // BACKWARD_BLOCK)
    d_matrices = A.new_empty(2, blocks, batch, length, state)
    dB, dC = d_matrices
    dA, (dD, d_bias) = A.new_empty(batch, channels, state), A.new_empty(2, batch, channels)
    problem, kept = _problem(u, delta, A, B, C, D, z, delta_bias, softplus, starts, reverse, add)
    dy, d_last = channels_adjacent(dy), d_last if d_last is None else d_last.contiguous()
    views = (View.of(t, reverse) for t in (dy, du, d_delta, dz, dB.flatten(0, 1), dC.flatten(0, 1)))
    gradients = _Gradients(*views, *map(pointer, (d_last, dA, dD, d_bias)))
    _run("selective_scan_backward", problem, gradients)
    return du, d_delta, dA.sum(0), d_matrices.sum(1), dD.sum(0), d_bias.sum(0)


@torch.library.custom_op("audio_mamba::selective_scan_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(
    dy: Tensor,
    d_last: Tensor | None,
    starts: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, delta, A, B, C, D, z and delta_bias; the gradient of an absent z is empty."""
    dz = None if z is None else z.new_empty(z.shape)
    du, d_delta, dA, (dB, dC), dD, d_bias = backward_in_c(
        dy, d_last, starts, u, delta, A, B, C, D, z, delta_bias, softplus, reverse, dz
    )
    dB, dC = dB.to(B.dtype, copy=True), dC.to(C.dtype, copy=True)  # operators may not return parts of one tensor
    return du, d_delta, dA, dB, dC, dD, u.new_empty(0) if dz is None else dz, d_bias


@_backward.register_fake
def _(dy, d_last, starts, u, delta, A, B, C, D, z, delta_bias, softplus, reverse=False):
    channels = A.new_empty(u.shape[-1])
    return (
        u.new_empty(u.shape),
        delta.new_empty(u.shape),
        A.new_empty(A.shape),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        channels,
        u.new_empty(0) if z is None else z.new_empty(z.shape),
        torch.empty_like(channels),
    )


def _gradients(dy, d_last, starts, *arguments):
    *tensors, softplus, reverse = arguments
    if native.unsupported_reason(*(t for t in tensors if t is not None)) is None:
        return torch.ops.audio_mamba.selective_scan_cpu_backward(dy, d_last, starts, *arguments)
    return native.gradients_in_pytorch(
        lambda *tensors: _in_pytorch(*tensors, softplus, False, reverse)[:2], tensors, (dy, d_last)
    )


register_gradients(_forward, _gradients)


class _Problem(ctypes.Structure):
    """`Problem` of csrc/selective_scan.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels", "state", "threads", "softplus", "add")),
        *((name, View) for name in ("u", "delta", "z", "B", "C")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "delta_bias", "starts")),
    ]


class _Gradients(ctypes.Structure):
    """`Gradients` of csrc/selective_scan.c."""

    _fields_ = [
        *((name, View) for name in ("dy", "du", "d_delta", "dz", "dB", "dC")),
        *((name, ctypes.c_void_p) for name in ("d_last", "dA", "dD", "d_bias")),
    ]


def _problem(u, delta, A, B, C, D, z, delta_bias, softplus, starts, reverse, add):
    """The struct, and the tensors that must outlive its pointers."""
    u, delta, z = channels_adjacent(u), channels_adjacent(delta), z if z is None else channels_adjacent(z)
    A, D, delta_bias = (t if t is None else t.contiguous() for t in (A, D, delta_bias))
    problem = _Problem(
        *u.shape,
        A.shape[1],
        torch.get_num_threads(),
        softplus,
        add,
        *(View.of(t, reverse) for t in (u, delta, z, B, C)),
        *map(pointer, (A, D, delta_bias, starts)),
    )
    return problem, (u, delta, z, A, D, delta_bias)


def _run(name, *arguments):
    if not native.call(name, *arguments):
        raise MemoryError(f"{name}: not enough memory for the working arrays")
