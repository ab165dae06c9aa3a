"""The Mamba-1 block (Gu and Dao 2023, figure 3; parametrisation of section 3.6 and appendix).

Symbols: B batch, L tokens, D channels of the model, E = expand * D inner channels, N state size, R rank of the step.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.ops import mamba_inner
from audio_mamba.models.ops.causal_conv1d import causal_conv1d
from audio_mamba.models.ops.linear import linear
from audio_mamba.models.ops.selective_scan import selective_scan


class MambaState(NamedTuple):
    """What the block remembers of the tokens before."""

    inputs: Tensor  # of the convolution, the last d_conv - 1 of them [B, E, d_conv - 1]
    scan: Tensor  # float32 [B, E, N]


class Mamba(nn.Module):
    """Mixes tokens causally: hidden [B, L, D] -> [B, L, D]."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        self.d_inner, self.d_state = expand * d_model, d_state
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.dt_range, self.dt_init_floor = (dt_min, dt_max), dt_init_floor
        self.backend = "auto"  # of the selective scan

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    @torch.no_grad()
    def init_weights(self, depth: int) -> None:
        """What torch's own defaults of the linear layers and the convolution leave open."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = (math.log(dt) for dt in self.dt_range)
        dt = torch.exp(torch.rand(self.d_inner) * (high - low) + low).clamp(min=self.dt_init_floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus of it is dt
        self.A_log.copy_(torch.log(torch.arange(1, self.d_state + 1)).expand_as(self.A_log))  # S4D-real
        nn.init.ones_(self.D)
        self.out_proj.weight /= math.sqrt(depth)  # one residual addition per block (GPT-2)

    def forward(self, hidden: Tensor) -> Tensor:
        if (
            self.backend == "auto"
            and mamba_inner.why_not(hidden, self.A_log, self.conv1d.weight, self.conv1d.bias, self.out_proj.bias)
            is None
        ):
            return mamba_inner.mamba_inner(
                self._project_time_last(hidden),
                self.conv1d.weight,
                self.conv1d.bias,
                self.x_proj.weight,
                self.dt_proj.weight,
                self.out_proj.weight,
                self.out_proj.bias,
                -torch.exp(self.A_log.float()),
                self.D,
                self.dt_proj.bias,
            )
        x, z = self._project(hidden)
        x = causal_conv1d(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")
        y = selective_scan(
            x, *self._scan_inputs(x), self.D, z, self.dt_proj.bias, delta_softplus=True, backend=self.backend
        )
        return _apply(self.out_proj, y.transpose(1, 2))

    def first_state(self, batch: int) -> MambaState:
        """The state before any token."""
        zeros = self.A_log.new_zeros
        return MambaState(
            zeros(batch, self.d_inner, self.conv1d.kernel_size[0] - 1),
            zeros(batch, self.d_inner, self.d_state, dtype=torch.float32),
        )

    def proceed(self, hidden: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """What `forward` gives for some more tokens [B, L, D] after those in `state`, and the state after them.

        The scan starts at zero; it is linear in its state, so what is left of the earlier one is added to it:
        exp(A sum of the steps so far) h.
        """
        x, z = self._project(hidden)
        joined = torch.cat([state.inputs, x], dim=-1)
        before = state.inputs.shape[-1]
        x = causal_conv1d(joined, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu")[..., before:]
        delta, A, B, C = self._scan_inputs(x)
        y, scan = selective_scan(
            x,
            delta,
            A,
            B,
            C,
            self.D,
            None,
            self.dt_proj.bias,
            delta_softplus=True,
            return_last_state=True,
            backend=self.backend,
        )
        steps = F.softplus(delta.transpose(1, 2).float() + self.dt_proj.bias.float()).cumsum(1)  # [B, L, E]
        left = torch.exp_(steps[..., None] * A).mul_(state.scan[:, None])  # [B, L, E, N]
        y = (y + (left @ C.float().transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)) * F.silu(z)
        y = _apply(self.out_proj, y.to(hidden.dtype).transpose(1, 2))
        return y, MambaState(joined[..., joined.shape[-1] - before :].clone(), scan + left[:, -1])

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The scan's branch and the gate's: [B, L, D] -> 2 x [B, E, L]."""
        x, z = _apply(self.in_proj, hidden).chunk(2, dim=-1)  # [B, L, E], so that their gradients join side by side
        return x.transpose(1, 2), z.transpose(1, 2)

    def _project_time_last(self, hidden: Tensor) -> Tensor:
        """Both branches [B, 2 E, L], time contiguous: the product the other way round, [2 E, D] x [D, B L]."""
        xz = linear(self.in_proj.weight, hidden.flatten(0, 1)).unflatten(1, hidden.shape[:2]).transpose(0, 1)
        return xz if self.in_proj.bias is None else xz + self.in_proj.bias.to(xz.dtype)[:, None]

    def _scan_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [B, E, L] -> delta [B, E, L], A [E, N], B and C [B, N, L]."""
        dt, B, C = _apply(self.x_proj, x.transpose(1, 2)).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = linear(dt, self.dt_proj.weight)  # [B, L, R] -> [B, L, E]; its bias enters the scan in float32
        return delta.transpose(1, 2), -torch.exp(self.A_log.float()), B.transpose(1, 2), C.transpose(1, 2)


def _apply(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)
