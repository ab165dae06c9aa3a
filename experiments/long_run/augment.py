"""A copy of an archive whose clips are louder or softer, and mixed with each other.

    python -m experiments.long_run.augment long_run/archives/train long_run/archives/train_augmented

One epoch on the copy is one epoch with augmentation: every clip has a gain, and half of them have another clip in
them.
"""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audio_mamba.data.archives import archive_front_end, read_sample, shard_indices, write_manifest, write_shard
from audio_mamba.data.augment import apply_gain, draw_gain, draw_share, mix
from audio_mamba.data.manifest import read_manifest
from audio_mamba.data.samples import Sample
from audio_mamba.data.shard_files import ShardFiles


def augmented(source: Path, gain: float, mixing: float, seed: int) -> Iterator[tuple[str, list[Sample]]]:
    """The shards of an archive, each as its name and its samples augmented.

    Args:
        source: the archive.
        gain: the largest change of a clip's level, up or down, in dB.
        mixing: probability that a clip is mixed with another one, which begins at any of its frames and is repeated
            as often as needed.
        seed: of all draws.
    """
    shards, files = shard_indices(source), ShardFiles()
    log_offset = archive_front_end(source).log_offset
    clips = [
        functools.partial(read_sample, files, path, key.decode(), place)
        for path, index in shards
        for key, place in zip(index.keys, index.places, strict=True)
    ]
    order = np.random.default_rng(seed).permutation(len(clips))
    partner = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # of each clip, never itself

    def louder_or_softer(clip: int, rng: np.random.Generator) -> np.ndarray:
        log_mel = clips[clip]().spectrogram.astype(np.float32)  # [frames, mels]
        return apply_gain(log_mel, draw_gain(rng, gain), log_offset)

    first = 0
    for path, index in shards:
        samples = []
        for clip in range(first, first + len(index)):
            rng = np.random.default_rng((seed, clip))
            sample, log_mel = clips[clip](), louder_or_softer(clip, rng)
            if (share := draw_share(rng, mixing)) < 1:
                other = louder_or_softer(partner[clip], rng)
                frames = (int(rng.integers(len(other))) + np.arange(len(log_mel))) % len(other)
                log_mel = mix(log_mel, other[frames], share)
            samples.append(sample._replace(spectrogram=log_mel.astype(sample.spectrogram.dtype)))
        first += len(index)
        yield path.name, samples


def main(argv: list[str] | None = None) -> None:
    """The command; `argv` is that of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="archive of log-mels")
    parser.add_argument("out", type=Path, help="folder of the copy, a new one")
    parser.add_argument("--gain", type=float, default=6.0, help="largest gain, dB (default %(default)s)")
    parser.add_argument("--mixing", type=float, default=0.5, help="share of clips to mix (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.out.exists():
        parser.error(f"{args.out} exists; the copy needs a new folder")
    args.out.mkdir(parents=True)
    written = [
        {"name": name, "samples": write_shard(args.out / name, samples)}
        for name, samples in tqdm(augmented(args.source, args.gain, args.mixing, args.seed), unit="shard")
    ]
    settings = (read_manifest(args.source) or {"settings": {}})["settings"]
    total = sum(shard["samples"] for shard in written)
    write_manifest(args.out, {"samples": total, "settings": settings, "shards": written})


if __name__ == "__main__":
    main()
