"""Clips per second: the published procedure against this project's path, on the same kernels, in one run.

    python -m benchmarks.embed [--out embed.json]

"published" encodes one segment (2 s) after another, always whole, for `--batch` clips at once or one at a time. "fast"
is `RuntimeSSAST.embed`: the segments of all clips are batched, with or without skipping the padding at the end.
Procedures take turns and the best of `--repeats` counts, so that other work on the machine affects all of them equally.

At the end, the whole embed command on `--files` flac files of mixed lengths is compared with the time that the model
alone needs for their log-mels.

    git worktree add OLD COMMIT && python -m benchmarks.embed --against OLD

compares `RuntimeSSAST.embed` with that of another checkout instead, on the CPU, in float32 and bfloat16. Old and new
code run in turns, --rounds times each, in fresh processes. The median of the ratios counts; the lowest and the highest
are printed beside it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from audio_mamba.front_end import PUBLISHED
from audio_mamba.hear_api.api import load_model
from audio_mamba.hear_api.runtime import RuntimeSSAST
from audio_mamba.schema import LAYOUTS
from audio_mamba.system.atomic_files import atomic_write
from benchmarks import embed_against

ROOT = Path(__file__).resolve().parent.parent
SEGMENT_FRAMES = 200
COMMAND_TARGET = 1.3  # times of the model alone
CLIP_SECONDS = {"2.0 s": [2.0], "4.0 s": [4.0], "10 s": [10.0], "mixed": [0.5, 1.3, 2.0, 2.7, 4.0, 5.5, 10.0]}


def published(runtime: RuntimeSSAST, clips: list[Tensor], batch: int, layout: str) -> Tensor:
    """Scene embeddings [clips, width] segment by segment; only clips of equal length share a batch."""
    model, scenes = runtime.model, []
    equal = len({len(clip) for clip in clips}) == 1
    for group in torch.stack(clips).split(batch) if equal else (clip[None] for clip in clips):
        spectrogram = runtime.spectrogram(group)
        kept = -(-spectrogram.shape[1] // runtime.frames_per_step)
        features = []
        for segment in spectrogram.split(SEGMENT_FRAMES, dim=1):
            segment = F.pad(segment, (0, 0, 0, SEGMENT_FRAMES - segment.shape[1]))[:, None]  # [batch, 1, 200, 80]
            with runtime.autocast():
                features.append(model.forward_features(segment, layout))
        scenes.append(torch.cat(features, dim=1)[:, :kept].mean(dim=1))
    return torch.cat(scenes)


def fast(runtime: RuntimeSSAST, clips: list[Tensor], layout: str) -> Tensor:
    """Scene embeddings [clips, width] by `RuntimeSSAST.embed`."""
    runtime.scene_layout = layout
    return runtime.embed(clips, output="torch")


def procedures(runtime: RuntimeSSAST, batch: int) -> dict[str, Callable[[list[Tensor]], None]]:
    """The procedures to compare, by their names in the table."""
    causal = runtime.model.causal

    def run(function: Callable, *arguments, cut: bool = False) -> Callable[[list[Tensor]], None]:
        def call(clips: list[Tensor]) -> None:
            runtime.model.causal = cut
            with torch.inference_mode():
                function(runtime, clips, *arguments)

        return call

    table = {
        "published, batch 1": run(published, 1, "published"),
        f"published, batch {batch}": run(published, batch, "published"),
        "fast, whole segments": run(fast, "published"),
    }
    if causal:
        table |= {f"fast, cut, {layout}": run(fast, layout, cut=True) for layout in LAYOUTS}
    return table


def measure(calls: dict[str, Callable], clips: list[Tensor], repeats: int, synchronise: Callable[[], None]) -> dict:
    """The best rate of each procedure, in clips per second."""
    best = dict.fromkeys(calls, float("inf"))
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call(clips)
            synchronise()
            if repeat:  # the first round warms up
                best[name] = min(best[name], time.perf_counter() - started)
    return {name: len(clips) / seconds for name, seconds in best.items()}


def measure_command(config: str, device: str, precision: str, count: int) -> dict[str, float]:
    """Seconds that the command takes for `count` files and the model alone for their log-mels, and the ratio."""
    runtime = load_model(config, "untrained", device, precision=precision)
    clips = make_clips(CLIP_SECONDS["mixed"], count)
    spectrograms = [runtime.spectrogram(clip[None])[0] for clip in clips]
    runtime.encode(spectrograms, runtime.scene_layout)  # warms up
    started = time.perf_counter()
    for rows in runtime.encode(spectrograms, runtime.scene_layout):
        rows.cpu()
    model = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        for number, clip in enumerate(clips):
            soundfile.write(f"{folder}/{number}.flac", clip.numpy(), PUBLISHED.sample_rate)
        started = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "audio_mamba.hear_api.embed",
                folder,
                "--config",
                config,
                "--weights",
                "untrained",
                "--device",
                device,
                "--precision",
                precision,
                "--out",
                f"{folder}/out.npz",
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        command = time.perf_counter() - started
    return {"files": count, "model_seconds": model, "command_seconds": command, "ratio": command / model}


def make_clips(lengths: Iterable[float], count: int) -> list[Tensor]:
    """`count` clips of noise, with the given lengths in turn."""
    rng, lengths = np.random.default_rng(0), list(lengths)
    samples = [round(lengths[i % len(lengths)] * PUBLISHED.sample_rate) for i in range(count)]
    return [torch.from_numpy(rng.uniform(-0.5, 0.5, n).astype(np.float32)) for n in samples]


def print_table(results: list[dict]) -> None:
    print("| model | clips | procedure | clips/s | x published at its batch |\n|---|---|---|---|---|")
    for result in results:
        rates = result["clips_per_second"]
        base = list(rates.values())[1]
        for name, rate in rates.items():
            print(f"| {result['config']} | {result['clips']} | {name} | {rate:.2f} | {rate / base:.2f} |")


def print_command(config: str, found: dict[str, float]) -> None:
    print(
        f"{config}: the command takes {found['command_seconds']:.1f} s for {found['files']} files, the model alone "
        f"{found['model_seconds']:.1f} s: {found['ratio']:.2f} times that (target: at most {COMMAND_TARGET})"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embed",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--configs", nargs="+", default=["ssam_tiny_200_16x4", "ssast_tiny_200_16x4"], help="experiments"
    )
    parser.add_argument("--clips", nargs="+", choices=CLIP_SECONDS, default=list(CLIP_SECONDS), help="kinds of clips")
    parser.add_argument("--count", type=int, default=16, help="clips of each kind")
    parser.add_argument("--batch", type=int, default=16, help="clips in a batch of the published procedure")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--files", type=int, default=400, help="for the command; 0 skips it")
    parser.add_argument("--precision", default="auto", help="as for RuntimeSSAST")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with the code of another checkout")
    parser.add_argument("--rounds", type=int, default=5, help="of --against")
    args = parser.parse_args(arguments)
    if args.against and not (args.against / "benchmarks" / "embed.py").is_file():
        parser.error(f"--against {args.against}: not a checkout of this project (no benchmarks/embed.py)")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    return args


def run_against(args: argparse.Namespace) -> list[embed_against.Comparison]:
    """Compare with the code in `args.against`; the file `args.out` grows setting by setting."""
    comparisons = []
    total = len(args.configs) * len(args.clips) * len(embed_against.PRECISIONS)
    settings = embed_against.compare(
        args.configs, args.clips, args.count, args.repeats, args.rounds, args.against.resolve()
    )
    for one in tqdm(settings, total=total, unit="setting"):
        comparisons.append(one)
        if args.out:
            with atomic_write(args.out) as file:
                file.write(json.dumps([asdict(one) for one in comparisons], indent=1).encode())
    return comparisons


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.against:
        print(embed_against.table(run_against(args)))
        return
    synchronise = partial(torch.cuda.synchronize, args.device) if args.device.startswith("cuda") else lambda: None

    results = []
    with tqdm(total=len(args.configs) * len(args.clips)) as bar:
        for config in args.configs:
            runtime = load_model(config, "untrained", args.device, precision=args.precision)
            for kind in args.clips:
                clips = make_clips(CLIP_SECONDS[kind], args.count)
                rates = measure(procedures(runtime, args.batch), clips, args.repeats, synchronise)
                results.append({"config": config, "clips": kind, "clips_per_second": rates})
                bar.update()
    print_table(results)
    commands = {}
    for config in args.configs if args.files else ():
        commands[config] = measure_command(config, args.device, args.precision, args.files)
        print_command(config, commands[config])
    if args.out:
        with atomic_write(args.out) as file:
            setting = {
                "device": args.device,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "precision": args.precision,
            }
            file.write(json.dumps(setting | {"results": results, "command": commands}, indent=1).encode())


if __name__ == "__main__":
    main()
