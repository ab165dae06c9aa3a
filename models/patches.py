"""Spectrograms as sequences of patches, and the positions of the patches.

Everything inside the encoders is time-first: a spectrogram is [B, C, T, M] (frames, mel bands) and patches are in
time-major order, patch t * M' + m for time step t and band m. Frequency-first models differ only in their input and in
how their kernel is stored.
"""

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn


def patchify(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """[B, C, T, M] -> [B, T'*M', p_t*p_m*C]; element (time * p_m + mel) * C + channel of a patch."""
    batch, channels, frames, mels = x.shape
    p_t, p_m = patch_size
    x = x.reshape(batch, channels, frames // p_t, p_t, mels // p_m, p_m)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, p_t * p_m * channels)


def unpatchify(patches: Tensor, grid_size: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: [B, T'*M', p_t*p_m*C] -> [B, C, T, M]."""
    (steps, bands), (p_t, p_m) = grid_size, patch_size
    x = patches.reshape(patches.shape[0], steps, bands, p_t, p_m, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], x.shape[-1], steps * p_t, bands * p_m)


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one linear map, written as a strided convolution (as in ViT).

    `patch_size` is in the order of the model's input, so a frequency-first model stores its kernel [D, C, p_m, p_t].
    """

    def __init__(self, patch_size: tuple[int, int], in_chans: int, embed_dim: int, frequency_first: bool):
        super().__init__()
        self.frequency_first = frequency_first
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Time-first [B, C, T, M] -> tokens [B, T'*M', D], time-major."""
        weight = self.proj.weight.transpose(-1, -2) if self.frequency_first else self.proj.weight
        # A convolution whose stride is its kernel is one matrix product on the patches. It is not `ops.linear`, whose
        # other rounding AxLSTM would amplify.
        weight = weight.permute(0, 2, 3, 1)  # [D, p_t, p_m, C]
        _, p_t, p_m, _ = weight.shape
        return F.linear(patchify(x, (p_t, p_m)), weight.flatten(1), self.proj.bias)


def sincos_position_embedding(grid_size: tuple[int, int], dim: int, cls_token: bool) -> np.ndarray:
    """Positions of a time-major grid of (time steps, mel bands), float32 [cls_token + T'*M', dim].

    The first half of the channels encodes the mel band, the second half the time step (MAE's `get_2d_sincos_pos_embed`,
    He et al. 2022, with the axes of the published model). The class token's position is zero.

    Raises:
        ValueError: `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"the embedding width must be a multiple of 4 for 2-d sine-cosine positions, got {dim}")
    steps, bands = grid_size
    axes = np.meshgrid(np.arange(steps, dtype=np.float32), np.arange(bands, dtype=np.float32), indexing="ij")
    time, band = (axis.ravel() for axis in axes)  # [T'*M'] each
    positions = np.concatenate([_sincos(band, dim // 2), _sincos(time, dim // 2)], axis=1)  # [T'*M', dim]
    return np.concatenate([np.zeros((1, dim), np.float32), positions]) if cls_token else positions


def _sincos(position: np.ndarray, dim: int) -> np.ndarray:
    """[L] -> [L, dim]: sines, then cosines, of position * 10000^(-2i/dim), in float32 as in the published weights."""
    exponent = np.arange(dim // 2, dtype=np.float32) / np.float32(dim / 2)
    angle = np.outer(position, 1 / np.float32(10000) ** exponent)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
