"""The Mamba-1 block (Gu and Dao 2023, figure 3; parameters as in section 3.6 and the appendix).

Symbols: B batch, L tokens, D channels of the model, E = expand * D inner channels, N state size, R rank of the step.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.ops.calls import BlockCall
from audio_mamba.models.ops.causal_conv1d import causal_conv1d
from audio_mamba.models.ops.linear import linear
from audio_mamba.models.ops.mamba_block import choose_fused
from audio_mamba.models.ops.selective_scan import selective_scan


class MambaState(NamedTuple):
    """What the block remembers of earlier tokens."""

    conv_state: Tensor  # the last d_conv - 1 inputs of the convolution [B, E, d_conv - 1]
    ssm_state: Tensor  # of the scan, float32 [B, E, N]


class Mamba(nn.Module):
    """Mixes tokens causally: hidden [B, L, D] -> [B, L, D].

    Set the attribute `backend` to choose the kernels, see `models.ops.dispatch`.
    """

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
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.dt_range, self.dt_init_floor = (dt_min, dt_max), dt_init_floor
        self.backend = "auto"

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.empty(self.d_inner, d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    @torch.no_grad()
    def init_weights(self, depth: int) -> None:
        """Initialises what torch's defaults for linear layers and convolutions do not. `depth`: blocks of the model."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = (math.log(dt) for dt in self.dt_range)
        dt = torch.exp(torch.rand(self.d_inner) * (high - low) + low).clamp(min=self.dt_init_floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus: the step starts at dt
        self.A_log.copy_(torch.log(torch.arange(1, self.d_state + 1)).expand_as(self.A_log))  # S4D-real
        nn.init.ones_(self.D)
        self.out_proj.weight /= math.sqrt(depth)  # one residual addition per block (GPT-2)

    def forward(self, hidden: Tensor) -> Tensor:
        """`compose`, or the same by a fused kernel if one supports this call."""
        fused = choose_fused(BlockCall(hidden, self), self.backend)
        return self.compose(hidden) if fused is None else fused.mamba_block(hidden, self)

    def compose(self, hidden: Tensor) -> Tensor:
        """Figure 3 of the paper, operator by operator: hidden [B, L, D] -> [B, L, D]."""
        x, z = self._branches(hidden)
        x = self._convolve(x)
        delta, A, B, C = self._scan_inputs(x)
        y = selective_scan(x, delta, A, B, C, self.D, z, self.dt_proj.bias, delta_softplus=True, backend=self.backend)
        assert isinstance(y, Tensor)
        return linear(y.transpose(1, 2), self.out_proj.weight, self.out_proj.bias)  # [B, E, L] -> [B, L, D]

    def step(self, hidden: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Continues a sequence: further tokens [B, L, D] after those in `state` (None: the first ones) -> their
        outputs, and the new state.

        The scan starts at zero. It is linear in its state, so what remains of an earlier state at each step,
        exp(A sum of the steps so far) h, is added to its results.
        """
        x, z = self._branches(hidden)
        before = self.conv1d.kernel_size[0] - 1
        earlier = x.new_zeros(*x.shape[:-1], before) if state is None else state.conv_state
        joined = torch.cat([earlier, x], dim=-1)
        x = self._convolve(joined)[..., before:]
        delta, A, B, C = self._scan_inputs(x)
        y, last = selective_scan(
            x,
            delta,
            A,
            B,
            C,
            self.D,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            return_last_state=True,
            backend=self.backend,
        )
        if state is not None:
            steps = F.softplus(delta.transpose(1, 2).float() + self.dt_proj.bias.float()).cumsum(1)  # [B, L, E]
            remains = torch.exp_(steps[..., None] * A).mul_(state.ssm_state[:, None])  # [B, L, E, N]
            y = y + (remains @ C.float().transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)
            last = last + remains[:, -1]
        y = (y * F.silu(z)).to(hidden.dtype)
        y = linear(y.transpose(1, 2), self.out_proj.weight, self.out_proj.bias)  # [B, E, L] -> [B, L, D]
        return y, MambaState(joined[..., joined.shape[-1] - before :].clone(), last)

    def _branches(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden [B, L, D] -> the inputs of convolution and scan, and the gate, both [B, E, L]."""
        # Divided in the order of memory, so that backward joins their gradients without a transposing copy
        x, z = linear(hidden, self.in_proj.weight, self.in_proj.bias).chunk(2, dim=-1)  # [B, L, E]
        return x.transpose(1, 2), z.transpose(1, 2)

    def _convolve(self, x: Tensor) -> Tensor:
        """[B, E, L] -> [B, E, L]."""
        return causal_conv1d(
            x, self.conv1d.weight.squeeze(1), self.conv1d.bias, activation="silu", backend=self.backend
        )

    def _scan_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [B, E, L] -> delta [B, E, L], A [E, N], B and C [B, N, L]."""
        projected = linear(x.transpose(1, 2), self.x_proj.weight)  # [B, L, R + 2 N]
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = linear(dt, self.dt_proj.weight)  # [B, L, R] -> [B, L, E]; the scan adds the bias, in float32
        return delta.transpose(1, 2), -torch.exp(self.A_log.float()), B.transpose(1, 2), C.transpose(1, 2)
