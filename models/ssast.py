"""SSAST: the masked spectrogram encoder with ViT blocks (Gong et al. 2022, as rebuilt by Yadav and Tan 2024)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.checks import check_whole
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.ops.linear import Linear

MLP_RATIO = 4


class Attention(nn.Module):
    """Multi-head self-attention, [B, L, D] -> [B, L, D]."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        check_whole("num_heads", num_heads)
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide the width {dim}")
        self.num_heads = num_heads
        self.qkv_layer = Linear(dim, 3 * dim)
        self.proj_layer = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv_layer(x).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, L, D / heads]
        x = F.scaled_dot_product_attention(query, key, value)
        return self.proj_layer(x.transpose(1, 2).reshape(batch, length, dim))


class Mlp(nn.Module):
    """Two linear layers with a GELU in between, [B, L, D] -> [B, L, D]."""

    def __init__(self, dim: int):
        super().__init__()
        self.layer1 = Linear(dim, MLP_RATIO * dim)
        self.layer2 = Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(F.gelu(self.layer1(x)))


class TransformerBlock(nn.Module):
    """Pre-norm ViT block, [B, L, D] -> [B, L, D]."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SSAST(MaskedSpectrogramEncoder):
    """SSAST. Argument in addition to those of `MaskedSpectrogramEncoder`: num_heads, of each block."""

    def __init__(self, embed_dim: int = 192, depth: int = 12, num_heads: int = 3, **arguments: Any):
        super().__init__(embed_dim, depth, **arguments)
        self.blocks = nn.ModuleList(TransformerBlock(embed_dim, num_heads) for _ in range(depth))
        self.init_weights()

    def init_weights(self) -> None:
        super().init_weights()
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
