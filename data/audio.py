"""Audio files of any rate and channel count to mono float32 samples at one rate (soundfile decodes, soxr resamples)."""

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from audio_mamba.data.cut_off import cut_off
from audio_mamba.front_end import PUBLISHED

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc"}
# Of other recordings: libsndfile cannot read them, or not all of their kind, or takes a part of one for the whole.
OTHER_SUFFIXES = {
    ".3gp",
    ".aac",
    ".amr",
    ".ape",
    ".au",
    ".avi",
    ".caf",
    ".m4a",
    ".m4b",
    ".mka",
    ".mkv",
    ".mov",
    ".mp2",
    ".mp4",
    ".sph",
    ".w64",
    ".webm",
    ".wma",
    ".wmv",
    ".wv",
}
BLOCK_SECONDS = 10


class AudioError(ValueError):
    """An audio file or folder that cannot be used; the message names it and says why."""


class AudioFileError(AudioError):
    """An audio file that cannot be used: `path` names it, and `reason` says why."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def find_audio(directory: str | Path) -> list[Path]:
    """All wav, flac, ogg, opus, mp3 and aiff files below a folder (AUDIO_SUFFIXES, any letter case), sorted by path.
    Links are followed. Folders that cannot be read are passed over with a warning, and so are recordings of other
    formats (OTHER_SUFFIXES), with one for all of them.

    Raises:
        AudioError: the folder does not exist, or holds no such file.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise AudioError(f"{directory} is not a folder of audio files")
    found = sorted(
        path
        for path in _files_below(directory)
        if path.suffix.lower() in AUDIO_SUFFIXES | OTHER_SUFFIXES and path.is_file()
    )
    files = [path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]
    others = [path for path in found if path.suffix.lower() in OTHER_SUFFIXES]
    note = f"accepted: {' '.join(sorted(AUDIO_SUFFIXES))}"
    if others:
        note = f"recordings of other formats: {len(others)}, the first is {printable(others[0])}; {note}"
    if not files:
        raise AudioError(f"no audio found below {directory} ({note})")
    if others:
        logger.warning("passed over %s", note)
    return files


def _files_below(directory: Path) -> Iterator[Path]:
    def warn(error: OSError) -> None:
        logger.warning("%s: passed over, it cannot be read (%s)", error.filename, error.strerror)

    for folder, folders, names in os.walk(directory, onerror=warn, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(Path(folder, name))]
        yield from (Path(folder, name) for name in names)


def _leads_back(folder: Path) -> bool:
    """Whether a link to a folder leads to one that it lies in, and so round and round."""
    return folder.is_symlink() and any(parent.samefile(folder) for parent in folder.absolute().parents)


def printable(path: str | Path) -> str:
    """A path with / between its parts, as text for any file or terminal: bytes of it that are no UTF-8 become \\xff."""
    return os.fsencode(Path(path).as_posix()).decode(errors="backslashreplace")


def load_audio(
    path: str | Path, sample_rate: int = PUBLISHED.sample_rate, min_samples: int = PUBLISHED.min_samples
) -> np.ndarray:
    """A whole file as mono samples.

    Returns:
        float32 [n] at `sample_rate` Hz, n >= `min_samples` (a front end's; 201 at 16 kHz); the mean of the channels.

    Raises:
        AudioError: the file is missing, unreadable, empty, cut off, too short, or holds NaN or Inf.
    """
    blocks = list(stream_audio(path, sample_rate))
    audio = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if len(audio) < min_samples:
        raise AudioFileError(path, f"too short, {len(audio)} samples at {sample_rate} Hz; {min_samples} are needed")
    return audio


def stream_audio(path: str | Path, sample_rate: int = PUBLISHED.sample_rate) -> Iterator[np.ndarray]:
    """The same samples as `load_audio`, in blocks of about ten seconds, so that a file of hours needs little memory.

    Yields:
        float32 [n] blocks; their concatenation is the file. Raises AudioError as `load_audio`, at the faulty block,
        but leaves it to the caller what is too short.
    """
    try:
        if not Path(path).is_file():
            raise AudioFileError(path, "no such audio file")
        with _open(path) as file:
            if file.frames == 0:
                raise AudioFileError(path, "holds no samples")
            if reason := cut_off(file, path):
                raise AudioFileError(path, f"cut off, {reason}")
            if file.channels > 2:
                logger.warning("%s: its %d channels are mixed into one", path, file.channels)
            yield from _resampled(_mono_blocks(file, path), file.samplerate, sample_rate)
    except (soundfile.SoundFileError, OSError) as error:
        reason = (getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)).strip(" .")
        raise AudioFileError(path, f"cannot be read as audio ({reason})") from error


def _open(path: str | Path) -> soundfile.SoundFile:
    # By number: soundfile takes no name that is not UTF-8, and judges some files by their names.
    file = soundfile.SoundFile(os.open(path, os.O_RDONLY))
    if file.format != "MP3":
        return file
    # The length of an mp3 without a header that counts its frames is a guess by the first frame, and libsndfile reads
    # no further than it guesses. From a pipe it reads all, and guesses nothing.
    piped = _PipedFile(path, _tags_end(path))
    unwanted, wanted = (file, piped) if _length_is_unknown(piped) else (piped, file)
    unwanted.close()
    return wanted


def _length_is_unknown(file: soundfile.SoundFile) -> bool:
    return file.frames == np.iinfo(np.int64).max


def _tags_end(path: str | Path) -> int:
    """Where the ID3v2 tags at the front of an mp3 end; libsndfile passes no large ones in a pipe."""
    end = 0
    with open(path, "rb") as file:
        while (header := file.read(10)).startswith(b"ID3") and len(header) == 10:
            size = sum(byte << shift for byte, shift in zip(header[6:], (21, 14, 7, 0)))  # 7 bits in each byte
            end = file.seek(end + 10 + size)
    return end


class _PipedFile(soundfile.SoundFile):
    """A file whose bytes from `start` on come through a pipe; `error` is what ended them early."""

    def __init__(self, path: str | Path, start: int):
        self.error: OSError | None = None
        source = open(path, "rb")
        reading, writing = os.pipe()
        threading.Thread(target=self._copy, args=(source, open(writing, "wb", buffering=0), start), daemon=True).start()
        super().__init__(reading)

    def _copy(self, source: BinaryIO, pipe: BinaryIO, start: int) -> None:
        with source, pipe:
            try:
                source.seek(start)
                shutil.copyfileobj(source, pipe)
            except BrokenPipeError:
                pass  # the reader has enough
            except OSError as error:
                self.error = error


def _mono_blocks(file: soundfile.SoundFile, path: str | Path) -> Iterator[np.ndarray]:
    frames_read = 0
    while frames_read < file.frames:
        block = file.read(BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)  # [n, channels]
        if len(block) == 0:
            if _length_is_unknown(file):
                if file.error:
                    raise file.error
                return
            raise AudioFileError(path, f"cut off, {frames_read} of {file.frames} samples could be read")
        if not np.isfinite(block).all():
            raise AudioFileError(path, f"holds NaN or Inf samples near second {frames_read // file.samplerate}")
        frames_read += len(block)
        yield block.mean(axis=1, dtype=np.float32)


def _resampled(blocks: Iterator[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    if rate == wanted:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)  # what the filter still holds back
