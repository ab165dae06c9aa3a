"""Random masks: which patches of a sample the encoder does not see."""

import numpy as np

MODES = ("unstructured", "timestep", "cluster")
CLUSTER_SIDES = 3, 5  # the smallest and the largest, in patches


def draw_mask(rng: np.random.Generator, grid_size: tuple[int, int], ratio: float, mode: str) -> np.ndarray:
    """Draws one sample's mask: float32 [T'*M'], time-major, 1 where masked.

    Args:
        rng: the source of randomness.
        grid_size: (T', M'), the patches along time and along mel.
        ratio: the share to hide, in [0, 1).
        mode: "unstructured" hides single patches and keeps `kept(L, ratio)` of the L = T'*M'; "timestep" hides whole
            time steps with all their mel bands and keeps `kept(L, ratio) // M'` of the steps. (The published code keeps
            a part of one more step if there is a remainder.) All masks of that size are equally likely. "cluster"
            keeps as many patches as "unstructured" and hides squares of 3, 4 or 5 patches a side, after Gong et al.
            (2022, section 2.2): one side for all squares of a sample; they may overlap, and edges cut them.

    Raises:
        ValueError: an unknown mode.
    """
    steps, bands = grid_size
    visible = kept(steps * bands, ratio)
    if mode == "unstructured":
        return _mask(rng, steps * bands, visible)
    if mode == "timestep":
        return np.repeat(_mask(rng, steps, visible // bands), bands)
    if mode == "cluster":
        return _clusters(rng, grid_size, visible)
    raise ValueError(f"unknown masking_mode {mode!r}; choose from {', '.join(MODES)}")


def kept(length: int, ratio: float) -> int:
    """How many of `length` patches stay visible, rounded as in the published code: 50 of 250 at 0.8."""
    return int(length * (100 - 100 * ratio) / 100)


def _mask(rng: np.random.Generator, length: int, visible: int) -> np.ndarray:
    mask = np.ones(length, dtype=np.float32)
    mask[rng.permutation(length)[:visible]] = 0
    return mask


def _clusters(rng: np.random.Generator, grid_size: tuple[int, int], visible: int) -> np.ndarray:
    mask = np.zeros(grid_size, dtype=np.float32)  # [T', M']
    side = int(rng.integers(*CLUSTER_SIDES, endpoint=True))
    left = mask.size - visible  # patches to hide
    for centre in rng.permutation(mask.size).tolist():
        step, band = (place - side // 2 for place in divmod(centre, grid_size[1]))
        square = mask[max(step, 0) : step + side, max(band, 0) : band + side]
        new = square.size - int(square.sum())
        if new >= left:
            places = rng.permutation(np.argwhere(square == 0))[:left]
            square[tuple(places.T)] = 1
            break
        square[:] = 1
        left -= new
    return mask.ravel()
