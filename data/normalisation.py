"""Normalised spectrograms: one formula for whole clips, crops, long files and live audio.

By the mean and deviation of each clip, or by constants of the front end.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from audio_mamba.front_end import FrontEnd

STD_OFFSET = 1e-8  # from the published code; keeps a constant spectrogram finite


class Statistics(NamedTuple):
    """Mean and standard deviation of a clip; tensors [..., 1, 1] for several clips at once."""

    mean: float | Tensor
    std: float | Tensor


def normalise(spectrogram: Tensor, statistics: Statistics, out: Tensor | None = None) -> Tensor:
    """(x - mean) / (std + 1e-8).

    Args:
        spectrogram: float32 [..., frames, mels]: the clip that the statistics describe, or any part of it.
        statistics: from `clip_statistics` or `RunningStats`.
        out: where to write; may be the spectrogram itself.

    Returns:
        float32, same shape. A constant spectrogram (digital silence) gives exactly 0.
    """
    centred = torch.sub(spectrogram, statistics.mean, out=out)
    return centred.mul_(1 / (statistics.std + STD_OFFSET))


def clip_statistics(spectrogram: Tensor, ddof: int) -> Statistics:
    """Statistics over each whole clip [..., frames, mels], as tensors [..., 1, 1] of its dtype and on its device.

    ddof: 0 divides the variance by the number of values n (training), 1 by n - 1 (published runtime). The result is
    the same to the bit for any number of threads.
    """
    count = spectrogram.shape[-2] * spectrogram.shape[-1]
    # Relative to one of its values, a constant clip has a mean and deviation of exactly 0, without rounding errors.
    origin = spectrogram[..., :1, :1]
    centred = spectrogram - origin
    shift = _clip_sum(centred) / count
    return Statistics(origin + shift, (_clip_sum((centred - shift).square()) / (count - ddof)).sqrt())


def statistics_of(spectrogram: Tensor, front_end: FrontEnd, ddof: int) -> Statistics:
    """What a front end normalises a clip by: its own constants, or the `clip_statistics` of the clip."""
    return fixed_statistics(front_end) or clip_statistics(spectrogram, ddof)


def fixed_statistics(front_end: FrontEnd) -> Statistics | None:
    """The constants by which a front end normalises all clips; None if each has its own."""
    if front_end.mean is None or front_end.std is None:
        return None
    return Statistics(front_end.mean, front_end.std)


def _clip_sum(x: Tensor) -> Tensor:
    """[..., frames, mels] -> [..., 1, 1]. Row by row, so that threads share the rows but never the terms of one sum."""
    return x.sum(-1, keepdim=True).sum(-2, keepdim=True)


class RunningStats:
    """Statistics in float64 of all frames added so far (combined as in Chan, Golub and LeVeque 1979)."""

    def __init__(self):
        self.frames, self._count, self._mean, self._squares = 0, 0, 0.0, 0.0

    def add(self, frames: Tensor) -> None:
        """Frames [n, mels], any n."""
        if not len(frames):
            return
        # The mean of equal values must be that value, so that silence has a deviation of exactly 0.
        values = frames.double()
        origin = values[0, 0].item()
        mean = origin + (values - origin).mean().item()
        count, shift = values.numel(), mean - self._mean if self._count else 0.0
        total = self._count + count
        self._squares += (values - mean).square().sum().item() + shift * shift * self._count * count / total
        self._mean = self._mean + shift * count / total if self._count else mean
        self._count, self.frames = total, self.frames + len(frames)

    def statistics(self) -> Statistics:
        """Mean and deviation (divided by n - 1) of everything so far. ValueError before the first frame."""
        if not self._count:
            raise ValueError("no frames, so no statistics")
        return Statistics(self._mean, math.sqrt(self._squares / max(1, self._count - 1)))
