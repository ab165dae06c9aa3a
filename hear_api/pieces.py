"""Audio files as normalised log-mels, short ones whole, long ones piece by piece, so that memory stays bounded."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audio_mamba.data.audio import AudioError, stream_audio
from audio_mamba.data.features import LogMelStream, log_mel
from audio_mamba.data.normalisation import RunningStats, Statistics, clip_statistics, normalise
from audio_mamba.front_end import PUBLISHED
from audio_mamba.hear_api.inputs import InputError, check_finite
from audio_mamba.system.workers import exit_with_parent

LONG_SECONDS = 120  # files beyond are read twice: for the statistics, then for the pieces


@dataclass(frozen=True)
class Decoded:
    """What a worker found out about a file; either `error`, or the rest."""

    error: str | None = None
    samples: int = 0  # at 16 kHz
    spectrogram: np.ndarray | None = None  # float32 [frames, 80], normalised; None for a long file,
    mean: float = 0.0  # which has the statistics of its log-mel instead
    std: float = 0.0

    @property
    def seconds(self) -> float:
        return self.samples / PUBLISHED.sample_rate


def decode(path: Path) -> Decoded:
    """Read a file: its spectrogram if it is short, its statistics if it is long."""
    held, samples, long = [], 0, None
    try:
        for block in stream_audio(path):
            samples += len(block)
            check_finite(torch.from_numpy(block), "the file")
            if long is None:
                held.append(block)
                if samples <= LONG_SECONDS * PUBLISHED.sample_rate:
                    continue
                stream, long, block, held = LogMelStream(), RunningStats(), np.concatenate(held), []
            long.add(stream.feed(torch.from_numpy(block)))
        if samples < PUBLISHED.min_samples:
            raise AudioError(
                f"{path}: too short, {samples} samples at {PUBLISHED.sample_rate} Hz; "
                f"{PUBLISHED.min_samples} are needed"
            )
        if long is not None:
            long.add(stream.finish())
            return Decoded(None, samples, None, *long.statistics())
    except (AudioError, InputError) as error:
        return Decoded(str(error).removeprefix(f"{path}: "))
    spectrogram = log_mel(torch.from_numpy(np.concatenate(held)))
    spectrogram = normalise(spectrogram, clip_statistics(spectrogram, ddof=1))
    return Decoded(None, samples, spectrogram.numpy())


def stream_pieces(path: Path, mean: float, std: float, piece_frames: int) -> Iterator[Tensor]:
    """The normalised log-mel of a long file again, in pieces [piece_frames, 80], the last one shorter."""
    stream, held = LogMelStream(), []

    def frames() -> Iterator[Tensor]:
        for block in stream_audio(path):
            yield stream.feed(torch.from_numpy(block))
        yield stream.finish()

    for new in frames():
        held.append(normalise(new, Statistics(mean, std)))
        joined = torch.cat(held)
        whole = len(joined) // piece_frames * piece_frames
        yield from joined[:whole].split(piece_frames) if whole else ()
        held = [joined[whole:]]
    if len(held[0]):
        yield held[0]


def start_worker() -> None:
    """Initialises a decoding process."""
    torch.set_num_threads(1)
    os.nice(5)  # the model comes first: workers are ahead of it most of the time
    exit_with_parent()
