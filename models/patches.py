"""Spectrograms as sequences of patches.

Everything inside the encoders is time-first: a spectrogram is [B, C, T, M] (frames, mel bands) and patches run
time-major, patch t * M' + m for time step t and band m. Frequency-first models differ in their input and in how
their kernel is stored, nowhere else.
"""

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
        # A convolution whose stride is its kernel is one matrix product on the patches.
        weight = weight.permute(0, 2, 3, 1)  # [D, p_t, p_m, C]
        return F.linear(patchify(x, tuple(weight.shape[1:3])), weight.flatten(1), self.proj.bias)
