"""A Triton kernel that does little but exponentials, to measure how many a GPU can do."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK, REPEATS = 1024, 256


@triton.jit
def _exponentials(x_ptr, y_ptr, REPEATS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    for _ in range(REPEATS):
        x = tl.exp2(x) - 1.0  # stays within [-1, 0] from there
    tl.store(y_ptr + at, x)


def exponentials(x: Tensor, y: Tensor) -> int:
    """REPEATS exponentials of each number of x [k BLOCK] in float32; returns their count."""
    _exponentials[(x.numel() // BLOCK,)](x, y, REPEATS=REPEATS, BLOCK=BLOCK)
    return REPEATS * x.numel()


def make_vectors(device: str) -> tuple[Tensor, Tensor]:
    x = -torch.rand(BLOCK * 4096, device=device)
    return x, torch.empty_like(x)
