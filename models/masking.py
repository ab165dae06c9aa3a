"""Which patches of a sample are hidden from the encoder."""

import numpy as np

MODES = ("unstructured", "timestep")


def draw_mask(rng: np.random.Generator, grid_size: tuple[int, int], ratio: float, mode: str) -> np.ndarray:
    """Draw one sample's mask: float32 [T'*M'], time-major, 1 where masked.

    "unstructured" hides patches anywhere and keeps `kept(L, ratio)` of the L = T'*M' patches; "timestep" hides whole
    time steps, every mel band of them, and keeps `kept(T', ratio)` steps. All masks of that size are equally likely.
    ValueError for an unknown mode.
    """
    steps, bands = grid_size
    if mode == "unstructured":
        return _mask(rng, steps * bands, ratio)
    if mode == "timestep":
        return np.repeat(_mask(rng, steps, ratio), bands)
    raise ValueError(f"unknown masking_mode {mode!r}; choose from {', '.join(MODES)}")


def kept(length: int, ratio: float) -> int:
    """How many of `length` patches or steps stay visible, rounded as in the published code: 50 of 250 at 0.8."""
    return int(length * (100 - 100 * ratio) / 100)


def _mask(rng: np.random.Generator, length: int, ratio: float) -> np.ndarray:
    mask = np.ones(length, dtype=np.float32)
    mask[rng.permutation(length)[: kept(length, ratio)]] = 0
    return mask
