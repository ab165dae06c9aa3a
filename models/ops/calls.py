"""What an operator is asked to compute, argument by argument: a back end reads it to say whether it supports the call.

Symbols: B batch, L time, D channels (of the inner sequence, except in a whole block), N state size, K taps, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """The arguments of one call, by name."""

    @property
    def values(self) -> list[Any]:
        """The arguments in order. (`vars(self).values()` breaks the graphs of torch.compile in torch 2.11.)"""
        names: tuple[str, ...] = self.__match_args__
        return [getattr(self, name) for name in names]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, without absent ones."""
        return [value for value in self.values if isinstance(value, Tensor)]

    @property
    def device_type(self) -> str:
        """Of the first argument, which is always a tensor: "cpu", "cuda" or another."""
        return self.values[0].device.type

    @property
    def needs_gradient(self) -> bool:
        """Whether autograd will record the call."""
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in self.tensors)


@dataclass(frozen=True)
class ScanCall(Call):
    """`selective_scan`: u, delta, z [B, D, L]; A [D, N]; B, C [B, N, L] or [B, G, N, L]; D, delta_bias [D]."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_softplus: bool = False
    return_last_state: bool = False
    reverse: bool = False


@dataclass(frozen=True)
class ConvCall(Call):
    """`causal_conv1d`: x [B, D, L]; weight [D, K]; bias [D]; activation None or "silu"."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    activation: str | None = None
    reverse: bool = False


@dataclass(frozen=True)
class AddNormCall(Call):
    """`add_norm`: hidden, residual [B, L, D], and the norm's layer, whose parameters are not among `tensors`."""

    hidden: Tensor
    residual: Tensor | None
    norm: nn.LayerNorm | nn.RMSNorm
    residual_in_fp32: bool = False


class MambaPath(NamedTuple):
    """What a Mamba block computes with on one way through time. E: inner channels, R: rank of the step."""

    conv1d: nn.Conv1d  # weight [E, 1, K]
    x_proj: nn.Linear  # E -> R + 2 N
    dt_proj: nn.Linear  # R -> E
    A_log: Tensor  # [E, N]
    D: Tensor  # [E]
    reverse: bool  # from the last token to the first


class MambaParameters(Protocol):
    """The parameters of a Mamba block, such as `models.mamba.Mamba`."""

    in_proj: nn.Linear  # D -> 2 E
    out_proj: nn.Linear  # E -> D

    @property
    def paths(self) -> Sequence[MambaPath]:
        """One or two; the results of both are summed before `out_proj`."""


@dataclass(frozen=True)
class BlockCall(Call):
    """`mamba_block`: hidden [B, L, D], and the block's parameters, which are not among `tensors`."""

    hidden: Tensor
    block: MambaParameters
