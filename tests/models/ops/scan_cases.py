"""Inputs for the selective scan, and the comparison of a back end with float64."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_mamba.models.ops.selective_scan import BACKENDS, reference

# The others need a CUDA device, or Triton's interpreter: test_triton_scan.py and test_cuda.py.
CPU_BACKENDS = [name for name in BACKENDS if name not in ("mamba_ssm", "triton")]
LENGTHS, STATES, CHANNELS, BATCHES = (1, 2, 63, 251, 1024), (1, 8, 16, 24, 64), (1, 5, 16, 33, 576), (1, 2, 3, 1, 2)
OPTIONS = ({}, {"optional": False}, {"groups": True}, {"channels_last": False}, {"groups": True, "softplus": False})
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float32)
# An orthogonal array: its 25 rows contain every pair of settings of any two factors.
ROWS = [(i, j, *((i + k * j) % 5 for k in (1, 2, 3, 4))) for i in range(5) for j in range(5)]


def make_inputs(
    batch: int,
    channels: int,
    length: int,
    state: int,
    *,
    groups: int = 0,
    optional: bool = True,
    softplus: bool = True,
    channels_last: bool = True,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Inputs by name. `groups` > 0 makes B and C [B, G, N, L]; `softplus`: delta is meant to pass through one."""
    rng = torch.Generator().manual_seed(seed)

    def sequence(*sizes):
        if channels_last:
            *front, last = sizes
            return torch.randn(*front, length, last, generator=rng).transpose(-1, -2).to(dtype)
        return torch.randn(*sizes, length, generator=rng).to(dtype)

    matrix = (batch, groups, state) if groups else (batch, state)
    delta = sequence(batch, channels) - 2
    inputs = {
        "u": sequence(batch, channels),
        "delta": delta if softplus else F.softplus(delta),
        "A": -torch.rand(channels, state, generator=rng) * state,
        "B": sequence(*matrix),
        "C": sequence(*matrix),
    }
    if optional:
        inputs |= {
            "D": torch.randn(channels, generator=rng),
            "z": sequence(batch, channels),
            "delta_bias": torch.randn(channels, generator=rng),
        }
        if not softplus:
            inputs["delta_bias"] = F.softplus(inputs["delta_bias"] - 2)
    return inputs


def inputs_of(row: tuple[int, ...]) -> tuple[dict[str, Tensor], bool]:
    """The inputs for a row of ROWS, and whether its scan applies the softplus."""
    length, state, channels, batch, option, dtype = (
        choices[level]
        for choices, level in zip((LENGTHS, STATES, CHANNELS, BATCHES, OPTIONS, DTYPES), row, strict=True)
    )
    if channels * length * state > 4e6:
        batch = 1  # the reference keeps every state of every copy
    option = dict(option)
    if option.pop("groups", False):
        option["groups"] = {1: 1, 5: 5, 16: 4, 33: 3, 576: 2}[channels]
    inputs = make_inputs(batch, channels, length, state, dtype=dtype, **option)
    return inputs, option.get("softplus", True)


@dataclass
class Reversed:
    """A back end whose scan walks backward in time."""

    back_end: Any

    def __post_init__(self):
        self.selective_scan = partial(self.back_end.selective_scan, reverse=True)


@dataclass
class Flipped:
    """A back end, with all sequences flipped by hand before and after its scan."""

    back_end: Any

    def selective_scan(self, u, delta, A, B, C, z=None, **options):
        """Returns the output and the last state."""
        u, delta, B, C, z = (t if t is None else t.flip(-1) for t in (u, delta, B, C, z))
        y, last = self.back_end.selective_scan(u, delta, A, B, C, z=z, **options)
        return y.flip(-1), last


def outputs_and_gradients(
    back_end, inputs: dict[str, Tensor], softplus: bool = True, dtype: torch.dtype | None = None, device: str = "cpu"
) -> dict[str, Tensor]:
    """y, the last state, and the gradient of each input for fixed random weights of y and the state, computed on
    `device` and returned as float64 on the CPU."""
    leaves = {name: t.detach().to(device, dtype or t.dtype).requires_grad_() for name, t in inputs.items()}
    y, last = back_end.selective_scan(**leaves, delta_softplus=softplus, return_last_state=True)
    rng = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=rng, dtype=torch.float64) for t in (y, last)]
    torch.autograd.backward([y, last], [w.to(t) for w, t in zip(weights, (y, last))])
    results = {"y": y, "last state": last} | {f"d{k}": t.grad for k, t in leaves.items()}
    return {name: t.detach().double().cpu() for name, t in results.items()}


def check_against_float64(
    back_end, inputs: dict[str, Tensor], softplus: bool = True, device: str = "cpu", forgiven: float | None = None
) -> None:
    """Every number is finite, and no error exceeds twice the error of the reference in the inputs' own dtype.

    Two float32 roundings are allowed on top, since the reference may have no error at all on tiny tensors. On a GPU it
    is 32 roundings: each exponential there is wrong by up to two, and a state is a product of many.
    """
    if forgiven is None:
        forgiven = (2 if device == "cpu" else 32) * torch.finfo(torch.float32).eps
    truth = outputs_and_gradients(reference, inputs, softplus, torch.float64)
    plain = outputs_and_gradients(reference, inputs, softplus)
    ours = outputs_and_gradients(back_end, inputs, softplus, device=device)
    for name, true in truth.items():
        assert ours[name].shape == true.shape, name
        assert ours[name].isfinite().all(), name
        allowed = 2 * (plain[name] - true).norm() + forgiven * true.norm()
        assert (ours[name] - true).norm() <= allowed, f"{name}: {(ours[name] - true).norm()} > {allowed}"
