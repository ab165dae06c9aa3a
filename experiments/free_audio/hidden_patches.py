"""Measure how well encoders reconstruct masked patches.

    python -m experiments.free_audio.hidden_patches AUDIO [MODEL...]

For each MODEL, a work folder of train.py or a folder of hear_api.export, this prints the squared error on hidden and on
visible patches of the first 2 s of every file in AUDIO that is long enough. Without MODEL, it takes the two models that
come with the project. Log-mels have variance 1, so guessing their mean gives an error of 1. The last line is the lowest
error on hidden patches for a model that predicts the same for all hidden patches of a clip, as SSAST does without
masked_positions, with patches of the first MODEL's size.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from audio_mamba.data.audio import AudioError, find_audio, load_audio
from audio_mamba.front_end import PUBLISHED
from audio_mamba.hear_api import RuntimeSSAST
from audio_mamba.hear_api.api import load_model
from audio_mamba.hear_api.resolve import SHIPPED_WEIGHTS

SHIPPED = [SHIPPED_WEIGHTS / f"{model}_tiny_free_audio" for model in ("ssam", "ssast")]
UNIT_FRAMES = 200
UNIT_SAMPLES = 2 * PUBLISHED.sample_rate
BATCH = 16


@torch.no_grad()
def errors(runtime: RuntimeSSAST, clips: Tensor) -> tuple[float, float]:
    """Mean squared errors on hidden and on visible patches of clips [n, 32000]. Every call hides the same half."""
    hidden = hidden_half(clips, runtime)
    squared = []
    for some, mask in zip(clips.split(BATCH), hidden.split(BATCH)):
        predicted, target, _ = runtime.model(_spectrograms(runtime, some), mask.float())  # [n, 250, 64]
        squared.append((predicted - target).square().mean(dim=-1))
    error = torch.cat(squared)
    return error[hidden].mean().item(), error[~hidden].mean().item()


def least_error_of_one_prediction(runtime: RuntimeSSAST, clips: Tensor) -> float:
    """The error on the same hidden patches if each is predicted as the mean of the hidden patches of its clip."""
    targets = torch.cat([runtime.model.patchify(_spectrograms(runtime, some)) for some in clips.split(BATCH)])
    deviations = [
        (target[hide] - target[hide].mean(dim=0)).square().mean(dim=-1)
        for target, hide in zip(targets, hidden_half(clips, runtime))
    ]
    return torch.cat(deviations).mean().item()


def hidden_half(clips: Tensor, runtime: RuntimeSSAST) -> Tensor:
    """Which patches are hidden, bool [n, L]."""
    patches = math.prod(runtime.model.grid_size())
    return torch.rand(len(clips), patches, generator=torch.Generator().manual_seed(0)) < 0.5


def _spectrograms(runtime: RuntimeSSAST, clips: Tensor) -> Tensor:
    return runtime.spectrogram(clips)[:, None, :UNIT_FRAMES]  # [n, 1, 200, 80]


def first_units(audio_dir: Path) -> Tensor:
    """The first 2 s of all files that are long enough: [n, 32000]. Raises ValueError if there are none."""
    units = []
    for path in tqdm(find_audio(audio_dir), desc="reading", unit="file", delay=2):
        try:
            audio = load_audio(path)
        except AudioError:
            continue
        if len(audio) >= UNIT_SAMPLES:
            units.append(audio[:UNIT_SAMPLES])
    if not units:
        raise ValueError(f"{audio_dir} has no audio file of 2 s or more")
    return torch.from_numpy(np.stack(units))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.free_audio.hidden_patches",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("audio_dir", metavar="AUDIO", type=Path, help="folder of audio files, such as validation clips")
    parser.add_argument(
        "models",
        metavar="MODEL",
        type=Path,
        nargs="*",
        default=SHIPPED,
        help="work folder of train.py, or folder of hear_api.export (default: the models in weights/)",
    )
    args = parser.parse_args(arguments)
    try:
        names = [folder.resolve().name for folder in args.models]
        if len(set(names)) < len(names):
            names = list(map(str, args.models))
        encoders = {name: load_model(folder, device="cpu") for name, folder in zip(names, args.models)}
        clips = first_units(args.audio_dir)
    except (ValueError, OSError) as error:
        raise SystemExit(f"hidden_patches: {error}") from None
    for name, runtime in encoders.items():
        hidden, visible = errors(runtime, clips)
        print(f"{name}: {len(clips)} clips, error {hidden:.3f} on hidden patches, {visible:.3f} on visible ones")
    first = next(iter(encoders.values()))  # the result depends only on the patch size
    print(
        f"lowest error with one prediction for all hidden patches of a clip: "
        f"{least_error_of_one_prediction(first, clips):.3f}"
    )


if __name__ == "__main__":
    main()
