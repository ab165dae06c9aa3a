"""SSAM: the masked spectrogram encoder with Mamba blocks (Yadav and Tan 2024, section 2), in one direction or both."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from audio_mamba.models.checks import check_names, check_not_negative, check_switch
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.mamba import Mamba, MambaState, SharedMamba
from audio_mamba.models.ops.add_norm import add_norm
from audio_mamba.schema import argument_names

# How the blocks walk through the tokens: these take turns.
DIRECTIONS = {
    "forward": ("forward",),
    "alternate": ("forward", "backward"),
    "both": ("both",),
    "both_scans": ("both_scans",),
}
TOKEN_ORDERS = ("time", "frequency")


class MambaBlock(nn.Module):
    """Adds to the residual stream, normalises, mixes: (hidden, residual) -> (hidden, residual), all [B, L, D]."""

    def __init__(
        self, mixer: Mamba, norm: nn.LayerNorm | nn.RMSNorm, residual_in_fp32: bool, fused_add_norm: bool = True
    ):
        super().__init__()
        self.mixer, self.norm, self.residual_in_fp32 = mixer, norm, residual_in_fp32
        self.fused_add_norm = fused_add_norm

    def forward(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        normed, residual = self._add_norm(hidden, residual)
        return self.mixer(normed), residual

    def step(
        self, hidden: Tensor, residual: Tensor | None, state: MambaState | None
    ) -> tuple[Tensor, Tensor, MambaState]:
        """`forward` for further tokens after those in `state`, if any; also returns the new state."""
        normed, residual = self._add_norm(hidden, residual)
        hidden, state = self.mixer.step(normed, state)
        return hidden, residual, state

    def _add_norm(self, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        backend = self.mixer.backend if self.fused_add_norm else "reference"
        return add_norm(hidden, residual, self.norm, self.residual_in_fp32, backend)


class MambaSSAST(MaskedSpectrogramEncoder):
    """SSAM. Arguments in addition to those of `MaskedSpectrogramEncoder`:

    rms_norm: RMSNorm instead of LayerNorm in the blocks (the final norm is a LayerNorm with an epsilon of 1e-6).
    same_final_norm: the final norm is as the blocks', as in AuM and SSAMBA.
    residual_in_fp32: keep the residual stream in float32 under lower precision.
    fused_add_norm: allow one kernel for add + norm on CUDA tensors; it never changes a result.
    norm_epsilon: of the blocks' norms.
    ssm_kwargs: arguments of `Mamba`. They replace the published {d_state 24, d_conv 4, expand 3} as a whole: a missing
        one takes Mamba's own default.
    direction: "forward" in time (published); "alternate", in which every second block walks backward, as in ViL (Alkin
        et al. 2024, arXiv 2406.04303); "both", in which each block does both on two paths, see `Mamba`, as in SSAMBA;
        or "both_scans", see `SharedMamba`, as in AuM.
    token_order: in which the blocks walk through the patches: "time", all bands of a time step before the next step
        (published); or "frequency", all time steps of a band before the next band, as in AuM and SSAMBA.

    It is causal and carries state only with direction "forward", token_order "time", the class token, if any, first,
    and mixers that have `step`, as Mamba has.
    """

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 12,
        *,
        rms_norm: bool = True,
        fused_add_norm: bool = True,
        residual_in_fp32: bool = True,
        norm_epsilon: float = 1e-6,
        ssm_kwargs: dict | None = None,
        direction: str = "forward",
        token_order: str = "time",
        same_final_norm: bool = False,
        **arguments: Any,
    ):
        if direction not in DIRECTIONS:
            raise ValueError(f"unknown direction {direction!r}; choose from {', '.join(DIRECTIONS)}")
        if token_order not in TOKEN_ORDERS:
            raise ValueError(f"unknown token_order {token_order!r}; choose from {', '.join(TOKEN_ORDERS)}")
        if ssm_kwargs is not None and not isinstance(ssm_kwargs, Mapping):
            raise ValueError(f"ssm_kwargs must be a section with arguments of Mamba, got {ssm_kwargs!r}")
        check_not_negative("norm_epsilon", norm_epsilon)
        check_switch("rms_norm", rms_norm)
        check_switch("fused_add_norm", fused_add_norm)
        check_switch("residual_in_fp32", residual_in_fp32)
        check_switch("same_final_norm", same_final_norm)
        super().__init__(embed_dim, depth, **arguments)
        self.token_order = token_order
        ssm_kwargs = {"d_state": 24, "d_conv": 4, "expand": 3} if ssm_kwargs is None else dict(ssm_kwargs)
        norm = nn.RMSNorm if rms_norm else nn.LayerNorm
        if same_final_norm:
            self.encoder_norm = norm(embed_dim, eps=norm_epsilon)
        turns = itertools.islice(itertools.cycle(DIRECTIONS[direction]), depth)
        self.blocks = nn.ModuleList(
            MambaBlock(
                self.make_mixer(turn, **ssm_kwargs),
                norm(embed_dim, eps=norm_epsilon),
                residual_in_fp32,
                fused_add_norm,
            )
            for turn in turns
        )
        self.causal = self.carries_state = (
            direction == "forward"
            and token_order == "time"
            and self.cls_position == "first"
            and all(hasattr(block.mixer, "step") for block in self._mamba_blocks())  # others may read later tokens
        )
        self.init_weights()

    def make_mixer(self, direction: str, /, **ssm_kwargs: Any) -> Mamba:
        """The mixer of a block with a direction of its own: "forward", "backward", "both" or "both_scans". Override it
        for blocks with another mixer, see docs/extending.md. ValueError for an unknown name in `ssm_kwargs`."""
        valid = [name for name in argument_names(Mamba) if name not in ("d_model", "direction")]
        check_names("ssm_kwargs", ssm_kwargs, valid)
        if direction == "both_scans":
            return SharedMamba(self.embed_dim, **ssm_kwargs)
        return Mamba(self.embed_dim, direction=direction, **ssm_kwargs)

    def init_weights(self) -> None:
        super().init_weights()
        for layer in self.pred:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        for block in self._mamba_blocks():
            block.mixer.init_weights(self.depth)

    def use_backend(self, backend: str) -> None:
        """Chooses the kernels of all blocks, see `models.ops.dispatch`."""
        for block in self._mamba_blocks():
            block.mixer.backend = backend

    def encode(self, tokens: Tensor) -> Tensor:
        """See `MaskedSpectrogramEncoder`; with token_order "frequency", `tokens` must be those of all L patches."""
        if self.token_order == "frequency":
            tokens = tokens.unflatten(1, self.grid_size()).transpose(1, 2).flatten(1, 2)  # time- to band-major
        return super().encode(tokens)

    def _of_patches(self, hidden: Tensor) -> Tensor:
        hidden = super()._of_patches(hidden)
        if self.token_order == "frequency":
            steps, bands = self.grid_size()
            hidden = hidden.unflatten(1, (bands, steps)).transpose(1, 2).flatten(1, 2)  # band- to time-major
        return hidden

    def forward_blocks(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = tokens
        residual: Tensor | None = None
        for block in self.blocks:
            hidden, residual = self.run_block(block, hidden, residual)
        return self._final_norm(hidden, residual)

    def step(self, tokens: Tensor, states: list[MambaState] | None = None) -> tuple[Tensor, list[MambaState]]:
        """Further patch tokens with positions [B, L, D] after those in `states` (None: the first of a segment, so
        after the class token, if there is one) -> what `encode` computes for them, and the blocks' new states.

        Raises:
            ValueError: the encoder does not carry state.
        """
        if not self.carries_state:
            raise ValueError(
                "only an SSAM of direction 'forward' with the class token first, token_order 'time' and mixers that "
                "have `step` carries state"
            )
        count = tokens.shape[1]
        if states is None and self.cls_token is not None:
            cls_token = self.cls_token + self.pos_embed[:, :1]
            tokens = torch.cat([cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        hidden: Tensor = tokens
        residual: Tensor | None = None
        new_states = []
        earlier: Sequence[MambaState | None] = [None] * self.depth if states is None else states
        for block, state in zip(self._mamba_blocks(), earlier, strict=True):
            hidden, residual, state = block.step(hidden, residual, state)
            new_states.append(state)
        return self._final_norm(hidden, residual)[:, -count:], new_states

    def _mamba_blocks(self) -> Iterator[MambaBlock]:
        return cast(Iterator[MambaBlock], iter(self.blocks))

    def _final_norm(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        if residual is not None:
            hidden = residual + hidden
        return self.encoder_norm(hidden.to(self.encoder_norm.weight.dtype))
