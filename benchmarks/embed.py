"""Clips per second: the published procedure against this project's path, on the same kernels, in one run.

    python -m benchmarks.embed [--out embed.json]

"published" takes one 2 s unit after another, every unit whole, for `--batch` clips at once or one at a time. "fast" is
`RuntimeSSAST.encode`: all units of all clips together, with the last ones cut or not. Procedures take turns and the
best of `--repeats` counts, so that other work on the machine disturbs all of them alike.
"""
import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from atomic_files import atomic_write
from data.features import SAMPLE_RATE
from hear_api.command_line import load_runtime
from hear_api.runtime import LAYOUTS, RuntimeSSAST

UNIT_FRAMES = 200
CLIP_SECONDS = {"2.0 s": [2.0], "4.0 s": [4.0], "10 s": [10.0], "mixed": [0.5, 1.3, 2.0, 2.7, 4.0, 5.5, 10.0]}


def published(runtime: RuntimeSSAST, clips: list[Tensor], batch: int, layout: str) -> Tensor:
    """Scene embeddings [clips, width] unit by unit; only clips of one length share a batch."""
    model, scenes = runtime.model, []
    equal = len({len(clip) for clip in clips}) == 1
    for group in torch.stack(clips).split(batch) if equal else (clip[None] for clip in clips):
        spectrogram = runtime.spectrogram(group)
        kept = -(-spectrogram.shape[1] // runtime.frames_per_step)
        features = []
        for unit in spectrogram.split(UNIT_FRAMES, dim=1):
            unit = F.pad(unit, (0, 0, 0, UNIT_FRAMES - unit.shape[1]))[:, None]  # [batch, 1, 200, 80]
            features.append(model.forward_features(unit, layout))
        scenes.append(torch.cat(features, dim=1)[:, :kept].mean(dim=1))
    return torch.cat(scenes)


def fast(runtime: RuntimeSSAST, clips: list[Tensor], layout: str) -> Tensor:
    """Scene embeddings [clips, width] as `RuntimeSSAST.embed` makes them."""
    runtime.scene_layout = layout
    return runtime.embed(clips, output="torch")


def procedures(runtime: RuntimeSSAST, batch: int) -> dict[str, Callable[[list[Tensor]], None]]:
    """What is compared, by the names in the table."""
    causal = type(runtime.model).causal

    def run(function: Callable, *arguments, cut: bool = False) -> Callable[[list[Tensor]], None]:
        def call(clips: list[Tensor]) -> None:
            runtime.model.causal = cut
            with torch.inference_mode():
                function(runtime, clips, *arguments)
        return call

    table = {"published, batch 1": run(published, 1, "published"),
             f"published, batch {batch}": run(published, batch, "published"),
             "fast, whole units": run(fast, "published")}
    if causal:
        table |= {f"fast, cut, {layout}": run(fast, layout, cut=True) for layout in LAYOUTS}
    return table


def measure(calls: dict[str, Callable], clips: list[Tensor], repeats: int, synchronise: Callable[[], None]) -> dict:
    """Best clips per second of each procedure."""
    best = dict.fromkeys(calls, float("inf"))
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call(clips)
            synchronise()
            if repeat:  # the first round warms up
                best[name] = min(best[name], time.perf_counter() - started)
    return {name: len(clips) / seconds for name, seconds in best.items()}


def make_clips(lengths: Iterable[float], count: int) -> list[Tensor]:
    """`count` clips of noise whose lengths go through `lengths` in turn."""
    rng, lengths = np.random.default_rng(0), list(lengths)
    samples = [round(lengths[i % len(lengths)] * SAMPLE_RATE) for i in range(count)]
    return [torch.from_numpy(rng.uniform(-0.5, 0.5, n).astype(np.float32)) for n in samples]


def print_table(results: list[dict]) -> None:
    print("| model | clips | procedure | clips/s | x published at its batch |\n|---|---|---|---|---|")
    for result in results:
        rates = result["clips_per_second"]
        base = list(rates.values())[1]
        for name, rate in rates.items():
            print(f"| {result['config']} | {result['clips']} | {name} | {rate:.2f} | {rate / base:.2f} |")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embed", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["ssam_tiny_200_16x4", "ssast_tiny_200_16x4"],
                        help="experiments")
    parser.add_argument("--clips", nargs="+", choices=CLIP_SECONDS, default=list(CLIP_SECONDS), help="kinds of clips")
    parser.add_argument("--count", type=int, default=16, help="clips of each kind")
    parser.add_argument("--batch", type=int, default=16,
                        help="of the published procedure, as the HEAR kit would choose")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--precision", default="auto", help="as for RuntimeSSAST")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    args = parser.parse_args(arguments)
    synchronise = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None

    results = []
    with tqdm(total=len(args.configs) * len(args.clips)) as bar:
        for config in args.configs:
            runtime, _ = load_runtime(config, "untrained", args.precision, device=args.device)
            for kind in args.clips:
                clips = make_clips(CLIP_SECONDS[kind], args.count)
                rates = measure(procedures(runtime, args.batch), clips, args.repeats, synchronise)
                results.append({"config": config, "clips": kind, "clips_per_second": rates})
                bar.update()
    print_table(results)
    if args.out:
        with atomic_write(args.out) as file:
            setting = {"device": args.device, "threads": torch.get_num_threads(), "torch": torch.__version__,
                       "precision": args.precision}
            file.write(json.dumps(setting | {"results": results}, indent=1).encode())


if __name__ == "__main__":
    main()
