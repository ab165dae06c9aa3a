"""Random crops of spectrograms, written straight into the batch."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from audio_mamba.data.normalisation import clip_statistics, fixed_statistics, normalise
from audio_mamba.data.samples import decode_spectrogram
from audio_mamba.front_end import FrontEnd

DrawMask = Callable[[np.random.Generator], np.ndarray]
FLOAT16_ROUNDING = 2.0**-11  # relative


def crop_place(frames: int, num_frames: int, rng: np.random.Generator) -> tuple[int, int]:
    """Start and length of a random crop of num_frames successive frames; all of a shorter clip."""
    if frames < num_frames:
        return 0, frames
    return int(rng.integers(frames - num_frames + 1)), num_frames


def repeat_to_fill(out: np.ndarray, length: int) -> None:
    """Fill the rest of a crop whose first `length` frames are the whole clip: the clip is repeated from its start."""
    for start in range(length, len(out), length):
        rest = out[start : start + length]
        rest[:] = out[: len(rest)]


def refuse_constant(values: np.ndarray, front_end: FrontEnd) -> None:
    """ValueError for a crop [frames, mels], not normalised, whose values are all the same: a hole in the file.

    True silence is accepted: every value is then the logarithm of the front end's `log_offset`.
    """
    first = values[0, 0]
    if first == values[-1, -1] and (values == first).all() and not is_silence(first, front_end):
        raise ValueError(f"all values of the crop are {first:g}, and silence would be {log_floor(front_end):.6g}")


def hole_frames(values: np.ndarray, front_end: FrontEnd) -> int:
    """The most successive frames of a clip [frames, mels] with one value in all bands, silence aside."""
    constant = (values == values[:, :1]).all(1) & ~is_silence(values[:, 0], front_end)  # [frames]
    edges = np.flatnonzero(np.diff(constant, prepend=False, append=False))  # where runs begin and end, in turn
    return int((edges[1::2] - edges[::2]).max(initial=0))


def log_floor(front_end: FrontEnd) -> float:
    """The log-mel of digital silence."""
    return math.log(front_end.log_offset)


def is_silence(values: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Where values are the log-mel of digital silence, in float32 or rounded to float16."""
    floor = log_floor(front_end)
    return abs(np.asarray(values, np.float64) - floor) <= abs(floor) * FLOAT16_ROUNDING


def normalised_clip(spectrogram: Tensor, front_end: FrontEnd, ddof: int) -> Tensor:
    """A whole clip, float32 [frames, mels], normalised as its front end says. ValueError if it holds NaN or Inf.

    ddof: see `clip_statistics`.
    """
    clip = normalise(spectrogram, clip_statistics(spectrogram, ddof))
    if not torch.isfinite(clip[0, 0]):  # one NaN or Inf makes all of them NaN or Inf
        raise ValueError("the spectrogram holds NaN or Inf")
    if fixed := fixed_statistics(front_end):
        return normalise(spectrogram, fixed)
    return clip


def crop_member(out: np.ndarray, member: bytes, front_end: FrontEnd, rng: np.random.Generator) -> None:
    """Decode a whole data member, normalise the clip and put a crop of it into `out`, float32 [num_frames, mels].

    Raises:
        ValueError: the member is not a spectrogram, has another number of mel bands, holds NaN or Inf, or the crop is
            a hole.
    """
    stored = decode_spectrogram(member, n_mels=out.shape[1])
    spectrogram = torch.from_numpy(stored).float()  # [frames, mels]
    clip = normalised_clip(spectrogram, front_end, ddof=0)  # as the published loader
    start, length = crop_place(len(clip), len(out), rng)
    refuse_constant(stored[start : start + length], front_end)
    out[:length] = clip[start : start + length].numpy()
    repeat_to_fill(out, length)
