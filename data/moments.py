"""Mean and standard deviation of a spectrogram that is too long to hold, or has not ended yet."""

import math

from torch import Tensor


class Moments:
    """Of all values of all frames added so far, in float64 (joined as in Chan, Golub and LeVeque 1979)."""

    def __init__(self):
        self.frames, self._count, self._mean, self._squares = 0, 0, 0.0, 0.0

    def add(self, frames: Tensor) -> None:
        """Frames [n, mels], any n."""
        if not len(frames):
            return
        # The mean of equal values must be that value: silence has a deviation of exactly 0.
        values = frames.double()
        origin = values[0, 0].item()
        mean = origin + (values - origin).mean().item()
        count, shift = values.numel(), mean - self._mean if self._count else 0.0
        total = self._count + count
        self._squares += (values - mean).square().sum().item() + shift * shift * self._count * count / total
        self._mean = self._mean + shift * count / total if self._count else mean
        self._count, self.frames = total, self.frames + len(frames)

    def mean_and_std(self) -> tuple[float, float]:
        """Mean and deviation with ddof 1. ValueError where no frames have been added."""
        if not self._count:
            raise ValueError("no frames, so no statistics")
        return self._mean, math.sqrt(self._squares / max(1, self._count - 1))
