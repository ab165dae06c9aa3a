"""Audio files of any rate and channel count to mono float32 samples at one rate (soundfile decodes, soxr resamples)."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from data.features import MIN_SAMPLES, SAMPLE_RATE

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".mp3"}
BLOCK_SECONDS = 10


class AudioError(ValueError):
    """An audio file or folder that cannot be used; the message names it and says why."""


def find_audio(directory: str | Path) -> list[Path]:
    """All wav, flac, ogg, oga and mp3 files below a folder (any letter case), sorted by path. Links are followed.

    Raises:
        AudioError: the folder does not exist, or holds no such file.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise AudioError(f"{directory} is not a folder of audio files")
    files = sorted(path for path in _files_below(directory)
                   if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    if not files:
        raise AudioError(f"no audio found below {directory} (accepted: {' '.join(sorted(AUDIO_SUFFIXES))})")
    return files


def _files_below(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(Path(folder, name))]
        yield from (Path(folder, name) for name in names)


def _leads_back(folder: Path) -> bool:
    """Whether a link to a folder leads to one that it lies in, and so round and round."""
    return folder.is_symlink() and any(parent.samefile(folder) for parent in folder.absolute().parents)


def printable(path: str | Path) -> str:
    """A path with / between its parts, as text for any file or terminal: bytes of it that are no UTF-8 become \\xff."""
    return os.fsencode(Path(path).as_posix()).decode(errors="backslashreplace")


def load_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """A whole file as mono samples.

    Returns:
        float32 [n] at `sample_rate` Hz, n >= 201; the mean of the channels.

    Raises:
        AudioError: the file is missing, unreadable, empty, cut off, too short, or holds NaN or Inf.
    """
    blocks = list(stream_audio(path, sample_rate))
    audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if len(audio) < MIN_SAMPLES:
        raise AudioError(f"{path}: too short, {len(audio)} samples at {sample_rate} Hz; {MIN_SAMPLES} are needed")
    return audio


def stream_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Iterator[np.ndarray]:
    """The same samples as `load_audio`, in blocks of about ten seconds, so that a file of hours needs little memory.

    Yields:
        float32 [n] blocks; their concatenation is the file. Raises AudioError as `load_audio`, at the faulty block,
        but leaves it to the caller what is too short.
    """
    if not Path(path).is_file():
        raise AudioError(f"{path}: no such audio file")
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            if file.frames == 0:
                raise AudioError(f"{path}: holds no samples")
            if file.channels > 2:
                logger.warning("%s: its %d channels are mixed into one", path, file.channels)
            yield from _resampled(_mono_blocks(file, path), file.samplerate, sample_rate)
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "error_string", str(error)).strip(" .")
        raise AudioError(f"{path}: cannot be read as audio ({reason})") from error


def _mono_blocks(file: soundfile.SoundFile, path: str | Path) -> Iterator[np.ndarray]:
    frames_read = 0
    while frames_read < file.frames:
        block = file.read(BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)    # [n, channels]
        if len(block) == 0:
            raise AudioError(f"{path}: cut off, {frames_read} of {file.frames} samples could be read")
        if not np.isfinite(block).all():
            raise AudioError(f"{path}: holds NaN or Inf samples near second {frames_read // file.samplerate}")
        frames_read += len(block)
        yield block.mean(axis=1, dtype=np.float32)


def _resampled(blocks: Iterator[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    if rate == wanted:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)      # what the filter still holds back
