"""An experiment with an encoder that is no part of the project: it mixes tokens by their mean.

Whether it is causal depends on an argument, and it never carries state.
"""

import torch
from torch import Tensor, nn

from audio_mamba.configs.base import paper_config
from audio_mamba.models import MaskedSpectrogramEncoder, register_encoder


class MeanBlock(nn.Module):
    """Adds a linear map of the mean over all tokens, or over those until now."""

    def __init__(self, dim: int, causal: bool):
        super().__init__()
        self.norm, self.linear, self.causal = nn.LayerNorm(dim), nn.Linear(dim, dim), causal

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        mean = normed.cumsum(1) / count if self.causal else normed.mean(1, keepdim=True)
        return x + self.linear(mean) * normed


class MeanSSAST(MaskedSpectrogramEncoder):
    def __init__(self, causal: bool = False, **arguments):
        super().__init__(**arguments)
        self.causal = causal
        self.blocks = nn.ModuleList(MeanBlock(self.embed_dim, causal) for _ in range(self.depth))
        self.init_weights()


register_encoder("mean_ssast", MeanSSAST, {"tiny": {"depth": 2, "embed_dim": 48}})


def get_config():
    return paper_config("mean_ssast_tiny")
