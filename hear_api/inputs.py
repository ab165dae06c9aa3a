"""What counts as audio: the rules for arrays, tensors and files that callers hand in.

Accepted: floating-point samples in [-1, 1] at 16 kHz, more than 200 of them; `[n]` is one clip, `[c, n]` are c clips.
Everything else is refused with one sentence that names the clip and the fault (`InputError`).
"""

import math
from collections.abc import Sequence
from numbers import Real
from os import PathLike

import numpy as np
import soxr
import torch
from torch import Tensor

from audio_mamba.data.audio import load_audio
from audio_mamba.front_end import PUBLISHED

Clip = np.ndarray | Tensor | str | PathLike
LOUDEST = 100.0  # beyond, samples are taken for integer PCM that nobody has scaled to [-1, 1]


class InputError(ValueError):
    """Audio that cannot be embedded; the message says which clip, what is wrong and what is accepted."""


def as_batch(audio: np.ndarray | Tensor) -> Tensor:
    """Clips of one length, [n] or [c, n] -> float32 [c, n]. InputError as the rules of this module say."""
    batch = _as_matrix(audio)
    for number, clip in enumerate(batch):
        check_samples(clip, f"clip {number} of {len(batch)}")
    return batch


def as_clips(clips: Clip | Sequence[Clip]) -> list[np.ndarray | Tensor | str | PathLike]:
    """One array, one path or a sequence of them -> a list with one entry per clip, for `load_clip`.

    InputError for anything else.
    """
    if isinstance(clips, (str, PathLike)):
        return [clips]
    if isinstance(clips, (np.ndarray, Tensor)):
        return list(_as_matrix(clips))
    if not isinstance(clips, Sequence):
        raise InputError(f"clips must be an array, a path or a list of them, got {type(clips).__name__}")
    return list(clips)


def load_clip(clip: Clip, name: str, sample_rate: int = PUBLISHED.sample_rate) -> Tensor:
    """One clip as float32 [n] at 16 kHz; arrays come at `sample_rate` and are resampled, files know their own.

    InputError for a faulty array, `data.audio.AudioError` for a faulty file; both are ValueErrors.
    """
    if isinstance(clip, (str, PathLike)):
        return check_finite(torch.from_numpy(load_audio(clip)), str(clip))
    samples = as_samples(clip, name)
    if sample_rate == PUBLISHED.sample_rate:
        return check_samples(samples, name)
    check_finite(samples, name)
    resampled = soxr.resample(samples.cpu().numpy(), sample_rate, PUBLISHED.sample_rate, quality="HQ")
    return check_samples(torch.from_numpy(resampled), f"{name}, resampled to {PUBLISHED.sample_rate} Hz,")


def as_samples(audio: np.ndarray | Tensor, name: str) -> Tensor:
    """Floating-point samples [n], any n -> float32 [n]. InputError for another type or shape."""
    samples = _as_tensor(audio, name)
    if samples.dim() != 1:
        raise InputError(f"{name} must be [n_samples], got {list(samples.shape)}")
    return samples.float()


def check_sample_rate(sample_rate: float) -> None:
    """InputError for a rate that is not a positive number."""
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real) or not 0 < sample_rate < math.inf:
        raise InputError(f"sample_rate must be a positive number of Hz, got {sample_rate!r}")


def check_samples(samples: Tensor, name: str) -> Tensor:
    """The samples [n] themselves. InputError if they are too few, not finite, or far beyond [-1, 1]."""
    if len(samples) < PUBLISHED.min_samples:
        raise InputError(
            f"{name} must have at least {PUBLISHED.min_samples} samples "
            f"({PUBLISHED.min_samples / PUBLISHED.sample_rate * 1000:.1f} ms at {PUBLISHED.sample_rate} Hz), "
            f"got {len(samples)}"
        )
    return check_finite(samples, name)


def check_finite(samples: Tensor, name: str) -> Tensor:
    """The samples [n] themselves. InputError if they are not finite, or far beyond [-1, 1]."""
    peak = samples.abs().amax().item() if len(samples) else 0.0  # NaN where there is one
    if not math.isfinite(peak):
        raise InputError(f"{name} holds NaN or Inf")
    if peak > LOUDEST:
        raise InputError(
            f"{name} must hold samples in [-1, 1], its peak is {peak:.5g}: integer PCM needs scaling "
            "first (16 bits: divide by 32768)"
        )
    return samples


def _as_matrix(audio: np.ndarray | Tensor) -> Tensor:
    """[n] or [c, n] -> float32 [c, n]."""
    audio = _as_tensor(audio, "audio")
    if audio.dim() not in (1, 2) or audio.dim() == 2 and len(audio) == 0:
        raise InputError(
            f"audio must be [n_samples] or [n_sounds, n_samples] with at least one sound, got {list(audio.shape)}"
        )
    return (audio if audio.dim() == 2 else audio[None]).float()


def _as_tensor(audio, name: str) -> Tensor:
    if isinstance(audio, np.ndarray) and audio.dtype.kind == "f":
        # torch knows no long doubles, no foreign byte order, no negative strides and no read-only memory.
        with np.errstate(over="ignore"):  # what passes float32 is Inf, and refused as such
            return torch.from_numpy(np.array(audio, np.float32, order="C"))
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        found = audio.dtype if isinstance(audio, (Tensor, np.ndarray)) else type(audio).__name__
        raise InputError(
            f"{name} must be floating-point samples in [-1, 1], got {found}; integer PCM needs scaling "
            "first (int16: divide by 32768)"
        )
    return audio.detach()
