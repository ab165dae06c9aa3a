"""What all encoders share: a masked autoencoder of spectrograms whose decoder is a small head.

Symbols: B batch, T frames, M mel bands, T' x M' grid of patches, L = T'*M' patches, P values per patch, D channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audio_mamba.models import masking
from audio_mamba.models.checks import check_switch, check_whole
from audio_mamba.models.ops.linear import Linear
from audio_mamba.models.patches import PatchEmbed, patchify, sincos_position_embedding, unpatchify
from audio_mamba.schema import LAYOUTS, is_finite, is_whole

CLS_POSITIONS = ("first", "middle", "last")


class MaskedSpectrogramEncoder(nn.Module):
    """Reads a spectrogram as patches, replaces masked patches by one learned token, and predicts all patches.

    An encoder of a kind of its own is a subclass that makes its `blocks`, each [B, L, D] -> [B, L, D], and calls
    `init_weights`; see docs/extending.md and `models.register_encoder`.

    Args:
        embed_dim: D.
        depth: number of blocks.
        img_size: the spectrogram's size in the order of the input: (T, M), or (M, T) if `frequency_first`.
        patch_size: likewise.
        in_chans: channels of the spectrogram.
        mask_ratio: share of patches that `random_masking` hides, in [0, 1).
        masking_mode: "unstructured", "timestep" or "cluster", see `models.masking`.
        use_cls_token: put a learned token, which is never masked, before the patches.
        frequency_first: inputs are [B, C, M, T] instead of [B, C, T, M]. Tokens, positions, masks and features are the
            same as in a time-first model on the transposed input. See `from_time_first`.
        masked_positions: add the positions to masked tokens too, as Gong et al. (2022) do. The published Audio Mamba
            does not, so only its place in the sequence tells where a masked token is. The scan of SSAM depends on that
            place. Attention does not, so SSAST predicts the same patch for all masked patches of a clip.
        cls_position: where the class token is among the L patches: "first" (published), "middle" (before patch number
            L // 2, as in AuM) or "last". It matters to blocks that depend on the order.

    Set the attribute `gradient_checkpointing` to train in less memory: only the input of each block is kept, and the
    backward pass runs the block again (Chen et al. 2016, arXiv 1604.06174). Losses and gradients stay the same.

    Raises:
        ValueError: patches that do not tile the spectrogram, or values out of range.
    """

    # Ask an instance for these two, since they may depend on its arguments.
    causal: bool = False  # no output token depends on a later input token, and the class token is the first
    carries_state: bool = False  # it has `step`, so it can continue a segment; only causal encoders can
    blocks: nn.ModuleList
    blocks_per_layer: int = 1  # number of blocks that read the same tokens, side by side

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 12,
        img_size: tuple[int, int] = (80, 200),
        patch_size: tuple[int, int] = (16, 4),
        in_chans: int = 1,
        mask_ratio: float = 0.5,
        masking_mode: str = "unstructured",
        use_cls_token: bool = True,
        frequency_first: bool = True,
        masked_positions: bool = False,
        cls_position: str = "first",
    ):
        super().__init__()
        for name, number in (("embed_dim", embed_dim), ("depth", depth), ("in_chans", in_chans)):
            check_whole(name, number)
        check_switch("use_cls_token", use_cls_token)
        check_switch("frequency_first", frequency_first)
        check_switch("masked_positions", masked_positions)
        img_size, patch_size = _pair("img_size", img_size), _pair("patch_size", patch_size)
        if any(size % patch for size, patch in zip(img_size, patch_size, strict=True)):
            raise ValueError(f"patch_size {patch_size} does not divide img_size {img_size}")
        if not (is_finite(mask_ratio) and 0 <= mask_ratio < 1):
            raise ValueError(f"mask_ratio must be a number in [0, 1), got {mask_ratio!r}")
        if masking_mode not in masking.MODES:
            raise ValueError(f"unknown masking_mode {masking_mode!r}; choose from {', '.join(masking.MODES)}")
        if cls_position not in CLS_POSITIONS:
            raise ValueError(f"unknown cls_position {cls_position!r}; choose from {', '.join(CLS_POSITIONS)}")
        if cls_position != "first" and not use_cls_token:
            raise ValueError(f"cls_position {cls_position!r} needs a class token, but use_cls_token is False")
        self.img_size, self.embed_dim, self.depth, self.in_chans = img_size, embed_dim, depth, in_chans
        self.mask_ratio, self.masking_mode, self.frequency_first = mask_ratio, masking_mode, frequency_first
        self.masked_positions, self.cls_position = masked_positions, cls_position
        if cls_position != "first":
            self.causal = self.carries_state = False  # whatever the class says
        self._patch_size = patch_size
        self.gradient_checkpointing = False

        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim)) if use_cls_token else None
        positions = sincos_position_embedding(self.grid_size(), embed_dim, use_cls_token)
        self.pos_embed = nn.Parameter(torch.from_numpy(positions)[None], requires_grad=False)
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, frequency_first)
        self.encoder_norm: nn.LayerNorm | nn.RMSNorm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.patch_values = patch_size[0] * patch_size[1] * in_chans  # P
        self.pred = nn.Sequential(Linear(embed_dim, embed_dim), nn.GELU(), Linear(embed_dim, self.patch_values))

    def init_weights(self) -> None:
        """The published initialisation of the shared parts; the head keeps torch's default."""
        nn.init.xavier_uniform_(self.patch_embed.proj.weight)
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        nn.init.normal_(self.mask_token, std=0.02)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def grid_size(self) -> tuple[int, int]:
        """(T', M'): patches along time and along mel, in this order for both kinds of input."""
        steps, bands = (size // patch for size, patch in zip(self.img_size, self._patch_size))
        return (bands, steps) if self.frequency_first else (steps, bands)

    def patch_size(self) -> tuple[int, int]:
        """The size of a patch, in the order of the input."""
        return self._patch_size

    @property
    def num_frames(self) -> int:
        """T, the frames of a spectrogram."""
        return self.img_size[1] if self.frequency_first else self.img_size[0]

    @property
    def n_mels(self) -> int:
        """M, the mel bands of a spectrogram."""
        return self.img_size[0] if self.frequency_first else self.img_size[1]

    def from_time_first(self, spectrogram: Tensor) -> Tensor:
        """[..., T, M] -> the order that this model reads, [..., M, T] if it is frequency-first."""
        return spectrogram.mT if self.frequency_first else spectrogram

    def to_time_first(self, x: Tensor) -> Tensor:
        """The inverse of `from_time_first`."""
        return x.mT if self.frequency_first else x

    def _time_first(self, x: Tensor) -> Tensor:
        """A checked input as [B, C, T, M]."""
        if tuple(x.shape[1:]) != (self.in_chans, *self.img_size):
            raise ValueError(
                f"expected a spectrogram [B, {self.in_chans}, {self.img_size[0]}, {self.img_size[1]}], "
                f"got {list(x.shape)}"
            )
        return self.to_time_first(x)

    def _time_first_patch(self) -> tuple[int, int]:
        first, second = self._patch_size
        return (second, first) if self.frequency_first else (first, second)

    def patchify(self, x: Tensor) -> Tensor:
        """Spectrogram [B, C, T, M] (or [B, C, M, T]) -> patches [B, L, P], time-major, element time * p_m + mel."""
        return patchify(self._time_first(x), self._time_first_patch())

    def unpatchify(self, patches: Tensor) -> Tensor:
        """The inverse of `patchify`."""
        return self.from_time_first(unpatchify(patches, self.grid_size(), self._time_first_patch()))

    def draw_mask(self, rng: np.random.Generator) -> np.ndarray:
        """One sample's mask, float32 [L], 1 where masked."""
        return masking.draw_mask(rng, self.grid_size(), self.mask_ratio, self.masking_mode)

    def random_masking(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Replaces masked tokens [B, L, D] by the mask token, without a position.

        Without a `mask`, one per sample is drawn from torch's global generator. Returns tokens and mask [B, L].

        Raises:
            ValueError: a mask of another shape.
        """
        if mask is None:
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
            mask = torch.from_numpy(np.stack([self.draw_mask(rng) for _ in tokens]))
        if mask.shape != tokens.shape[:2]:
            raise ValueError(f"the mask must be {list(tokens.shape[:2])}, one value per patch, got {list(mask.shape)}")
        mask = mask.to(tokens)
        return torch.where(mask.bool().unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens), mask

    def embed(self, x: Tensor) -> Tensor:
        """Spectrogram -> patch tokens with positions [B, L, D]."""
        return self.embed_steps(self._time_first(x), first=0)

    def embed_steps(self, frames: Tensor, first: int) -> Tensor:
        """Time-first frames [B, C, t*p_t, M] of t steps, the first being number `first` -> tokens [B, t*M', D]."""
        tokens = self.patch_embed(frames)
        begin = first * self.grid_size()[1]
        return tokens + self._patch_positions()[:, begin : begin + tokens.shape[1]]

    def _patch_positions(self) -> Tensor:
        """Positions of all patches, without the class token: [1, L, D]."""
        return self.pos_embed if self.cls_token is None else self.pos_embed[:, 1:]

    def encode(self, tokens: Tensor) -> Tensor:
        """Patch tokens [B, L, D] -> normalised output of the blocks [B, L, D], without the class token."""
        if self.cls_token is not None:
            cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(tokens.shape[0], -1, -1).to(tokens.dtype)
            place = self._cls_place(tokens.shape[1])
            tokens = torch.cat([tokens[:, :place], cls_token, tokens[:, place:]], dim=1)
        return self._of_patches(self.forward_blocks(tokens))

    def _cls_place(self, patches: int) -> int:
        """How many patch tokens precede the class token."""
        return {"first": 0, "middle": patches // 2, "last": patches}[self.cls_position]

    def _of_patches(self, hidden: Tensor) -> Tensor:
        """All tokens [B, L (+1), D] -> those of the patches [B, L, D]."""
        if self.cls_token is None:
            return hidden
        place = self._cls_place(hidden.shape[1] - 1)
        before, after = hidden[:, :place], hidden[:, place + 1 :]
        if self.cls_position == "middle":
            return torch.cat([before, after], dim=1)
        return after if self.cls_position == "first" else before

    def encode_masked(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spectrogram and mask, as for `forward` -> normalised output of the blocks [B, L, D] and mask [B, L]."""
        tokens, mask = self.random_masking(self.embed(x), mask)
        if self.masked_positions:
            tokens = tokens + mask.unsqueeze(-1) * self._patch_positions()
        return self.encode(tokens), mask

    def block_outputs(self, tokens: Tensor, last: int) -> list[Tensor]:
        """The outputs of the last blocks for patch tokens [B, L, D]: [B, L, D] each, not normalised.

        If a block returns the residual stream apart from what it adds to it, its output is the sum of both. Blocks that
        work side by side (`blocks_per_layer`) count as one, whose output is their sum.
        """
        outputs: list[Tensor] = []
        together = self.blocks_per_layer

        def keep(block: nn.Module, inputs: tuple, output: Any) -> None:
            outputs.append(output if isinstance(output, Tensor) else output[0] + output[1])

        hooks = [block.register_forward_hook(keep) for block in self.blocks[-last * together :]]
        try:
            self.encode(tokens)
        finally:
            for hook in hooks:
                hook.remove()
        layers = zip(*(outputs[number::together] for number in range(together)))  # of each, the blocks side by side
        return [self._of_patches(torch.stack(layer).sum(dim=0) if together > 1 else layer[0]) for layer in layers]

    def run_block(self, block: nn.Module, *inputs: Tensor | None) -> Any:
        """The block's output. With `gradient_checkpointing`, its activations are not kept for the backward pass."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)  # the second run of a block drops out as the first
        return block(*inputs)

    def forward_blocks(self, tokens: Tensor) -> Tensor:
        """All tokens [B, L (+1), D] -> `encoder_norm` of the last block's output, the same shape."""
        for block in self.blocks:
            tokens = self.run_block(block, tokens)
        return self.encoder_norm(tokens)

    def step(self, tokens: Tensor, states: Any = None) -> tuple[Tensor, Any]:
        """Continue a segment, if the encoder `carries_state`.

        Args:
            tokens: further patch tokens with positions, [B, L, D], see `embed_steps`.
            states: of all tokens before them; None: these are the first ones, which follow the class token, if any.

        Returns:
            What `encode` computes for these tokens, [B, L, D], and the states after them.

        Raises:
            ValueError: the encoder carries no state.
        """
        raise ValueError(f"{type(self).__name__} carries no state from step to step")

    def use_backend(self, backend: str) -> None:
        """Choose the kernels, see `models.ops.dispatch`. Encoders whose blocks have no choice ignore it."""

    def with_own_positions(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the same encoder for inputs of another length, with the positions of this one's length.

        Positions follow a rule, `sincos_position_embedding`, so those of other lengths are its continuation.

        Raises:
            ValueError: the positions of `state` do not follow the rule.
        """
        found, bands = state.get("pos_embed"), self.grid_size()[1]
        if found is None or found.shape == self.pos_embed.shape:
            return dict(state)
        token = self.cls_token is not None
        if found.dim() == 3 and found.shape[2] == self.embed_dim and (found.shape[1] - token) % bands == 0:
            rule = sincos_position_embedding(((found.shape[1] - token) // bands, bands), self.embed_dim, token)
            if (found[0].float() - torch.from_numpy(rule)).abs().max() < 1e-3:  # weights may be stored in float16
                return {**state, "pos_embed": self.pos_embed.detach()}
        raise ValueError(
            f"its position table {list(found.shape)} does not follow the sine-cosine rule for {bands} bands of width "
            f"{self.embed_dim}, so it cannot be continued to {list(self.pos_embed.shape)}"
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Predicts all patches of a spectrogram from the unmasked ones.

        Args:
            x: [B, C, T, M], or [B, C, M, T] if the model is frequency-first.
            mask: [B, L], 1 where masked; drawn at random if absent.

        Returns:
            Prediction [B, L, P], target [B, L, P] and mask [B, L].

        Raises:
            ValueError: a wrong shape.
        """
        tokens, mask = self.encode_masked(x, mask)
        return self.pred(tokens), self.patchify(x), mask

    def forward_features(self, x: Tensor, layout: str = "published", steps: int | None = None) -> Tensor:
        """Features of the first time steps of a spectrogram, one row per step.

        A causal encoder skips the tokens after the last one that is needed, which changes no value.

        Args:
            x: see `forward`.
            layout: "bands": row t holds the M' band tokens of time step t. "published": the published extraction reads
                the time-major tokens as if they were frequency-major, so row i holds the tokens
                i, T' + i, ..., (M' - 1) T' + i.
            steps: how many time steps; all T' by default.

        Returns:
            [B, steps, M'*D].

        Raises:
            ValueError: a wrong shape, an unknown layout, or steps beyond T'.
        """
        most, bands = self.grid_size()
        steps = most if steps is None else steps
        if not 0 < steps <= most:
            raise ValueError(f"steps must be 1 to {most}, got {steps}")
        tokens = self.encode(self.embed(x)[:, : self.tokens_read(layout, steps)])
        if layout == "bands":
            rows = tokens[:, : steps * bands].unflatten(1, (steps, bands))
        else:
            rows = torch.stack([tokens[:, first : first + steps] for first in range(0, most * bands, most)], dim=2)
        return rows.flatten(2)  # [B, steps, M', D] -> [B, steps, M'*D]

    def tokens_read(self, layout: str, steps: int) -> int:
        """How many tokens `forward_features` passes through the blocks for the first `steps` time steps."""
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}; choose from {', '.join(LAYOUTS)}")
        most, bands = self.grid_size()
        if not self.causal:
            return most * bands
        return steps * bands if layout == "bands" else (bands - 1) * most + steps


def _pair(name: str, sizes: Sequence[int]) -> tuple[int, int]:
    """Two sizes, which a config may give as a list."""
    if not isinstance(sizes, Sequence) or len(sizes) != 2 or not all(map(is_whole, sizes)):
        raise ValueError(f"{name} must be two whole numbers of at least 1, got {sizes!r}")
    first, second = sizes
    return first, second
