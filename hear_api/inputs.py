"""What callers may hand in as audio: arrays, tensors and paths.

Arrays and tensors hold floating-point samples in [-1, 1] at the model's sample rate (with the published front end
16 kHz, and at least 201 samples); `[n]` is one clip and `[c, n]` are c clips. Anything else is an `InputError`, which
names the clip and what is wrong with it.
"""

import math
from collections.abc import Sequence
from numbers import Real
from os import PathLike

import numpy as np
import torch
from torch import Tensor

from audio_mamba.front_end import FrontEnd
from audio_mamba.schema import is_finite

ClipInput = np.ndarray | Tensor | str | PathLike
LOWEST_RATE = 200  # Hz
LOUDEST = 100.0  # larger samples are taken for integer PCM that was not scaled to [-1, 1]


class InputError(ValueError):
    """Audio that cannot be embedded; the message says which clip, what is wrong and what is accepted."""


def as_batch(audio: np.ndarray | Tensor, front_end: FrontEnd) -> Tensor:
    """Clips of one length, [n] or [c, n] -> float32 [c, n]. InputError for invalid audio."""
    batch = _as_matrix(audio)
    for number, clip in enumerate(batch):
        check_samples(clip, f"clip {number} of {len(batch)}", front_end)
    return batch


def as_clips(clips: ClipInput | Sequence[ClipInput]) -> list[ClipInput]:
    """An array, a path or a sequence of them -> a list with one entry per clip. InputError for anything else."""
    if isinstance(clips, (str, PathLike)):
        return [clips]
    if isinstance(clips, (np.ndarray, Tensor)):
        return list(_as_matrix(clips))
    if not isinstance(clips, Sequence) or isinstance(clips, (bytes, bytearray, memoryview)):
        raise InputError(f"clips must be an array, a path or a list of them, got {type(clips).__name__}")
    if any(isinstance(clip, Real) for clip in clips):
        raise InputError(
            f"clips must be an array, a path or a list of them, got a {type(clips).__name__} of numbers; pass the "
            "samples of a clip as numpy.array(...)"
        )
    return list(clips)


def as_samples(audio: np.ndarray | Tensor, name: str) -> Tensor:
    """Floating-point samples [n], any n -> float32 [n]. InputError for another type or shape."""
    samples = _as_tensor(audio, name)
    if samples.dim() != 1:
        raise InputError(f"{name} must be [n_samples], got {list(samples.shape)}")
    return samples.float()


def check_sample_rate(sample_rate: float) -> None:
    """InputError unless the rate is a number of Hz; smaller ones than LOWEST_RATE are taken for kHz."""
    if not is_finite(sample_rate) or sample_rate < LOWEST_RATE:
        raise InputError(f"sample_rate must be a number of Hz, {LOWEST_RATE} or more, got {sample_rate!r}")


def check_samples(samples: Tensor, name: str, front_end: FrontEnd) -> Tensor:
    """Return samples [n]. InputError if there are too few for the front end, or for invalid values."""
    if len(samples) < front_end.min_samples:
        milliseconds = 1000 * front_end.min_samples / front_end.sample_rate
        raise InputError(
            f"{name} must have at least {front_end.min_samples} samples ({milliseconds:.1f} ms at "
            f"{front_end.sample_rate} Hz), got {len(samples)}"
        )
    return check_values(samples, name)


def check_values(samples: Tensor, name: str) -> Tensor:
    """Return samples [n]. InputError for invalid values, see `fault_in_values`."""
    if fault := fault_in_values(samples):
        raise InputError(f"{name} {fault}")
    return samples


def fault_in_values(samples: Tensor) -> str | None:
    """What is wrong with samples [n] that are not finite or far beyond [-1, 1], in words; None for valid ones."""
    peak = samples.abs().amax().item() if len(samples) else 0.0  # NaN if any sample is
    if not math.isfinite(peak):
        return "holds NaN or Inf"
    if peak > LOUDEST:
        return (
            f"must hold samples in [-1, 1], its peak is {peak:.5g}: integer PCM needs scaling "
            "first (16 bits: divide by 32768)"
        )
    return None


def _as_matrix(audio: np.ndarray | Tensor) -> Tensor:
    """[n] or [c, n] -> float32 [c, n]."""
    audio = _as_tensor(audio, "audio")
    if audio.dim() not in (1, 2) or (audio.dim() == 2 and len(audio) == 0):
        raise InputError(
            f"audio must be [n_samples] or [n_sounds, n_samples] with at least one sound, got {list(audio.shape)}"
        )
    return (audio if audio.dim() == 2 else audio[None]).float()


def _as_tensor(audio: np.ndarray | Tensor, name: str) -> Tensor:
    if isinstance(audio, np.ndarray) and audio.dtype.kind == "f":
        # torch supports no long doubles, foreign byte orders, negative strides or read-only memory.
        with np.errstate(over="ignore"):  # values beyond float32 become Inf, which is refused
            return torch.from_numpy(np.array(audio, np.float32, order="C"))
    if not isinstance(audio, (Tensor, np.ndarray)):
        raise InputError(
            f"{name} must be an array or tensor of floating-point samples in [-1, 1], got {type(audio).__name__}"
        )
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        advice = "integer PCM needs scaling first (int16: divide by 32768)"
        if isinstance(audio, np.ndarray) and audio.dtype.kind in "OSU":
            advice = "pass paths, or clips of several lengths, as a list"
        raise InputError(f"{name} must be floating-point samples in [-1, 1], got {audio.dtype}; {advice}")
    return audio.detach()
