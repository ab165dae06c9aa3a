"""Fixed two-dimensional sine-cosine positions."""

import numpy as np


def sincos_position_embedding(grid_size: tuple[int, int], dim: int, cls_token: bool) -> np.ndarray:
    """Positions of a time-major grid of (time steps, mel bands), float32 [cls_token + T'*M', dim].

    The first half of the channels encodes the mel band, the second half the time step (MAE's `get_2d_sincos_pos_embed`,
    He et al. 2022, with the axes of the published model). The class token's position is zero.
    ValueError unless `dim` is a multiple of 4.
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
