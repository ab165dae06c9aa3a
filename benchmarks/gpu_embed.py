"""Embeddings on a GPU: `python -m benchmarks.gpu_embed`. Errors of each precision, and clips per second.

Errors are relative to float32 on the CPU, for clips from quiet to loud, with the shipped models and their real
statistics. benchmarks.embed compares with the published procedure: `--device cuda --clips "2.0 s" --precision float16`.
"""

import argparse
from functools import partial

import torch

from audio_mamba.hear_api.api import load_model
from benchmarks.measure import fastest

MODELS = ("ssam_tiny_free_audio", "ssast_tiny_free_audio")
LOUDNESS = (1e-3, 0.01, 0.1, 0.5)
SECONDS = 4


def rows(name: str, device: str, count: int) -> list[str]:
    """A line for each precision of a model."""
    generator = torch.Generator().manual_seed(0)
    clips = torch.randn(len(LOUDNESS), SECONDS * 16000, generator=generator) * torch.tensor(LOUDNESS)[:, None]
    many = [clips[number % len(LOUDNESS)] for number in range(count)]
    true = load_model(name, device="cpu", precision="float32").embed(list(clips), output="torch")
    lines = []
    for precision in ("float32", "float16", "bfloat16"):
        model = load_model(name, device=device, precision=precision)
        found = model.embed(list(clips), output="torch")
        error = ((found - true).norm(dim=1) / true.norm(dim=1)).max().item()
        seconds = fastest(partial(model.embed, many))  # embeddings end on the CPU: nothing is left to wait for
        lines.append(f"| {name} | {precision} | {error:.1e} | {count / seconds:.1f} |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=512, help="clips that are timed (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu_embed: no CUDA device; try it with --device cpu --count 8")
    print(f"| model | precision | largest error | clips of {SECONDS} s per second |\n|---|---|---:|---:|", flush=True)
    for name in MODELS:
        for line in rows(name, args.device, args.count):
            print(line, flush=True)


if __name__ == "__main__":
    main()
