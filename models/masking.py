"""Random masks: which patches of a sample the encoder does not see."""

import numpy as np

MODES = ("unstructured", "timestep")


def draw_mask(rng: np.random.Generator, grid_size: tuple[int, int], ratio: float, mode: str) -> np.ndarray:
    """Draws one sample's mask: float32 [T'*M'], time-major, 1 where masked.

    Args:
        rng: the source of randomness.
        grid_size: (T', M'), the patches along time and along mel.
        ratio: the share to hide, in [0, 1).
        mode: "unstructured" hides single patches and keeps `kept(L, ratio)` of the L = T'*M'; "timestep" hides whole
            time steps with all their mel bands and keeps `kept(L, ratio) // M'` of the steps. (The published code keeps
            a part of one more step if there is a remainder.) All masks of that size are equally likely.

    Raises:
        ValueError: an unknown mode.
    """
    steps, bands = grid_size
    visible = kept(steps * bands, ratio)
    if mode == "unstructured":
        return _mask(rng, steps * bands, visible)
    if mode == "timestep":
        return np.repeat(_mask(rng, steps, visible // bands), bands)
    raise ValueError(f"unknown masking_mode {mode!r}; choose from {', '.join(MODES)}")


def kept(length: int, ratio: float) -> int:
    """How many of `length` patches stay visible, rounded as in the published code: 50 of 250 at 0.8."""
    return int(length * (100 - 100 * ratio) / 100)


def _mask(rng: np.random.Generator, length: int, visible: int) -> np.ndarray:
    mask = np.ones(length, dtype=np.float32)
    mask[rng.permutation(length)[:visible]] = 0
    return mask
