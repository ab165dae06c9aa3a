"""A baseline with the HEAR API: log-mel statistics without a model.

    ./extract_features.sh TASKS_DIR OUTPUT_DIR benchmarks.log_mel_baseline

A model must beat it to be useful. Scenes: mean and standard deviation over time. Timestamps: the mean of each 40 ms.
"""

import torch

from audio_mamba.data.features import log_mel
from audio_mamba.front_end import PUBLISHED

FRAMES_PER_STEP = 4
STEP_MS = 1000 * FRAMES_PER_STEP / PUBLISHED.frames_per_second  # 40


class LogMelBaseline(torch.nn.Module):
    """The attributes that the HEAR API requires of a model; it has no parameters."""

    sample_rate = PUBLISHED.sample_rate
    scene_embedding_size = 2 * PUBLISHED.n_mels
    timestamp_embedding_size = PUBLISHED.n_mels


def load_model(model_file_path: str = "") -> LogMelBaseline:
    """The baseline. The path, required by the API, is ignored."""
    return LogMelBaseline()


def get_scene_embeddings(audio: torch.Tensor, model: LogMelBaseline) -> torch.Tensor:
    """Audio [n, samples] at 16 kHz -> float32 [n, 160]: mean, then standard deviation over time of each mel band."""
    spectrogram = log_mel(audio)  # [n, frames, 80]
    return torch.cat([spectrogram.mean(1), spectrogram.std(1, unbiased=False)], dim=1)


def get_timestamp_embeddings(audio: torch.Tensor, model: LogMelBaseline) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio [n, samples] at 16 kHz -> float32 [n, t, 80] and its timestamps [n, t] in ms.

    Step i is the mean of frames 4 i to 4 i + 3, and its timestamp 40 i ms. The last step may have fewer frames.
    """
    steps = [step.mean(1) for step in log_mel(audio).split(FRAMES_PER_STEP, dim=1)]  # [n, 80] each
    timestamps = STEP_MS * torch.arange(len(steps), dtype=torch.float32, device=audio.device)
    return torch.stack(steps, dim=1), timestamps.expand(len(audio), -1)
