"""Times our scan at pretraining size with several divisions of its work: `python -m benchmarks.gpu_sweep`.

The variants are those of benchmarks.gpu_counts. Each is compared with the plain PyTorch scan, outputs and gradients,
before it is timed; one that fails is listed with the reason. `--profile` shows instead what a training step of
SSAM-Tiny is spent on, kernel by kernel. `--small` takes a small shape, to try the program.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from audio_mamba.models.ops import triton_support
from audio_mamba.models.ops.selective_scan import chunked
from audio_mamba.models.ops.selective_scan import triton as scan
from benchmarks.gpu import in_one_line, median_seconds
from benchmarks.gpu_counts import STATES, VARIANTS, changed
from benchmarks.gpu_tasks import BATCH, DTYPES, Task, model_run

PRETRAINING, SMALL = (256, 576, 251), (2, 40, 19)  # batch, channels, steps
PRECISIONS = ("bfloat16", "float32", "float16")  # the variants are timed in the first, today's kernels in all


def make_inputs(batch: int, channels: int, length: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """u, delta, A, B, C, D, z and delta_bias, sequences as [batch, length, width]."""
    generator = torch.Generator(device).manual_seed(0)

    def sequence(width: int) -> Tensor:
        return torch.randn(batch, length, width, device=device, generator=generator).to(dtype)

    A = -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1)
    u, delta, z, B, C = (sequence(width) for width in (channels, channels, channels, STATES, STATES))
    return [u, delta - 2, A, B, C, torch.ones(channels, device=device), z, torch.zeros(channels, device=device)]


def largest_error(channels: int, length: int, dtype: torch.dtype, device: str) -> float:
    """Of outputs and gradients, against the plain PyTorch scan, relative to their norm."""
    results = []
    inputs = make_inputs(2, channels, length, dtype, device)
    for module in (scan, chunked):
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        y = module.selective_scan(*(t.transpose(1, 2) if t.dim() == 3 else t for t in leaves), delta_softplus=True)
        results.append([y, *torch.autograd.grad(y, leaves, inputs[0].transpose(1, 2))])
    pairs = [(ours.float(), true.float()) for ours, true in zip(*results)]
    return max(((ours - true).norm() / true.norm()).item() for ours, true in pairs)


def kernel_run(which: str, inputs: list[Tensor]) -> Callable[[], object]:
    """One pass of the scan with gate, by itself."""
    operators = torch.ops.audio_mamba
    if which == "forward":
        return lambda: operators.selective_scan_triton(*inputs, True, True)
    y, _, starts = operators.selective_scan_triton(*inputs, True, True)
    return lambda: operators.selective_scan_triton_backward(torch.ones_like(y), None, starts, *inputs, True)


def line(which: str, precision: str, change: dict[str, int], shape: tuple[int, int, int], device: str) -> str:
    name = ", ".join(f"{key} {value}" for key, value in change.items()) or "as it is"
    start = f"| {which} | {name} | {precision} |"
    dtype = DTYPES[precision]
    try:
        with changed(change), torch.no_grad():
            with torch.enable_grad():
                error = largest_error(*shape[1:], dtype, device)
            run = kernel_run(which, make_inputs(*shape, dtype, device))
            run()
            seconds = median_seconds(run) if device == "cuda" else 0.0
    except Exception as problem:  # a variant may not compile; the others are still wanted
        return f"{start} not measured: {in_one_line(problem)} | |"
    return f"{start} {1000 * seconds:.3f} | {error:.1e} |"


def profile(device: str) -> str:
    """Where the time of two training steps of SSAM-Tiny goes."""
    step = model_run(Task("step", f"SSAM-tiny, {BATCH}", "ours", "bfloat16", True))
    step()
    with torch.profiler.profile() as profiler:
        step()
        step()
        torch.cuda.synchronize()
    return profiler.key_averages().table(sort_by="self_device_time_total", row_limit=22, max_name_column_width=60)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a small shape")
    parser.add_argument("--profile", action="store_true", help="what a training step is spent on")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available() and not triton_support.interpreted():
        raise SystemExit("benchmarks.gpu_sweep: no CUDA device; benchmarks.gpu_counts counts without one")
    device = "cpu" if triton_support.interpreted() else "cuda"
    if args.profile:
        print(profile(device))
        return
    print("| pass | variant | precision | ms | error |\n|---|---|---|---:|---:|", flush=True)
    for which, changes in VARIANTS.items():
        runs = [(precision, {}) for precision in PRECISIONS] + [(PRECISIONS[0], change) for change in changes if change]
        for precision, change in runs:
            print(line(which, precision, change, SMALL if args.small else PRETRAINING, device), flush=True)


if __name__ == "__main__":
    main()
