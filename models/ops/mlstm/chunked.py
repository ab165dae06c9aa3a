"""The mLSTM cell chunk by chunk, linear in the length (the chunkwise form of arXiv 2405.04517, appendix).

Within a chunk the equation is used as it stands; what earlier chunks left comes through a memory per head

    S [d, d] = sum_j exp(F_Tj + i_j - M) k_j v_j^T,   n [d] = the same sum without v,   M = the largest exponent

of the step T before the chunk. For the way back only these memories are kept, and each chunk is computed again.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_mamba.models.ops.mlstm.parallel import EPSILON, LARGEST

CHUNK = 64  # steps; the work of a chunk is one product of CHUNK x CHUNK and one with the memory
NOTHING = -1e30  # the exponent of an empty memory


class Memory(NamedTuple):
    """What is left of the steps so far."""

    S: Tensor  # [B, H, d, d]
    n: Tensor  # [B, H, d]
    M: Tensor  # [B, H]


def mlstm(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """See `models.ops.mlstm`; all inputs of one dtype."""
    inputs = (q, k, v, i, f)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        return _Recomputed.apply(*inputs)
    return _all_chunks(*inputs)[0]


def _all_chunks(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> tuple[Tensor, list[Memory]]:
    """h, and the memory before each chunk."""
    batch, heads, length, width = q.shape
    memory = Memory(
        q.new_zeros(batch, heads, width, width), q.new_zeros(batch, heads, width), q.new_full((batch, heads), NOTHING)
    )
    rows, memories = [], []
    for start in range(0, length, CHUNK):
        part = slice(start, start + CHUNK)
        memories.append(memory)
        h, memory = _chunk(q[:, :, part], k[:, :, part], v[:, :, part], i[:, :, part], f[:, :, part], memory)
        rows.append(h)
    return torch.cat(rows, dim=2), memories


def _chunk(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """One chunk of T steps: q, k, v [B, H, T, d], i, f [B, H, T] -> h [B, H, T, d] and the memory after it."""
    steps, width = q.shape[-2:]
    left = F.logsigmoid(f).cumsum(-1)  # since the start of the chunk
    D = left[..., :, None] - left[..., None, :] + i[..., None, :]  # [B, H, T, T]
    future = torch.ones(steps, steps, dtype=torch.bool, device=q.device).triu(1)
    D = D.masked_fill(future, -math.inf)
    before = left + memory.M[..., None]  # the exponent of the memory at each step
    m = torch.maximum(D.amax(-1), before)  # [B, H, T]
    k = k / math.sqrt(width)
    C = (q @ k.transpose(-1, -2)) * torch.exp(D - m[..., None])
    recall = q * torch.exp(before - m)[..., None]  # [B, H, T, d]
    total = C.sum(-1) + (recall @ memory.n[..., None]).squeeze(-1)
    scale = torch.maximum(total.abs(), torch.exp((-m).clamp(max=LARGEST))) + EPSILON
    h = (C @ v + recall @ memory.S) / scale[..., None]

    last = left[..., -1:]
    exponent = last - left + i  # of each step at the end of the chunk
    M = torch.maximum(exponent.amax(-1), before[..., -1])
    weighted = k * torch.exp(exponent - M[..., None])[..., None]
    kept = torch.exp(before[..., -1] - M)
    S = kept[..., None, None] * memory.S + weighted.transpose(-1, -2) @ v
    n = kept[..., None] * memory.n + weighted.sum(-2)
    return h, Memory(S, n, M)


class _Recomputed(torch.autograd.Function):
    """`_all_chunks` that keeps its inputs and the memories, and computes the inside of each chunk again."""

    @staticmethod
    def forward(ctx, *inputs: Tensor) -> Tensor:
        h, memories = _all_chunks(*inputs)
        ctx.save_for_backward(*inputs, *(tensor for memory in memories for tensor in memory))
        return h

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dh: Tensor) -> tuple[Tensor, ...]:
        saved = ctx.saved_tensors
        inputs, memories = saved[:5], saved[5:]
        grads = [torch.empty_like(tensor) for tensor in inputs]
        d_memory = None  # nothing reads the memory after the last chunk
        for number in reversed(range(len(memories) // 3)):
            part = slice(number * CHUNK, (number + 1) * CHUNK)
            with torch.enable_grad():
                pieces = [tensor[:, :, part].detach().requires_grad_() for tensor in inputs]
                q, k, v, i, f = pieces
                memory = [tensor.detach().requires_grad_() for tensor in memories[3 * number : 3 * number + 3]]
                h, after = _chunk(q, k, v, i, f, Memory(*memory))
            outputs, d_outputs = [h], [dh[:, :, part]]
            if d_memory is not None:
                outputs, d_outputs = [h, *after], [dh[:, :, part], *d_memory]
            found = torch.autograd.grad(outputs, [*pieces, *memory], d_outputs)
            for grad, piece in zip(grads, found[:5], strict=True):
                grad[:, :, part] = piece
            d_memory = found[5:]
        return tuple(grads)
