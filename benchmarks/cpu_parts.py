"""The parts of a block of SSAM-tiny on a CPU: their shares of the machine's ceilings, and their errors.

Each part runs alone at batch 8 and 251 tokens, forward, and forward with backward. Its least time is what the machine
needs for its matrix products, for its exponentials and for moving its inputs and outputs between memory and processor,
each at the rate of the ceiling; the largest of the three counts. Errors are relative root mean squares against float64,
of the worst output and of the worst gradient, beside those of plain PyTorch in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.ops.add_norm import add_norm
from audio_mamba.models.ops.causal_conv1d import causal_conv1d
from audio_mamba.models.ops.linear import linear
from audio_mamba.models.ops.selective_scan import selective_scan
from benchmarks.measure import fastest

BATCH, TOKENS, WIDTH, INNER, STATE, TAPS, RANK = 8, 251, 192, 576, 24, 4, 12
PRODUCTS = ((WIDTH, 2 * INNER), (INNER, RANK + 2 * STATE), (RANK, INNER), (INNER, WIDTH))  # inputs, outputs


@dataclass
class Part:
    """One part in one direction; times in seconds."""

    name: str
    backward: bool
    seconds: float
    least: float
    bound: str  # the ceiling that gives `least`


@dataclass
class Error:
    """Relative errors of a part against float64: of its output and of its worst gradient."""

    name: str
    output: float
    gradient: float
    plain_output: float
    plain_gradient: float


@dataclass(frozen=True)
class Work:
    """What a part has to do: FLOPs of products, exponentials, and values read and written."""

    flops: float = 0
    exponentials: float = 0
    values: float = 0


def inputs(batch: int = BATCH) -> dict[str, list[Tensor]]:
    """The tensors of each part, drawn as they are early in training; [batch, channels, tokens] for scan and conv."""
    torch.manual_seed(0)

    def inner(width: int = INNER) -> Tensor:
        return torch.randn(batch, TOKENS, width).transpose(1, 2)

    A = -torch.arange(1.0, STATE + 1).repeat(INNER, 1)
    return {
        "products": [t for i, o in PRODUCTS for t in (torch.randn(batch, TOKENS, i), torch.randn(o, i))],
        "scan": [inner(), inner(), A, inner(STATE), inner(STATE), torch.ones(INNER), inner(), torch.randn(INNER) - 4],
        "convolution": [inner(), torch.randn(INNER, TAPS), torch.randn(INNER)],
        "add + norm": [torch.randn(batch, TOKENS, WIDTH), torch.randn(batch, TOKENS, WIDTH)],
    }


def functions(plain: bool, dtype: torch.dtype = torch.float32) -> dict[str, Callable[..., list[Tensor]]]:
    """Each part by the project's choice of kernels, or in plain PyTorch."""
    product, backend = (F.linear, "reference") if plain else (linear, "auto")
    norm = nn.LayerNorm(WIDTH).to(dtype)

    def scan(u, delta, A, B, C, D, z, bias) -> list[Tensor]:
        return [selective_scan(u, delta, A, B, C, D, z, bias, delta_softplus=True, backend=backend)]

    return {
        "products": lambda *tensors: [product(x, w) for x, w in zip(tensors[::2], tensors[1::2], strict=True)],
        "scan": scan,
        "convolution": lambda x, w, b: [causal_conv1d(x, w, b, "silu", backend)],
        "add + norm": lambda hidden, residual: list(add_norm(hidden, residual, norm, backend=backend)),
    }


def work(name: str, backward: bool) -> Work:
    """The least work. Backward needs two products for each one, and the exponentials again."""
    rows = BATCH * TOKENS
    times, of_gates = (3, 2) if backward else (1, 1), rows * INNER
    wide, narrow = rows * INNER, rows * WIDTH
    return {
        "products": Work(flops=times[0] * 2 * rows * sum(i * o for i, o in PRODUCTS)),
        "scan": Work(
            exponentials=times[1] * (wide * STATE + 2 * of_gates),
            values=4 * wide + (backward and 7 * wide),  # u, delta, z, y; and again with dy, du, d_delta, dz
        ),
        "convolution": Work(exponentials=times[1] * wide, values=2 * wide + (backward and 3 * wide)),
        "add + norm": Work(values=4 * narrow + (backward and 4 * narrow)),
    }[name]


def measure() -> list[Part]:
    """Times of all parts and of the ceilings, in this process."""
    matrix, vector, large = torch.randn(1536, 1536), torch.randn(2**17), torch.randn(2**25)
    out, other = torch.empty_like(vector), torch.empty_like(large)
    with torch.no_grad():
        flops = 2 * matrix.shape[0] ** 3 / fastest(lambda: linear(matrix, matrix))
        exponentials = vector.numel() / fastest(lambda: torch.exp(vector, out=out))
        values = 2 * large.numel() / fastest(lambda: other.copy_(large))
    parts = []
    for name, function in functions(plain=False).items():
        leaves = [t.requires_grad_() for t in inputs()[name]]
        for backward in (False, True):
            task = work(name, backward)
            bounds = {
                "products": task.flops / flops,
                "exponentials": task.exponentials / exponentials,
                "memory": task.values / values,
            }
            bound = max(bounds, key=lambda kind: bounds[kind])
            seconds = fastest(partial(_run, function, leaves, backward))
            parts.append(Part(name, backward, seconds, bounds[bound], bound))
    return parts


def _run(function: Callable[..., list[Tensor]], leaves: list[Tensor], backward: bool) -> list[Tensor]:
    """Outputs and, with `backward`, gradients for gradients of ones, in the memory order of the outputs."""
    with torch.set_grad_enabled(backward):
        outputs = function(*leaves)
    if not backward:
        return outputs
    return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])]


def errors() -> list[Error]:
    """The errors of all parts at batch 1."""
    found = []
    for name, tensors in inputs(batch=1).items():
        exact = _results(name, tensors, True, torch.float64)
        ours, plain = (_results(name, tensors, plain, torch.float32) for plain in (False, True))
        found.append(Error(name, *_worst(ours, exact), *_worst(plain, exact)))
    return found


def _results(name: str, tensors: list[Tensor], plain: bool, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients as float64."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    every = [t.detach().double() for t in _run(functions(plain, dtype)[name], leaves, True)]
    return every[: -len(leaves)], every[-len(leaves) :]


def _worst(found: tuple[list[Tensor], ...], exact: tuple[list[Tensor], ...]) -> tuple[float, float]:
    output, gradient = (
        max(float((a - b).norm() / b.norm().clamp(min=1e-300)) for a, b in zip(these, those, strict=True))
        for these, those in zip(found, exact, strict=True)
    )
    return output, gradient


def table(parts: list[Part]) -> str:
    """The parts in markdown."""
    lines = ["| part of a block | pass | ms | of ceiling | ceiling |", "|---|---|---:|---:|---|"]
    for one in parts:
        direction = "forward + backward" if one.backward else "forward"
        lines.append(
            f"| {one.name} | {direction} | {1000 * one.seconds:.2f} | {one.least / one.seconds:.0%} | {one.bound} |"
        )
    return "\n".join(lines)


def error_table(errors: list[Error]) -> str:
    """The errors in markdown."""
    lines = [
        "| error against float64 | output | worst gradient | output, plain PyTorch | worst gradient, plain PyTorch |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {e.name} | {e.output:.1e} | {e.gradient:.1e} | {e.plain_output:.1e} | {e.plain_gradient:.1e} |"
        for e in errors
    ]
    return "\n".join(lines)
