"""Audio files of any kind, rate and channel count to float32 samples of one channel at one rate.

`decoding` chooses the decoder by content and checks that a file is whole; soxr resamples.
"""

import contextlib
import errno
import itertools
import logging
import math
import operator
from collections.abc import Iterable, Iterator
from numbers import Integral
from pathlib import Path

import numpy as np
import soxr

from audio_mamba.data.audio_files import (
    AUDIO_SUFFIXES,
    OTHER_SUFFIXES,
    STORAGE_ERRORS,
    AudioError,
    AudioFileError,
    StorageError,
    UnexpectedAudioError,
    find_audio,
    fingerprint,
    is_hidden,
    printable,
)
from audio_mamba.data.decoding import DamageError, decoded, parts_of, seconds_of
from audio_mamba.front_end import PUBLISHED

__all__ = [
    "AUDIO_SUFFIXES",
    "OTHER_SUFFIXES",
    "AudioError",
    "AudioFileError",
    "StorageError",
    "UnexpectedAudioError",
    "channel_count",
    "estimated_seconds",
    "find_audio",
    "fingerprint",
    "is_hidden",
    "load_audio",
    "one_channel",
    "printable",
    "resampled",
    "stream_audio",
]

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 10
READ_BYTES = 1 << 18  # at once, while looking at how a file is built
CHANNELS = ("mix", "left", "right")
CHANNELS_OR_EACH = (*CHANNELS, "each")  # of commands that can take every channel separately
OPPOSITE_PHASE = 0.01  # of the channels' mean energy: a mix with less has lost what they hold


def load_audio(
    path: str | Path,
    sample_rate: int = PUBLISHED.sample_rate,
    min_samples: int = PUBLISHED.min_samples,
    channel: str | int = "mix",
) -> np.ndarray:
    """A whole file as samples of one channel; see `stream_audio` for `channel`.

    Returns:
        float32 [n] at `sample_rate` Hz, n >= `min_samples` (a front end's; 201 at 16 kHz).

    Raises:
        AudioError: the file is missing, unreadable, empty, damaged, cut off, too short, or holds NaN or Inf; a
            StorageError where the storage or the machine fails.
        UnexpectedAudioError: anything else goes wrong, as by a mistake in a decoder.
    """
    audio = np.concatenate(list(stream_audio(path, sample_rate, channel)))
    if len(audio) < min_samples:
        raise AudioFileError(path, f"too short, {len(audio)} samples at {sample_rate} Hz; {min_samples} are needed")
    return audio


def check_channel(channel: str | int) -> None:
    """ValueError unless it is a number, or one of CHANNELS."""
    if channel not in CHANNELS and (isinstance(channel, bool) or not isinstance(channel, Integral)):
        raise ValueError(f"channel must be a number or one of {', '.join(CHANNELS)}, got {channel!r}")


def stream_audio(
    path: str | Path, sample_rate: int = PUBLISHED.sample_rate, channel: str | int = "mix"
) -> Iterator[np.ndarray]:
    """The same samples as `load_audio`, in blocks of about ten seconds, so that a file of hours needs little memory.

    A file of several recordings, one after another, is read to its end. A warning in the log names files that are
    read although something is odd about them, such as channels of opposite phase, which cancel out in their mean.

    Args:
        channel: "mix" is the mean of all channels, "left" the first and "right" the second one (of a file with one
            channel, that one), a number that channel, counted from 0.

    Yields:
        float32 [n] blocks; their concatenation is the file. Raises AudioError as `load_audio`, at the faulty block or
        before, but leaves it to the caller what is too short.
    """
    check_channel(channel)
    with _naming(path):
        blocks = one_channel(_blocks(path), path, channel)
        for rate, group in itertools.groupby(blocks, key=operator.itemgetter(0)):
            yield from resampled((samples for _, samples in group), rate, sample_rate)


def channel_count(path: str | Path) -> int:
    """The number of channels of a file. AudioError where it cannot be read."""
    with _naming(path):
        for _, samples in _blocks(path):
            return samples.shape[1]
    raise AudioFileError(path, "holds no samples")


def estimated_seconds(path: str | Path) -> float:
    """The length of a file as its header has it, 0 where it has none or cannot be read; nothing is decoded."""
    try:
        with _naming(path), open(path, "rb") as file:
            return seconds_of(file)
    except (DamageError, OSError):
        return 0.0


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """What goes wrong with a file without being foreseen becomes an UnexpectedAudioError."""
    try:
        yield
    except (AudioError, DamageError, OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise UnexpectedAudioError(
            f"{path}: reading it failed unexpectedly ({type(error).__name__}: {error}); start again without "
            "it, and please report it"
        ) from error


def _blocks(path: str | Path) -> Iterator[tuple[int, np.ndarray]]:
    """Rate and float32 [n, channels], block by block; AudioError for whatever is wrong."""

    def warn(text: str) -> None:
        logger.warning("%s: %s", path, text)

    try:
        if not Path(path).is_file():
            raise AudioFileError(path, _why_absent(Path(path)))
        empty = True
        with open(path, "rb", buffering=READ_BYTES) as file:
            for part in parts_of(file):
                second = 0.0
                for rate, samples in decoded(file, part, BLOCK_SECONDS, warn):
                    if not np.isfinite(samples).all():
                        raise AudioFileError(path, f"holds NaN or Inf samples near second {second:.0f}")
                    second += len(samples) / rate
                    empty = empty and len(samples) == 0
                    yield rate, samples
        if empty:
            raise AudioFileError(path, "holds no samples")
    except DamageError as error:
        raise AudioFileError(path, str(error)) from error
    except OSError as error:
        kind = StorageError if errno.errorcode.get(error.errno or 0) in STORAGE_ERRORS else AudioFileError
        raise kind(path, f"cannot be read as audio ({error.strerror or error})") from error


def _why_absent(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a dangling link (was its file fetched?)"
    return "no such audio file"


def one_channel(
    blocks: Iterable[tuple[int, np.ndarray]], path: str | Path, channel: str | int, judged_after: float = math.inf
) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rate and samples [n, channels] -> rate and samples [n]; see `stream_audio` for `channel`.

    Warnings and AudioFileError name `path`: more than two channels are mixed, or the channels cancel out. That is known
    at the end, or already after `judged_after` seconds of a stream that may have none.
    """
    return _mixed(blocks, path, judged_after) if channel == "mix" else _picked(blocks, path, channel)


def _mixed(
    blocks: Iterable[tuple[int, np.ndarray]], path: str | Path, judged_after: float
) -> Iterator[tuple[int, np.ndarray]]:
    """`one_channel` for the mean of all channels."""
    mix_energy = channel_energy = seconds = 0.0
    warned = cancelled = False
    for rate, samples in blocks:  # [n, channels]
        channels = samples.shape[1]
        mixed = samples.mean(axis=1, dtype=np.float32)
        if channels > 1:
            mix_energy += float(np.vdot(mixed, mixed))
            flat = samples.ravel(order="K")
            channel_energy += float(np.vdot(flat, flat)) / channels
        seconds += len(samples) / rate
        if seconds >= judged_after and not cancelled:
            cancelled = _warn_if_cancelled(mix_energy, channel_energy, path)
        if channels > 2 and not warned:
            logger.warning("%s: its %d channels are mixed into one", path, channels)
            warned = True
        yield rate, mixed
    if not cancelled:
        _warn_if_cancelled(mix_energy, channel_energy, path)


def _picked(
    blocks: Iterable[tuple[int, np.ndarray]], path: str | Path, channel: str | int
) -> Iterator[tuple[int, np.ndarray]]:
    """`one_channel` for "left", "right" or a number."""
    before = None
    for rate, samples in blocks:  # [n, channels]
        channels = samples.shape[1]
        if before not in (None, channels):
            logger.warning("%s: has %d, then %d channels; only channel %s is taken", path, before, channels, channel)
        before = channels
        number = min({"left": 0, "right": 1}[channel], channels - 1) if isinstance(channel, str) else channel
        if not 0 <= number < channels:
            raise AudioFileError(path, f"has no channel {number}, it has {channels}")
        yield rate, samples[:, number].copy()


def _warn_if_cancelled(mix_energy: float, channel_energy: float, path: str | Path) -> bool:
    """Whether the mean of the channels has next to nothing of their energy."""
    cancelled = mix_energy < OPPOSITE_PHASE * channel_energy
    if cancelled:
        logger.warning("%s: its channels cancel out (opposite phase); consider --channel left", path)
    return cancelled


def resampled(blocks: Iterable[np.ndarray], rate: int, wanted: int) -> Iterator[np.ndarray]:
    """Blocks of samples [n] at `rate` Hz -> the same at `wanted` Hz, in blocks of which some may be empty."""
    if rate == wanted:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)  # what the filter still holds back
