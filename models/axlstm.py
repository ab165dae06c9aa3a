"""AxLSTM: the masked spectrogram encoder with mLSTM blocks (Yadav, Theodoridis and Tan 2025, arXiv 2408.16568).

Symbols: B batch, L tokens, D channels of the model, I = 2 D inner channels, H heads of width d = I / H.

A deep AxLSTM amplifies rounding: with the products of oneDNN, which are as exact, the features of the small model are
0.002 from the published numbers. So its blocks use `nn.Linear`, unlike those of the other encoders.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.checks import check_whole
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.ops.mlstm import mlstm

HEADS = 4
TAPS = 4
BLOCK_SIZE = 4  # channels that q, k and v mix


class OffsetLayerNorm(nn.Module):
    """LayerNorm without bias whose weight w acts as 1 + w, over each of `groups` equal parts of the last dimension."""

    def __init__(self, dim: int, groups: int = 1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        weight = 1 + self.weight
        if self.groups == 1:
            return F.layer_norm(x, x.shape[-1:], weight, eps=1e-5)
        return F.group_norm(x.flatten(0, -2), self.groups, weight, eps=1e-5).view(x.shape)


class BlockDiagonal(nn.Module):
    """A linear layer in which each group of BLOCK_SIZE channels sees itself alone, [..., I] -> [..., I]."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim // BLOCK_SIZE, BLOCK_SIZE, BLOCK_SIZE))

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(-1, (-1, BLOCK_SIZE))  # [..., I / 4, 4]
        return torch.einsum("...gi,goi->...go", groups, self.weight).flatten(-2)


class Conv(nn.Module):
    """The causal depthwise convolution with its SiLU, [B, L, I] -> [B, L, I]."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, TAPS, groups=dim, padding=TAPS - 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.transpose(1, 2))[
            ..., : 1 - TAPS
        ]  # [B, I, L]: the last outputs would see the padding at the end
        return F.silu(y).transpose(1, 2)


class Cell(nn.Module):
    """Gates, mLSTM cell and output norm: q, k, v [B, L, I] -> h [B, L, I]."""

    def __init__(self, dim: int):
        super().__init__()
        self.igate, self.fgate = nn.Linear(3 * dim, HEADS), nn.Linear(3 * dim, HEADS)
        self.outnorm = OffsetLayerNorm(dim, HEADS)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        joined = torch.cat([q, k, v], dim=-1)  # [B, L, 3 I]
        i, f = (gate(joined).transpose(1, 2) for gate in (self.igate, self.fgate))  # [B, H, L]
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))  # [B, H, L, d]
        h = mlstm(q, k, v, i, f)
        return self.outnorm(h.transpose(1, 2).flatten(2))


class MLSTMLayer(nn.Module):
    """Up-projection, convolution, cell, skip and gate, down-projection, [B, L, D] -> [B, L, D]."""

    def __init__(self, dim: int):
        super().__init__()
        inner = 2 * dim
        self.learnable_skip = nn.Parameter(torch.ones(inner))
        self.proj_up = nn.Linear(dim, 2 * inner, bias=False)
        self.q_proj, self.k_proj, self.v_proj = (BlockDiagonal(inner) for _ in range(3))
        self.conv1d = Conv(inner)
        self.mlstm_cell = Cell(inner)
        self.proj_down = nn.Linear(inner, dim, bias=False)

    @torch.no_grad()
    def init_weights(self) -> None:
        """The published distributions (normal with small deviations, forget gates mostly open)."""
        dim = self.proj_down.out_features
        for layer in (self.proj_up, self.q_proj, self.k_proj, self.v_proj):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / (5 * dim)))
        nn.init.normal_(self.proj_down.weight, std=2 / math.sqrt(dim))
        nn.init.ones_(self.learnable_skip)
        cell = self.mlstm_cell
        nn.init.zeros_(cell.fgate.weight)
        cell.fgate.bias.copy_(torch.linspace(3, 6, HEADS))
        nn.init.zeros_(cell.igate.weight)
        nn.init.normal_(cell.igate.bias, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        a, z = self.proj_up(x).chunk(2, dim=-1)  # [B, L, I] each
        c = self.conv1d(a)
        h = self.mlstm_cell(self.q_proj(c), self.k_proj(c), self.v_proj(a))
        return self.proj_down((h + self.learnable_skip * c) * F.silu(z))


class MLSTMBlock(nn.Module):
    """Pre-norm block; `backward` reads the tokens from the last to the first."""

    def __init__(self, dim: int, backward: bool):
        super().__init__()
        self.norm, self.layer = OffsetLayerNorm(dim), MLSTMLayer(dim)
        self.backward = backward

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        if not self.backward:
            return x + self.layer(normed)
        return x + self.layer(normed.flip(1)).flip(1)


class XLSTMSSAST(MaskedSpectrogramEncoder):
    """AxLSTM. Arguments as for `MaskedSpectrogramEncoder`; every second block reads the tokens backward, so it is not
    causal."""

    def __init__(self, embed_dim: int = 192, depth: int = 12, **arguments: Any):
        check_whole("embed_dim", embed_dim)
        if 2 * embed_dim % (HEADS * BLOCK_SIZE):
            raise ValueError(f"embed_dim must be a multiple of {HEADS * BLOCK_SIZE // 2}, got {embed_dim}")
        super().__init__(embed_dim, depth, **arguments)
        self.blocks = nn.ModuleList(MLSTMBlock(embed_dim, backward=number % 2 == 1) for number in range(depth))
        self.init_weights()

    def init_weights(self) -> None:
        super().init_weights()
        for module in self.blocks.modules():
            if isinstance(module, MLSTMLayer):
                module.init_weights()
