"""The selective scan in plain PyTorch, vectorised over chunks of time, with the state carried from chunk to chunk.

Only one chunk of [T, B, G, E, N] states exists at a time. The backward pass recomputes the states of a chunk from
the state at its start, so that training stores B D N numbers per chunk and not B D L N. Works on any device.

Symbols: B batch, L time, T length of a chunk, G groups that share B_t and C_t, E channels per group, N state size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from audio_mamba.models.ops.calls import ScanCall

# Time steps per chunk. Short chunks stay in the processor's caches; long ones store fewer states for backward.
CHUNK = 16


def unsupported_reason(call: ScanCall) -> str | None:
    """Only float64, which the reference computes in float64."""
    return "u is float64, and this back end computes in float32" if call.u.dtype == torch.float64 else None


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
    if reverse:
        u, delta, B, C = (t.flip(-1) for t in (u, delta, B, C))
        z = z if z is None else z.flip(-1)
    with torch.autocast(u.device.type, enabled=False):
        batch, channels, length = u.shape
        groups = math.lcm(*(t.shape[1] if t.dim() == 4 else 1 for t in (B, C)))
        x, steps = (t.float().permute(2, 0, 1) for t in (u, delta))  # [B, D, L] -> [L, B, D]
        if delta_bias is not None:
            steps = steps + delta_bias.float()
        if delta_softplus:
            steps = F.softplus(steps)
        grouped = (length, batch, groups, channels // groups)
        y, state = _Scan.apply(
            x.reshape(grouped),
            steps.reshape(grouped),
            A.float().reshape(*grouped[2:], A.shape[1]),
            _time_first(B, groups),
            _time_first(C, groups),
        )
        y = y.reshape(length, batch, channels)
        if D is not None:
            y = y + D.float() * x
        y = y.permute(1, 2, 0)  # [L, B, D] -> [B, D, L]
        if z is not None:
            y = y * F.silu(z.float())
    y = y.to(u.dtype).flip(-1) if reverse else y.to(u.dtype)
    return (y, state.reshape(batch, channels, A.shape[1])) if return_last_state else y


def _time_first(matrix: Tensor, groups: int) -> Tensor:
    """B or C as [B, N, L] or [B, G', N, L] with G' dividing G -> [L, B, G, N]."""
    if matrix.dim() == 3:
        matrix = matrix[:, None]
    return matrix.float().repeat_interleave(groups // matrix.shape[1], dim=1).permute(3, 0, 1, 2)


class _Scan(torch.autograd.Function):
    """x, steps [L, B, G, E], A [G, E, N], B, C [L, B, G, N] -> y [L, B, G, E], last state [B, G, E, N]."""

    @staticmethod
    def forward(ctx, x, steps, A, B, C):
        state = x.new_zeros(*x.shape[1:], A.shape[-1])
        y, starts = torch.empty_like(x), []
        for begin in range(0, x.shape[0], CHUNK):
            chunk = slice(begin, begin + CHUNK)
            starts.append(state)
            _, states = _run_chunk(x[chunk], steps[chunk], A, B[chunk], state)
            torch.matmul(states, C[chunk].unsqueeze(-1), out=y[chunk].unsqueeze(-1))  # sum over N
            state = states[-1].clone()
        ctx.save_for_backward(x, steps, A, B, C, *starts)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_state):
        x, steps, A, B, C, *starts = ctx.saved_tensors
        grad_x, grad_steps = torch.empty_like(x), torch.empty_like(steps)
        grad_A, grad_B, grad_C = torch.zeros_like(A), torch.empty_like(B), torch.empty_like(C)
        for number, start in reversed(list(enumerate(starts))):
            chunk = slice(number * CHUNK, (number + 1) * CHUNK)
            decay, states = _run_chunk(x[chunk], steps[chunk], A, B[chunk], start)
            dy = grad_y[chunk].unsqueeze(-2)  # [T, B, G, 1, E]
            grad_C[chunk] = (dy @ states).squeeze(-2)

            # The adjoint recurrence g_t = C_t dy_t + decay_{t+1} g_{t+1}; grad_state enters as decay_{t+1} g_{t+1}.
            adjoint = grad_y[chunk].unsqueeze(-1) * C[chunk].unsqueeze(-2)  # [T, B, G, E, N]
            adjoint[-1] += grad_state
            decays, adjoints = decay.unbind(0), adjoint.unbind(0)
            for t in range(len(adjoints) - 2, -1, -1):
                adjoints[t].addcmul_(decays[t + 1], adjoints[t + 1])
            grad_state = decays[0] * adjoints[0]

            grad_input = (adjoint @ B[chunk].unsqueeze(-1)).squeeze(-1)  # of steps * x: [T, B, G, E]
            grad_B[chunk] = ((steps[chunk] * x[chunk]).unsqueeze(-2) @ adjoint).squeeze(-2)
            grad_x[chunk] = grad_input * steps[chunk]
            # decay = exp(steps A), so the gradient of its exponent is g_t * decay_t * h_{t-1}.
            grad_exponent = adjoint.mul_(decay)
            grad_exponent[1:] *= states[:-1]
            grad_exponent[0] *= start
            grad_A += torch.einsum("tbgen,tbge->gen", grad_exponent, steps[chunk])
            grad_steps[chunk] = grad_input * x[chunk] + (grad_exponent * A).sum(-1)
        return grad_x, grad_steps, grad_A, grad_B, grad_C


def _run_chunk(x: Tensor, steps: Tensor, A: Tensor, B: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Decays exp(steps A) and states of one chunk, both [T, B, G, E, N], given the state before it."""
    decay = torch.exp_(steps.unsqueeze(-1) * A)
    states = (steps * x).unsqueeze(-1) * B.unsqueeze(-2)  # inputs, turned into states in place
    for decay_t, state_t in zip(decay.unbind(0), states.unbind(0)):
        state = state_t.addcmul_(decay_t, state)
    return decay, states
