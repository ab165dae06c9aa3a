"""The selective scan by Triton kernels of our own: forward and backward with float32 states on CUDA tensors.

`_plan` chooses one of two ways from the shapes alone, so results do not depend on the GPU:

- Short sequences, many channels (pretraining: batch 256, D 576): each program walks through all time steps of a block
  of channels with the states in registers. Backward walks back over the same steps. Forward stores the state before
  every span of 32 steps, B D N L / 32 numbers; backward recomputes the states in between.
- A long clip with few channels: time is cut into chunks. A first pass computes what each chunk adds to the state and
  the sum of its steps (exp(A sum) is the chunk's decay), a second pass the state that each chunk starts from. Then all
  chunks are walked through at once. Backward does the same with the gradient of the state.

To walk backward in time, the kernels get the address of the last step and negative strides.

The least that it costs, per channel and time step, at s bytes per number:

                 bytes                                   exponentials
    forward      4 s (u, delta, z, y) + N / 8            N (twice in chunks)
    backward     7 s (u, delta, z, dy, du, d_delta, dz)  2.5 N: the states before each group, those before each pair
                 + N / 8 + N / 2 (dB, dC of a block)     of steps, and the way back (3.5 N in chunks)

N / 8 are the states before the spans. N / 2 is 2 x 4 bytes x N / 32, written and read: a block of 32 channels leaves a
row of dB and of dC, and these rows are summed in a fixed order (no atomics). B and C are read once per block, from
cache, as is the scratch memory of backward. At pretraining size, with L 251, N 24 and bfloat16, there are 37 million
channel steps: forward moves 0.41 GB and computes 0.89 G exponentials, backward 1.07 GB and 2.2 G. Every kernel needs at
least 8 and 14 bytes and N exponentials per channel step; benchmarks/gpu.py compares with these bounds.
"""

import math

import torch
from torch import Tensor

from audio_mamba.models.ops import triton_support
from audio_mamba.models.ops.calls import ScanCall
from audio_mamba.models.ops.memory_layout import channels_adjacent
from audio_mamba.models.ops.private_torch import unwatched
from audio_mamba.models.ops.selective_scan.groups import register_gradients, scan_by_group
from audio_mamba.models.ops.triton_support import power_of_two, walk_start, walk_strides

AUTO_DEVICES = ("cuda",)  # on the CPU runs Triton's interpreter, which is for tests
SPAN = 32  # steps between two states that are kept for backward; a chunk is a whole number of spans
MIN_CHUNK = 64  # steps
PROGRAMS = 2048  # keep a large GPU busy; with less than half as many, time is cut into chunks
# Registers limit these three.
GROUP = 4  # steps that are loaded together
BLOCK = 32  # channels per program
PER_THREAD = 32  # most states per thread
COMBINED = 8  # chunks whose ends are loaded together
# Backward is faster with fewer registers (by 7% with 24 states on an H200): a third warp fits on a scheduler, which is
# worth more than what is spilled. With more states too much would be spilled.
BACKWARD_REGISTERS, MOST_STATES_WITH_FEW_REGISTERS = 168, 24
LOG2_E = math.log2(math.e)
# The kernels count in 32 bits.
MOST_NUMBERS = 2**31 - 1  # of B in one batch entry
MOST_STRIDE = 2**27  # numbers from one step to the next, so that those of a group of steps can be counted, too


def unsupported_reason(call: ScanCall) -> str | None:
    """A sequence of billions of steps, or see `models.ops.triton_support.unsupported_reason`."""
    if (numbers := call.u.shape[2] * padded(call.A.shape[1])) > MOST_NUMBERS:
        return f"B has {numbers} numbers in a batch entry, more than {MOST_NUMBERS}"
    return triton_support.unsupported_reason(*call.tensors)


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
    D, delta_bias = (t if t is None else t.float() for t in (D, delta_bias))
    watched = not unwatched(u, delta, A, B, C, D, z, delta_bias)
    operator = torch.ops.audio_mamba.selective_scan_triton if watched else _forward_in_triton
    y, last = scan_by_group(operator, u, delta, A.float(), B, C, D, z, delta_bias, delta_softplus, reverse)
    return (y, last) if return_last_state else y


def _forward_in_triton(
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
    """u, delta, z [B, L, D], A [D, N], B, C [B, L, N], D, delta_bias [D]; A, D and delta_bias float32
    -> y [B, L, D], last state [B, N, D], states before each span [B, spans, N, D] (no spans unless `save`)."""
    from audio_mamba.models.ops.selective_scan import triton_kernels as kernels

    y, last, starts = _outputs(u, A, save)
    if not u.numel():
        return y, last.zero_(), starts
    padded_last = last.new_empty(len(u), padded(A.shape[1]), u.shape[-1])
    launch = _Launch(u, delta, A, B, C, D, z, delta_bias, softplus, reverse)
    with triton_support.device_of(u):
        carry = None
        if launch.chunks > 1:
            carry = launch.carry(launch.u, None, launch.B, None, adjoint=False)
        kernels.forward[launch.grid](
            launch.u,
            launch.delta,
            launch.A,
            launch.B,
            launch.C,
            launch.D,
            launch.z,
            launch.bias,
            carry,
            walk_start(y, reverse),
            padded_last,
            starts if save else None,
            *launch.sizes,
            *launch.strides(launch.u, launch.delta, launch.z),
            SIGN=launch.sign,
            SOFTPLUS=softplus,
            SPAN=SPAN,
            **launch.tiles,
        )
    return y, padded_last[:, : A.shape[1]].contiguous(), starts


def _outputs(u, A, save):
    (batch, length, channels), state = u.shape, A.shape[1]
    spans = -(-length // SPAN) if save else 0
    return (
        u.new_empty(batch, length, channels),
        A.new_empty(batch, state, channels),
        A.new_empty(batch, spans, padded(state), channels),
    )


_forward = torch.library.custom_op("audio_mamba::selective_scan_triton", _forward_in_triton, mutates_args=())


@_forward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, softplus, save, reverse=False):
    return _outputs(u, A, save)


@torch.library.custom_op("audio_mamba::selective_scan_triton_backward", mutates_args=())
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
    from audio_mamba.models.ops.selective_scan import triton_kernels as kernels

    du, d_delta, dA, dB, dC, dD, dz, d_bias = outputs = _gradients_like(u, delta, A, B, C, z)
    if not u.numel():
        for output in outputs:
            output.zero_()
        return outputs
    launch = _Launch(u, delta, A, B, C, D, z, delta_bias, softplus, reverse)
    (batch, length, channels), state = u.shape, padded(A.shape[1])
    blocks, parts = -(-channels // BLOCK), batch * launch.chunks
    scratch = A.new_empty(*launch.grid, SPAN // GROUP, state, BLOCK)
    shares_of_BC = A.new_empty(2, blocks, batch, length, state)
    shares_of_A, shares_of_D = A.new_empty(parts, state, channels), A.new_empty(2, parts, channels)
    dy = walk_start(channels_adjacent(dy), reverse)
    with triton_support.device_of(u):
        carry = d_last if d_last is None else _padded_to(d_last, state, dim=1)
        if launch.chunks > 1:
            carry = launch.carry(dy, launch.z, launch.C, carry, adjoint=True)
        length_and_channels, chunking = launch.sizes[:2], launch.sizes[2:]
        kernels.backward[launch.grid](
            dy,
            carry,
            starts,
            scratch,
            launch.u,
            launch.delta,
            launch.A,
            launch.B,
            launch.C,
            launch.D,
            launch.z,
            launch.bias,
            walk_start(du, reverse),
            walk_start(d_delta, reverse),
            z if z is None else walk_start(dz, reverse),
            shares_of_A,
            *(walk_start(shares, reverse) for shares in shares_of_BC.unbind(0)),
            *shares_of_D.unbind(0),
            batch,
            *length_and_channels,
            BLOCK,
            *chunking,
            *launch.strides(dy, launch.u, launch.delta, launch.z),
            SIGN=launch.sign,
            SOFTPLUS=softplus,
            SPAN=SPAN,
            **backward_options(state) | launch.tiles,
        )
    dB, dC = (
        share.sum(0)[..., : A.shape[1]].to(t.dtype).contiguous() for share, t in zip(shares_of_BC.unbind(0), (B, C))
    )
    dD, d_bias = (share.sum(0) for share in shares_of_D.unbind(0))
    return du, d_delta, shares_of_A.sum(0)[: A.shape[1]].t().contiguous(), dB, dC, dD, dz, d_bias


def _gradients_like(u, delta, A, B, C, z):
    channels = u.shape[-1]
    return (
        u.new_empty(u.shape),
        delta.new_empty(u.shape),
        A.new_empty(A.shape),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        A.new_empty(channels),
        u.new_empty(0) if z is None else z.new_empty(u.shape),
        A.new_empty(channels),
    )


@_backward.register_fake
def _(dy, d_last, starts, u, delta, A, B, C, D, z, delta_bias, softplus, reverse=False):
    return _gradients_like(u, delta, A, B, C, z)


register_gradients(_forward, torch.ops.audio_mamba.selective_scan_triton_backward)


class _Launch:
    """The arguments of a call in the form that the kernels read, and how the work is divided."""

    def __init__(self, u, delta, A, B, C, D, z, delta_bias, softplus, reverse):
        self.reverse, self.sign = reverse, -1 if reverse else 1
        self.u, self.delta, self.z = (
            t if t is None else walk_start(_near_and_adjacent(t), reverse) for t in (u, delta, z)
        )
        self.D, self.bias = (t if t is None else t.contiguous() for t in (D, delta_bias))
        states = padded(A.shape[1])
        self.A = A.new_zeros(states, len(A))  # [S, D]
        torch.mul(A.t(), LOG2_E, out=self.A[: A.shape[1]])
        padded_rows = (_padded_to(t, states, dim=2) for t in (B, C))  # [B, L, S], for wide loads
        self.B, self.C = (walk_start(t, reverse) for t in padded_rows)
        self.softplus, self.tiles = softplus, tiles(A.shape[1])
        self.batch, length, self.channels = u.shape
        self.chunks, chunk_length = _plan(*u.shape)
        self.sizes = (length, self.channels, self.chunks, chunk_length)
        self.grid = (self.batch * self.chunks * -(-self.channels // BLOCK),)

    def strides(self, *sequences: Tensor | None) -> list[int]:
        """`walk_strides` of all sequences, one after the other."""
        return [stride for t in sequences for stride in walk_strides(t, self.reverse)]

    def carry(self, x: Tensor, gate: Tensor | None, row: Tensor, entry: Tensor | None, adjoint: bool) -> Tensor:
        """What each chunk starts from, [B, chunks, S, D]: the state, or as `adjoint` the gradient q of `backward`."""
        from audio_mamba.models.ops.selective_scan import triton_chunk_kernels as kernels

        states = len(self.A)
        ends = self.A.new_empty(self.batch, self.chunks, states, self.channels)
        totals, carry = ends.new_empty(self.batch, self.chunks, self.channels), torch.empty_like(ends)
        kernels.chunk_ends[self.grid](
            x,
            gate,
            self.delta,
            self.A,
            row,
            self.bias,
            ends,
            totals,
            *self.sizes,
            *self.strides(x, gate, self.delta),
            SIGN=self.sign,
            REVERSE=adjoint,
            SOFTPLUS=self.softplus,
            **self.tiles,
        )
        grid = (self.batch * states * -(-self.channels // BLOCK),)
        kernels.combine[grid](
            ends,
            totals,
            self.A,
            carry,
            entry,
            self.channels,
            states,
            self.chunks,
            REVERSE=adjoint,
            GROUP=COMBINED,
            BLOCK=BLOCK,
            num_warps=1,
        )
        return carry


def tiles(states: int) -> dict[str, int]:
    """How the kernels divide their work. States are PARTS tiles of WIDTH: of 8 up to 32 states, else at most four."""
    width = power_of_two(states if states < 8 else max(8, -(-states // 4)))
    parts = -(-states // width)
    threads = power_of_two(width * parts) * BLOCK // PER_THREAD
    return {"GROUP": GROUP, "BLOCK": BLOCK, "WIDTH": width, "PARTS": parts, "num_warps": min(max(threads // 32, 1), 8)}


def backward_options(states: int) -> dict[str, int]:
    """Compiler options of the backward kernel, for S states."""
    if states > MOST_STATES_WITH_FEW_REGISTERS or torch.version.hip:  # AMD's compiler has no such option
        return {}
    return {"maxnreg": BACKWARD_REGISTERS}


def padded(states: int) -> int:
    """S, the number of states that the kernels see: the given ones, then zeros."""
    cut = tiles(states)
    return cut["WIDTH"] * cut["PARTS"]


def _near_and_adjacent(tensor: Tensor) -> Tensor:
    """`channels_adjacent`, copied also where the steps of time are very far from each other."""
    return channels_adjacent(tensor) if tensor.stride(1) <= MOST_STRIDE else tensor.contiguous()


def _padded_to(tensor: Tensor, size: int, dim: int) -> Tensor:
    """The tensor as contiguous float32, with zeros up to `size` along `dim`; itself where nothing is to be done."""
    if tensor.shape[dim] == size:
        return tensor.float().contiguous()
    shape = list(tensor.shape)
    shape[dim] = size
    result = tensor.new_zeros(shape, dtype=torch.float32)
    result.narrow(dim, 0, tensor.shape[dim]).copy_(tensor)
    return result


def _plan(batch: int, length: int, channels: int) -> tuple[int, int]:
    """The number of chunks that time is cut into, and the steps of each."""
    programs = batch * -(-channels // BLOCK)
    chunks = max(1, min(PROGRAMS // max(programs, 1), length // MIN_CHUNK))
    chunk_length = -(-length // (chunks * SPAN)) * SPAN
    return -(-length // chunk_length), chunk_length
