"""openSMILE's hand-made features with the HEAR API: eGeMAPS (Eyben et al., 2016), or another of its sets.

    pip install -r benchmarks/requirements-opensmile.txt
    ./extract_features.sh TASKS_DIR OUTPUT_DIR benchmarks.opensmile_features
    MODEL=ComParE_2016 NAME=compare ./extract_features.sh TASKS_DIR OUTPUT_DIR benchmarks.opensmile_features

Licence: openSMILE is under audEERING's research licence. It allows research and private use; products, and features
extracted for products, need a commercial licence. It is not a part of this project and is not installed with it.
"""

import numpy as np
import torch

FRAMES_PER_STEP = 4  # of 10 ms
STEP_MS = 40.0


class OpenSmile(torch.nn.Module):
    """The attributes that the HEAR API requires of a model; it has no parameters.

    Args:
        feature_set: a name in `opensmile.FeatureSet`: eGeMAPSv02 (88 values a clip), ComParE_2016 (6373) and others.

    Raises:
        ValueError: unknown feature set.
        ModuleNotFoundError: opensmile is not installed.
    """

    sample_rate = 16000

    def __init__(self, feature_set: str):
        super().__init__()
        import opensmile

        if feature_set not in opensmile.FeatureSet.__members__:
            raise ValueError(
                f"unknown feature set {feature_set}; choose from {', '.join(opensmile.FeatureSet.__members__)}"
            )
        chosen, level = opensmile.FeatureSet[feature_set], opensmile.FeatureLevel
        self.functionals = opensmile.Smile(chosen, level.Functionals)
        self.descriptors = opensmile.Smile(chosen, level.LowLevelDescriptors)
        self.scene_embedding_size: int = self.functionals.num_features
        self.timestamp_embedding_size: int = self.descriptors.num_features


def load_model(model_file_path: str = "") -> OpenSmile:
    """A feature set by its name in place of a path; default: eGeMAPSv02."""
    return OpenSmile(model_file_path or "eGeMAPSv02")


def get_scene_embeddings(audio: torch.Tensor, model: OpenSmile) -> torch.Tensor:
    """Audio [n, samples] at 16 kHz -> float32 [n, 88]: the functionals, which are statistics over the clip.

    The values are not scaled, and 0 where openSMILE has none (clips below about 0.1 s).
    """
    return torch.cat([_values(model.functionals, clip) for clip in audio]).to(audio.device)


def get_timestamp_embeddings(audio: torch.Tensor, model: OpenSmile) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio [n, samples] at 16 kHz -> float32 [n, t, 25] and its timestamps [n, t] in ms.

    Step i is the mean of the low-level descriptors of frames 4 i to 4 i + 3, and its timestamp 40 i ms. The last step
    may have fewer frames.
    """
    frames = torch.stack([_values(model.descriptors, clip) for clip in audio])  # [n, frames of 10 ms, 25]
    steps = torch.stack([step.mean(1) for step in frames.split(FRAMES_PER_STEP, dim=1)], dim=1)  # [n, t, 25]
    timestamps = STEP_MS * torch.arange(steps.shape[1], dtype=torch.float32)
    return steps.to(audio.device), timestamps.expand(len(audio), -1).to(audio.device)


def _values(smile, clip: torch.Tensor) -> torch.Tensor:
    """What openSMILE gives for one clip [samples] -> float32 [rows, features]."""
    values = smile.process_signal(clip.cpu().numpy(), OpenSmile.sample_rate).to_numpy(np.float32)
    return torch.from_numpy(np.nan_to_num(values))
