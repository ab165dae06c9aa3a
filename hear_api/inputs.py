"""What callers may hand in as audio: arrays and tensors, and the INPUTs of the embed command.

Arrays and tensors hold floating-point samples in [-1, 1] at the model's sample rate (with the published front end
16 kHz, and at least 201 samples); `[n]` is one clip and `[c, n]` are c clips. Anything else is an `InputError`, which
names the clip and what is wrong with it.
"""

import csv
import glob
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio_mamba.data.audio import AudioError, find_audio
from audio_mamba.front_end import FrontEnd

ClipInput = np.ndarray | Tensor | str | PathLike
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
    if not isinstance(clips, Sequence):
        raise InputError(f"clips must be an array, a path or a list of them, got {type(clips).__name__}")
    return list(clips)


def as_samples(audio: np.ndarray | Tensor, name: str) -> Tensor:
    """Floating-point samples [n], any n -> float32 [n]. InputError for another type or shape."""
    samples = _as_tensor(audio, name)
    if samples.dim() != 1:
        raise InputError(f"{name} must be [n_samples], got {list(samples.shape)}")
    return samples.float()


def check_sample_rate(sample_rate: float) -> None:
    """InputError unless the rate is a positive number."""
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, Real) or not 0 < sample_rate < math.inf:
        raise InputError(f"sample_rate must be a positive number of Hz, got {sample_rate!r}")


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
    if audio.dim() not in (1, 2) or audio.dim() == 2 and len(audio) == 0:
        raise InputError(
            f"audio must be [n_samples] or [n_sounds, n_samples] with at least one sound, got {list(audio.shape)}"
        )
    return (audio if audio.dim() == 2 else audio[None]).float()


def _as_tensor(audio: np.ndarray | Tensor, name: str) -> Tensor:
    if isinstance(audio, np.ndarray) and audio.dtype.kind == "f":
        # torch supports no long doubles, foreign byte orders, negative strides or read-only memory.
        with np.errstate(over="ignore"):  # values beyond float32 become Inf, which is refused
            return torch.from_numpy(np.array(audio, np.float32, order="C"))
    if not isinstance(audio, Tensor) or not audio.is_floating_point():
        found = audio.dtype if isinstance(audio, (Tensor, np.ndarray)) else type(audio).__name__
        raise InputError(
            f"{name} must be floating-point samples in [-1, 1], got {found}; integer PCM needs scaling "
            "first (int16: divide by 32768)"
        )
    return audio.detach()


def list_audio(inputs: Iterable[str]) -> list[Path]:
    """The audio files that the INPUTs of a command line name, in the given order and without repeats.

    Args:
        inputs: each a file, a folder (all audio below it, sorted), a glob ("takes/**/*.wav", sorted), or a `.csv` list.
            The paths of a list are in its column `path`, `file` or `filename`, or else in its first column, and are
            relative to the list's folder.

    Raises:
        AudioError: an input that names no file.
    """
    files: list[Path] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files += find_audio(path)
        elif path.suffix.lower() == ".csv" and path.is_file():
            files += _read_list(path)
        elif path.exists():
            files.append(path)
        elif matches := sorted(Path(match) for match in glob.glob(text, recursive=True) if Path(match).is_file()):
            files += matches
        else:
            raise AudioError(f"{text}: no such file or folder, and as a pattern it matches no file")
    return list(dict.fromkeys(files))


def _read_list(path: Path) -> list[Path]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise AudioError(f"{path}: cannot be read as a csv list ({error})") from error
    if not rows:
        raise AudioError(f"{path}: the list is empty")
    header = [cell.strip().lower() for cell in rows[0]]
    column = next((header.index(name) for name in ("path", "file", "filename") if name in header), None)
    names = [row[0] for row in rows] if column is None else [row[column] for row in rows[1:] if len(row) > column]
    return [path.parent / name.strip() for name in names]
