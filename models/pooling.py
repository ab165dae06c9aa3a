"""From the features of a clip's time steps to one embedding of the clip."""

import torch
from torch import Tensor

from audio_mamba.schema import POOLINGS


def pooled_width(pooling: str, width: int) -> int:
    """Width of the pooled embedding of steps of a width. ValueError for an unknown pooling."""
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}; choose from {', '.join(POOLINGS)}")
    return POOLINGS[pooling] * width


def pool(features: Tensor, pooling: str) -> Tensor:
    """Features [..., t, width] -> [..., width] for "mean", [..., 2 * width] for "mean_std": the mean over time, then
    the standard deviation of the t steps (divided by t, so 0 for a single step)."""
    mean = features.mean(dim=-2)
    return mean if pooling == "mean" else torch.cat([mean, features.std(dim=-2, correction=0)], dim=-1)


class RunningPool:
    """`pool` of steps that arrive in parts, in float64 (Chan, Golub and LeVeque 1983)."""

    def __init__(self, pooling: str, width: int):
        self._pooling = pooling
        self._steps = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, dtype=torch.float64)  # summed squared distances from the mean

    def add(self, features: Tensor) -> None:
        """Take in the next features [t, width], t at least 1."""
        features, new = features.double(), len(features)
        mean = features.mean(dim=0)
        self._squares += (features - mean).square().sum(dim=0)
        if self._steps:
            distance = mean - self._sum / self._steps
            self._squares += distance.square() * (self._steps * new / (self._steps + new))
        self._sum += features.sum(dim=0)
        self._steps += new

    def result(self) -> Tensor:
        """The embedding of all steps so far, float32 [1, pooled width]."""
        parts = [self._sum / self._steps, (self._squares / self._steps).sqrt()]
        return torch.cat(parts[: POOLINGS[self._pooling]]).float()[None]
