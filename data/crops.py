"""Crops of spectrograms, written into the batch where they belong."""

from collections.abc import Callable

import numpy as np
import torch

from audio_mamba.data.normalisation import clip_statistics, normalise
from audio_mamba.data.samples import decode_spectrogram

DrawMask = Callable[[np.random.Generator], np.ndarray]


def crop_place(frames: int, num_frames: int, rng: np.random.Generator) -> tuple[int, int]:
    """Start and length of a random crop of num_frames successive frames; a shorter clip is taken whole."""
    if frames < num_frames:
        return 0, frames
    return int(rng.integers(frames - num_frames + 1)), num_frames


def repeat_to_fill(out: np.ndarray, length: int) -> None:
    """Fill the rest of a crop whose first `length` frames are all the clip has: it is repeated from its start."""
    for start in range(length, len(out), length):
        rest = out[start : start + length]
        rest[:] = out[: len(rest)]


def crop_member(out: np.ndarray, member: bytes, rng: np.random.Generator) -> None:
    """Decode a whole data member, normalise the clip and put a crop of it into `out`, float32 [num_frames, mels].

    Raises:
        ValueError: the member is no spectrogram, has another number of mel bands, or holds NaN or Inf.
    """
    clip = decode_spectrogram(member)
    if clip.shape[1] != out.shape[1]:
        raise ValueError(f"has {clip.shape[1]} mel bands, but {out.shape[1]} are expected")
    spectrogram = torch.from_numpy(clip).float()  # [frames, mels]
    clip = normalise(spectrogram, clip_statistics(spectrogram, ddof=0))  # as the published loader
    if not torch.isfinite(clip[0, 0]):  # one NaN or Inf spoils them all
        raise ValueError("the spectrogram holds NaN or Inf")
    start, length = crop_place(len(clip), len(out), rng)
    out[:length] = clip[start : start + length].numpy()
    repeat_to_fill(out, length)
