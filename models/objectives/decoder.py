"""A small convolutional decoder between the encoder and the predicted patches."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from audio_mamba.models.ops.linear import Linear

GROUPS = 16  # of the convolutions, if the width allows


class ConvDecoder(nn.Module):
    """Residual layers on the grid of patches, then one linear map to the values of a patch.

    A layer is a 3 x 3 convolution in groups, a layer norm without parameters over channels, and GELU, as in the decoder
    of data2vec 2.0 (Baevski et al. 2023, arXiv 2212.07525) and EAT (Chen et al. 2024, arXiv 2401.03497).

    Args:
        grid_size: (T', M').
        width: D.
        values: P.
        layers: at least 1.
    """

    def __init__(self, grid_size: tuple[int, int], width: int, values: int, layers: int):
        super().__init__()
        self.grid_size = grid_size
        groups = math.gcd(GROUPS, width)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=groups) for _ in range(layers))
        self.out = Linear(width, values)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, P]."""
        grid = tokens.mT.unflatten(2, self.grid_size)  # [B, D, T', M']
        for convolution in self.layers:
            normal = F.layer_norm(convolution(grid).movedim(1, -1), grid.shape[1:2]).movedim(-1, 1)
            grid = grid + F.gelu(normal)
        return self.out(grid.flatten(2).mT)
