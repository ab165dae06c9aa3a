"""The Mamba-1 block (Gu and Dao 2023, figure 3; parameters as in section 3.6 and the appendix), in either direction.

Symbols: B batch, L tokens, D channels of the model, E = expand * D inner channels, N state size, R rank of delta.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.checks import check_not_negative, check_switch, check_whole
from audio_mamba.models.ops.calls import BlockCall, MambaPath
from audio_mamba.models.ops.causal_conv1d import causal_conv1d
from audio_mamba.models.ops.linear import linear
from audio_mamba.models.ops.mamba_block import choose_fused
from audio_mamba.models.ops.selective_scan import selective_scan
from audio_mamba.schema import is_finite, is_whole

DIRECTIONS = ("forward", "backward", "both")


class MambaState(NamedTuple):
    """What the block remembers of earlier tokens."""

    conv_state: Tensor  # the last d_conv - 1 inputs of the convolution [B, E, d_conv - 1]
    ssm_state: Tensor  # of the scan, float32 [B, E, N]


class Mamba(nn.Module):
    """Mixes tokens: hidden [B, L, D] -> [B, L, D].

    `direction` is the order in which convolution and scan walk through the tokens: "forward" (causal), "backward", or
    "both", on two paths, as the mixer "v2" of Vision Mamba does (Zhu et al. 2024, arXiv 2401.09417). The two paths
    share the projections of input and output, and their results are summed before the latter. The backward path has
    its own convolution, `x_proj`, `dt_proj`, A and D, with the suffix `_b`.

    Set the attribute `backend` to choose the kernels, see `models.ops.dispatch`.

    Raises:
        ValueError: an unknown direction, or a number out of range.
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
        direction: str = "forward",
    ):
        super().__init__()
        if direction not in DIRECTIONS:
            raise ValueError(f"unknown direction {direction!r} of a Mamba block; choose from {', '.join(DIRECTIONS)}")
        sizes = {"d_model": d_model, "d_state": d_state, "d_conv": d_conv, "expand": expand}
        for name, size in sizes.items():
            check_whole(name, size)
        if dt_rank != "auto" and not is_whole(dt_rank):
            raise ValueError(f"dt_rank must be 'auto' or a whole number of at least 1, got {dt_rank!r}")
        if not (is_finite(dt_min) and is_finite(dt_max) and 0 < dt_min <= dt_max):
            raise ValueError(
                "dt_min and dt_max must be finite numbers above 0, the first at most the second, "
                f"got {dt_min!r} and {dt_max!r}"
            )
        check_not_negative("dt_init_floor", dt_init_floor)
        check_switch("conv_bias", conv_bias)
        check_switch("bias", bias)
        self.d_inner, self.d_state, self.direction = expand * d_model, d_state, direction
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.dt_range, self.dt_init_floor = (dt_min, dt_max), dt_init_floor
        self.backend = "auto"

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D = self._path_layers(d_conv, conv_bias)
        if direction == "both":
            self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b = self._path_layers(d_conv, conv_bias)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)

    def _path_layers(
        self, d_conv: int, conv_bias: bool
    ) -> tuple[nn.Conv1d, nn.Linear, nn.Linear, nn.Parameter, nn.Parameter]:
        return (
            nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias),
            nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False),
            nn.Linear(self.dt_rank, self.d_inner),
            nn.Parameter(torch.empty(self.d_inner, self.d_state)),
            nn.Parameter(torch.empty(self.d_inner)),
        )

    @property
    def paths(self) -> list[MambaPath]:
        """The layers of each path through time."""
        backward = self.direction == "backward"
        paths = [MambaPath(self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D, backward)]
        if self.direction == "both":
            paths.append(MambaPath(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b, True))
        return paths

    @torch.no_grad()
    def init_weights(self, depth: int) -> None:
        """Initialises what torch's defaults for linear layers and convolutions do not. `depth`: blocks of the model."""
        low, high = (math.log(dt) for dt in self.dt_range)
        for path in self.paths:
            nn.init.uniform_(path.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            dt = torch.exp(torch.rand(self.d_inner) * (high - low) + low).clamp(min=self.dt_init_floor)
            path.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus: the step starts at dt
            path.A_log.copy_(torch.log(torch.arange(1, self.d_state + 1)).expand_as(path.A_log))  # S4D-real
            nn.init.ones_(path.D)
        self.out_proj.weight /= math.sqrt(depth)  # one residual addition per block (GPT-2)

    def forward(self, hidden: Tensor) -> Tensor:
        """`compose`, or the same by a fused kernel if one supports this call."""
        fused = choose_fused(BlockCall(hidden, self), self.backend)
        return self.compose(hidden) if fused is None else fused.mamba_block(hidden, self)

    def compose(self, hidden: Tensor) -> Tensor:
        """Figure 3 of the paper, operator by operator: hidden [B, L, D] -> [B, L, D]."""
        branches = self._branches(hidden)
        y, *others = [self._walk(path, *branches) for path in self.paths]
        for other in others:
            y = y.add_(other)  # in place: a new tensor would cost a tenth of the block's time on a CPU
        return linear(y.transpose(1, 2), self.out_proj.weight, self.out_proj.bias)  # [B, E, L] -> [B, L, D]

    def _walk(self, path: MambaPath, x: Tensor, z: Tensor) -> Tensor:
        """Convolution, scan and gate on one path: x and z [B, E, L] -> [B, E, L]."""
        x = self._convolve(path, x)
        return self._scan(path, x, z, *self._scan_inputs(path, x))

    def _scan(self, path: MambaPath, x: Tensor, z: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        """Scan and gate on one path, [B, E, L]; the other inputs as from `_scan_inputs`."""
        y = selective_scan(
            x,
            delta,
            A,
            B,
            C,
            path.D,
            z,
            path.dt_proj.bias,
            delta_softplus=True,
            backend=self.backend,
            reverse=path.reverse,
        )
        assert isinstance(y, Tensor)
        return y

    def step(self, hidden: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Continues a sequence: further tokens [B, L, D] after those in `state` (None: the first ones) -> their
        outputs, and the new state.

        The scan starts at zero. It is linear in its state, so the decayed earlier state, exp(A cumsum(delta)) h, is
        added at each token.

        Raises:
            ValueError: the block walks backward, so its first output depends on the last token.
        """
        if self.direction != "forward":
            raise ValueError(
                f"a Mamba block of direction {self.direction!r} needs all tokens at once: it carries no state"
            )
        (path,) = self.paths
        x, z = self._branches(hidden)
        before = path.conv1d.kernel_size[0] - 1
        earlier = x.new_zeros(*x.shape[:-1], before) if state is None else state.conv_state
        joined = torch.cat([earlier, x], dim=-1)
        x = self._convolve(path, joined)[..., before:]
        delta, A, B, C = self._scan_inputs(path, x)
        y, last = selective_scan(
            x,
            delta,
            A,
            B,
            C,
            path.D,
            delta_bias=path.dt_proj.bias,
            delta_softplus=True,
            return_last_state=True,
            backend=self.backend,
        )
        if state is not None:
            elapsed = F.softplus(delta.transpose(1, 2).float() + path.dt_proj.bias.float()).cumsum(1)  # [B, L, E]
            remains = torch.exp_(elapsed[..., None] * A).mul_(state.ssm_state[:, None])  # [B, L, E, N]
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

    def _convolve(self, path: MambaPath, x: Tensor) -> Tensor:
        """[B, E, L] -> [B, E, L]."""
        weight, bias = path.conv1d.weight.squeeze(1), path.conv1d.bias
        return causal_conv1d(x, weight, bias, activation="silu", backend=self.backend, reverse=path.reverse)

    def _scan_inputs(self, path: MambaPath, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [B, E, L] -> delta [B, E, L], A [E, N], B and C [B, N, L]."""
        projected = linear(x.transpose(1, 2), path.x_proj.weight)  # [B, L, R + 2 N]
        dt, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = linear(dt, path.dt_proj.weight)  # [B, L, R] -> [B, L, E]; the scan adds the bias, in float32
        return delta.transpose(1, 2), -torch.exp(path.A_log.float()), B.transpose(1, 2), C.transpose(1, 2)


class SharedMamba(Mamba):
    """Mixes tokens both ways through one convolution: hidden [B, L, D] -> [B, L, D].

    This is the mixer "v1" of Vision Mamba, with which AuM's published models were trained ("Fo-Bi"). The convolution
    walks forward. Two scans, one each way, share its output, the step, B, C and D; only A is their own.

    Args:
        d_model: D.
        arguments: those of `Mamba` but direction.
    """

    def __init__(self, d_model: int, **arguments: Any):
        super().__init__(d_model, direction="forward", **arguments)
        self.A_b_log = nn.Parameter(torch.empty_like(self.A_log))

    def init_weights(self, depth: int) -> None:
        super().init_weights(depth)
        with torch.no_grad():
            self.A_b_log.copy_(self.A_log)

    def forward(self, hidden: Tensor) -> Tensor:
        """`compose`, since the fused kernels know one scan for each convolution."""
        return self.compose(hidden)

    def compose(self, hidden: Tensor) -> Tensor:
        """Operator by operator: hidden [B, L, D] -> [B, L, D]."""
        (path,) = self.paths
        x, z = self._branches(hidden)
        x = self._convolve(path, x)
        delta, A, B, C = self._scan_inputs(path, x)
        A_b = -torch.exp(self.A_b_log.float())
        y = self._scan(path, x, z, delta, A, B, C)
        y = y + self._scan(path._replace(reverse=True), x, z, delta, A_b, B, C)
        return linear(y.transpose(1, 2), self.out_proj.weight, self.out_proj.bias)  # [B, E, L] -> [B, L, D]

    def step(self, hidden: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """Always raises ValueError: one of the scans walks backward."""
        raise ValueError("a Mamba block with scans both ways needs all tokens at once: it carries no state")
