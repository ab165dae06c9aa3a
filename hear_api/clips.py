"""Clips on their way to the encoder: read, grouped by a fixed rule, and prefetched while the model runs.

`RuntimeSSAST.embed` reads clips in threads, the embed command in processes; from there on both take the same path.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, repeat
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
import soxr
import torch
from torch import Tensor

from audio_mamba.data.audio import AudioFileError, stream_audio
from audio_mamba.data.feature_stream import LogMelStream
from audio_mamba.data.features import MIN_SAMPLES, N_MELS, SAMPLE_RATE, STD_OFFSET, log_mel, normalise, num_frames
from audio_mamba.data.moments import Moments
from audio_mamba.hear_api.inputs import ClipInput, as_samples, check_samples, check_values, fault_in_values
from audio_mamba.system.workers import follow_parent

LONG_SECONDS = 120  # longer files are read twice: once for their statistics, then chunk by chunk
GROUP_FRAMES = 24_000  # log-mel frames encoded together: 4 minutes and 8 MB with the paper's front end
CHUNKS_AHEAD = 2

T = TypeVar("T")


@dataclass(frozen=True)
class ShortClip:
    """A clip that is held in memory: its normalised log-mel, float32 [frames, mels]."""

    spectrogram: np.ndarray | Tensor
    seconds: float


@dataclass(frozen=True)
class LongFile:
    """A file that is too long to hold, with the mean and standard deviation of its log-mel."""

    path: Path
    samples: int
    mean: float
    std: float

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE

    @property
    def frames(self) -> int:
        return num_frames(self.samples)

    def chunks(self, segment_frames: int) -> Iterator[Tensor]:
        """Read the file again, as its normalised log-mel.

        Yields:
            float32 [frames, mels], as many whole segments as GROUP_FRAMES allows; the last chunk may be shorter.

        Raises:
            AudioFileError: the file cannot be read any more, or has changed since it was measured.
        """
        chunk_frames = max(1, GROUP_FRAMES // segment_frames) * segment_frames
        held = torch.zeros(0, N_MELS)
        for frames in self._log_mel():
            held = torch.cat([held, frames])
            while len(held) >= chunk_frames:
                chunk, held = held[:chunk_frames], held[chunk_frames:]
                yield self._normalise(chunk)
        if len(held):
            yield self._normalise(held)

    def _log_mel(self) -> Iterator[Tensor]:
        stream, samples = LogMelStream(), 0
        for block in stream_audio(self.path):
            samples += len(block)
            yield stream.feed(torch.from_numpy(block))
        if samples != self.samples:
            raise AudioFileError(self.path, "changed while it was read")
        yield stream.finish()

    def _normalise(self, frames: Tensor) -> Tensor:
        return (frames - self.mean) / (self.std + STD_OFFSET)


@dataclass(frozen=True)
class Failure:
    """A file that cannot be embedded, and why."""

    reason: str


Clip = ShortClip | LongFile


def load_clip(clip: ClipInput, name: str, sample_rate: int = SAMPLE_RATE) -> Tensor | LongFile:
    """Read one clip.

    Args:
        clip: path of an audio file, or samples [n].
        name: of an array in messages.
        sample_rate: of an array, which is resampled if it differs from the model's; files know their own.

    Returns:
        Float32 samples [n] at 16 kHz, or the statistics of a long file.

    Raises:
        InputError: invalid array.
        AudioFileError: invalid file.
    """
    if isinstance(clip, (str, PathLike)):
        return read_file(Path(clip))
    samples = as_samples(clip, name)
    if sample_rate == SAMPLE_RATE:
        return check_samples(samples, name)
    check_values(samples, name)
    resampled = soxr.resample(samples.cpu().numpy(), sample_rate, SAMPLE_RATE, quality="HQ")
    return check_samples(torch.from_numpy(resampled), f"{name}, resampled to {SAMPLE_RATE} Hz,")


def read_file(path: Path) -> Tensor | LongFile:
    """Samples [n] of a short audio file or the statistics of a long one. AudioFileError for an invalid file."""
    blocks, held, samples = _checked_blocks(path), [], 0
    for block in blocks:
        held.append(block)
        samples += len(block)
        if samples > LONG_SECONDS * SAMPLE_RATE:
            return _measure(path, chain(held, blocks))
    if samples < MIN_SAMPLES:
        raise AudioFileError(path, f"too short, {samples} samples at {SAMPLE_RATE} Hz; {MIN_SAMPLES} are needed")
    return torch.cat(held)


def _checked_blocks(path: Path) -> Iterator[Tensor]:
    for array in stream_audio(path):
        block = torch.from_numpy(array)
        if fault := fault_in_values(block):
            raise AudioFileError(path, fault)
        yield block


def _measure(path: Path, blocks: Iterable[Tensor]) -> LongFile:
    stream, statistics, samples = LogMelStream(), Moments(), 0
    for block in blocks:
        samples += len(block)
        statistics.add(stream.feed(block))
    statistics.add(stream.finish())
    return LongFile(path, samples, *statistics.mean_and_std())


def decode(path: Path) -> Clip | Failure:
    """Read a file in a worker process; what is wrong with it comes back as a value."""
    try:
        audio = read_file(path)
    except AudioFileError as error:
        return Failure(error.reason)
    if isinstance(audio, LongFile):
        return audio
    return ShortClip(normalise(log_mel(audio), ddof=1).numpy(), len(audio) / SAMPLE_RATE)


def start_worker() -> None:
    """Initialise a process that runs `decode`."""
    torch.set_num_threads(1)
    os.nice(5)  # the model comes first: workers are ahead of it most of the time
    follow_parent()


def group_clips(clips: Iterable[Clip | Failure]) -> Iterator[list[Clip | Failure]]:
    """Split clips, in order, into groups that are encoded together.

    A group ends with the clip that brings it to GROUP_FRAMES, and a long file is a group of its own. The clips alone
    decide, so a run that resumes after a group forms the same groups, and so the same bits, as an uninterrupted one.
    """
    group: list[Clip | Failure] = []
    frames = 0
    for clip in clips:
        if isinstance(clip, LongFile):
            if group:
                yield group
            yield [clip]
            group, frames = [], 0
            continue
        group.append(clip)
        frames += len(clip.spectrogram) if isinstance(clip, ShortClip) else 0
        if frames >= GROUP_FRAMES:
            yield group
            group, frames = [], 0
    if group:
        yield group


def prefetch(pool: Executor, function: Callable[..., T], calls: Iterable[tuple], ahead: int) -> Iterator[T]:
    """`function(*call)` for every call, in order, with up to `ahead` results made in advance by the pool.

    An exception is raised when its turn comes, and later calls are then cancelled.
    """
    calls = iter(calls)
    pending: deque[Future] = deque(pool.submit(function, *call) for call in islice(calls, ahead))
    try:
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, *call) for call in islice(calls, 1))
            yield result
    finally:
        for future in pending:
            future.cancel()


def prefetch_chunks(chunks: Iterator[T]) -> Iterator[T]:
    """The items of an iterator, made in advance by a thread."""
    with ThreadPoolExecutor(1) as pool:  # one thread, since a generator cannot be advanced by two
        for chunk in prefetch(pool, next, repeat((chunks, None)), CHUNKS_AHEAD):
            if chunk is None:
                return
            yield chunk
