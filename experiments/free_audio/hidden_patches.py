"""How well the encoders that come with the project fill in what is hidden from them.

    python -m experiments.free_audio.hidden_patches AUDIO

Prints the squared error of SSAM and SSAST on hidden and on visible patches of the first 2 s of every file in AUDIO that
is as long. Log-mels have variance 1, so an error of 1 is that of guessing their mean.
"""
import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from configs.base import SHIPPED_WEIGHTS, load_config
from data.audio import AudioError, find_audio, load_audio
from data.features import SAMPLE_RATE
from hear_api import RuntimeSSAST

MODELS = ("ssam", "ssast")
UNIT_FRAMES = 200
UNIT_SAMPLES = 2 * SAMPLE_RATE
BATCH = 16


@torch.no_grad()
def errors(runtime: RuntimeSSAST, clips: Tensor) -> tuple[float, float]:
    """Mean squared errors on hidden and on visible patches of clips [n, 32000]; every call hides the same half."""
    patches = math.prod(runtime.model.grid_size())
    hidden = torch.rand(len(clips), patches, generator=torch.Generator().manual_seed(0)) < 0.5     # [n, 250]
    squared = []
    for some, mask in zip(clips.split(BATCH), hidden.split(BATCH)):
        spectrograms = runtime.spectrogram(some)[:, None, :UNIT_FRAMES]                            # [n, 1, 200, 80]
        predicted, target, _ = runtime.model.train()(spectrograms, mask.float())                   # [n, 250, 64]
        squared.append((predicted - target).square().mean(dim=-1))
    error = torch.cat(squared)
    return error[hidden].mean().item(), error[~hidden].mean().item()


def first_units(audio_dir: Path) -> Tensor:
    """The first 2 s of all files that have them: [n, 32000]. ValueError where there are none."""
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
    parser = argparse.ArgumentParser(prog="python -m experiments.free_audio.hidden_patches", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio_dir", metavar="AUDIO", type=Path, help="folder of audio files, such as validation clips")
    args = parser.parse_args(arguments)
    try:
        clips = first_units(args.audio_dir)
    except (ValueError, OSError) as error:
        raise SystemExit(f"hidden_patches: {error}") from None
    for model in MODELS:
        name = f"{model}_tiny_free_audio"
        hidden, visible = errors(RuntimeSSAST(load_config(f"configs.{name}"), SHIPPED_WEIGHTS / name), clips)
        print(f"{name}: {len(clips)} clips, error {hidden:.3f} on hidden patches, {visible:.3f} on visible ones")


if __name__ == "__main__":
    main()
