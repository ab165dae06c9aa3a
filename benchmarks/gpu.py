"""Speed and memory on a GPU: `python -m benchmarks.gpu`, in one call of under nine minutes, offline.

It measures the selective scan by itself, for pretraining and for one long clip; SSAM's encoder and its full training
step in three sizes; SSAM against SSAST from 251 to 22,000 tokens. If mamba-ssm is installed, its kernels are compared
with ours: its scan in our block, and its fused block. The machine's ceilings, a large copy and exponentials in
registers, are measured in the same run. `of floor` is the time that the least possible bytes or exponentials of a scan
take at those rates, whichever is longer, divided by the time measured. Rows that fail or no longer fit into the budget
are listed with the reason. Each line is printed, and written to the JSON file, as soon as it is measured.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from audio_mamba import models
from audio_mamba.models.loss import reconstruction_loss
from audio_mamba.models.ops import packages
from audio_mamba.models.ops.selective_scan import chunked, package, triton
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.training import optim

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EXPAND, STATE = 3, 24  # of SSAM
SCANS = {"pretraining": (256, EXPAND * 192, 251, STATE), "long clip": (1, EXPAND * 192, 22000, STATE)}  # B, D, L, N
LENGTHS = (251, 1000, 4000, 16000, 22000)
BATCH = 256
SECONDS = 1.0  # each measurement is repeated for this long and its median counts
QUEUED = 5  # runs that the device is given at once
LONG_ROWS = {"torch.compile": 150.0, "plain": 40.0}  # seconds that rows of these ways may take


@dataclass(frozen=True)
class Task:
    """One measurement. kind: scan, encoder, step or tokens; way: whose kernels."""

    kind: str
    subject: str
    way: str
    precision: str
    backward: bool


@dataclass
class Row:
    """A task's result; times in seconds, memory in MiB above what was there before."""

    task: Task
    seconds: float = 0
    peak_mib: float = 0
    gb_per_s: float = 0
    exp_per_s: float = 0
    of_floor: float = 0
    problem: str = ""


@dataclass
class Report:
    machine: str
    torch: str
    triton: str
    gb_per_s: float = 0
    exp_per_s: float = 0
    rows: list[Row] = field(default_factory=list)


def tasks() -> list[Task]:
    """All measurements, the most important first."""
    ways = ["ours"] if packages.unavailable_reason("mamba-ssm") else ["ours", "mamba-ssm"]
    fused = [] if packages.incompatible_reason() else [way + ", fused block" for way in ways[1:]]
    found = [
        Task("scan", subject, way, precision, backward)
        for precision in ("bfloat16", "float32")
        for subject in SCANS
        for way in ways
        for backward in (False, True)
    ]
    found += [Task("step", f"tiny, {BATCH}", way, "bfloat16", True) for way in ways + fused]
    found += [
        Task(kind, f"{size}, {BATCH}", "ours", precision, kind == "step")
        for size in ("tiny", "small", "base")
        for precision in ("bfloat16", "float16", "float32")
        for kind in ("encoder", "step")
        if (kind, size, precision) != ("step", "tiny", "bfloat16")
    ]
    found += [
        Task("tokens", f"{stack}, {length}", "ours", "bfloat16", backward)
        for length in LENGTHS
        for backward in (False, True)
        for stack in ("SSAM-tiny", "SSAST-tiny")
    ]
    # Last, since compiling takes long and the long clip would take hours.
    return found + [
        Task("scan", subject, way, "bfloat16", backward)
        for subject, way in (("pretraining", "torch.compile"), ("long clip", "plain"))
        for backward in (False, True)
    ]


def scan_work(shape: tuple[int, int, int, int], number_size: int, backward: bool) -> tuple[int, int]:
    """The least bytes and exponentials of a scan with gate: forward reads u, delta and z and writes y; backward reads
    u, delta, z and dy and writes the gradients of the first three, and does all exponentials again."""
    batch, channels, length, state = shape
    steps = batch * channels * length
    return (4 + 7 * backward) * number_size * steps, (1 + backward) * state * steps


def scan_run(task: Task) -> Callable[[], object]:
    batch, channels, length, state = SCANS[task.subject]
    dtype = DTYPES[task.precision]

    def sequence(width: int) -> Tensor:  # channels-last views, as the Mamba block passes them; mamba-ssm copies those
        values = torch.randn(batch, length, width, device="cuda", dtype=dtype).transpose(1, 2)
        return values.contiguous() if task.way == "mamba-ssm" else values

    u, z, delta, B, C = (sequence(width) for width in (channels, channels, channels, state, state))
    A = -torch.arange(1.0, state + 1, device="cuda").expand(channels, -1).contiguous()
    inputs = [u, delta - 2, A, B, C, torch.ones(channels, device="cuda"), z, torch.zeros(channels, device="cuda")]
    inputs = [t.requires_grad_(task.backward) for t in inputs]
    weights = torch.randn_like(u)
    scan = {
        "ours": triton.selective_scan,
        "mamba-ssm": package.selective_scan,
        "plain": chunked.selective_scan,
    }.get(task.way) or torch.compile(chunked.selective_scan)

    def run():
        with torch.set_grad_enabled(task.backward):
            y = scan(*inputs, delta_softplus=True)
        return torch.autograd.grad(y, inputs, weights) if task.backward else y

    return run


def model_run(task: Task) -> Callable[[], object]:
    """SSAM's features of a batch, or a training step on it."""
    model = models.ARCHS[f"mamba_ssast_{task.subject.split(',')[0]}"](
        img_size=(200, 80), patch_size=(4, 16), frequency_first=False, rms_norm=False
    ).cuda()
    model.use_backend("triton" if task.way == "ours" else "mamba_ssm")
    for block in model.blocks if task.way == "mamba-ssm" else ():
        block.mixer.forward = block.mixer.compose
    x, mask = torch.randn(BATCH, 1, 200, 80, device="cuda"), (torch.rand(BATCH, 250, device="cuda") < 0.5).float()
    dtype = DTYPES[task.precision]
    autocast = torch.autocast("cuda", dtype, enabled=dtype != torch.float32)
    if task.kind == "encoder":

        def run():
            with torch.no_grad(), autocast:
                model.forward_features(x)

        return run

    optimizer = torch.optim.AdamW(optim.parameter_groups(model, 0.05), lr=1e-4, betas=(0.9, 0.95), fused=True)
    scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)

    def step():
        with autocast:
            loss = reconstruction_loss(*model(x, mask))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def tokens_run(task: Task) -> Callable[[], object]:
    stack, length = task.subject.split(", ")
    arch = {"SSAM-tiny": "mamba_ssast_tiny", "SSAST-tiny": "ssast_tiny"}[stack]
    model = models.ARCHS[arch]().cuda()
    if stack == "SSAM-tiny":
        model.use_backend("triton")
    tokens = torch.randn(1, int(length), model.embed_dim, device="cuda")

    def run():
        with torch.set_grad_enabled(task.backward), torch.autocast("cuda", DTYPES[task.precision]):
            y = model.forward_blocks(tokens)
        if task.backward:
            y.float().sum().backward()

    return run


RUNS = {"scan": scan_run, "encoder": model_run, "step": model_run, "tokens": tokens_run}


def median_seconds(function: Callable[[], object]) -> float:
    """Median time on the device of the runs that fit into SECONDS, at least QUEUED, after three to warm up.

    Several runs are queued behind a pause, so that the device never waits for Python between them.
    """
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    times, begin = [], time.perf_counter()
    while not times or time.perf_counter() - begin < SECONDS:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(QUEUED + 1)]
        torch.cuda._sleep(20_000_000)  # clock cycles, about a hundredth of a second
        events[0].record()
        for event in events[1:]:
            function()
            event.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) / 1000 for start, end in zip(events, events[1:])]
    return sorted(times)[len(times) // 2]


def ceilings() -> tuple[float, float]:
    """Bytes per second of a large copy, reads and writes counted, and exponentials per second."""
    from benchmarks import gpu_triton

    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size() / median_seconds(lambda: target.copy_(source))
    x, y = gpu_triton.make_vectors("cuda")
    return copied, gpu_triton.exponentials(x, y) / median_seconds(lambda: gpu_triton.exponentials(x, y))


def measure(task: Task, report: Report) -> Row:
    row = Row(task)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        row.seconds = median_seconds(RUNS[task.kind](task))
    except torch.cuda.OutOfMemoryError:
        row.problem = "out of memory"
        return row
    except Exception as error:  # of any kind: the other rows are still wanted
        row.problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return row
    row.peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    if task.kind == "scan":
        moved, exponentials = scan_work(SCANS[task.subject], DTYPES[task.precision].itemsize, task.backward)
        row.gb_per_s, row.exp_per_s = moved / row.seconds / 1e9, exponentials / row.seconds
        row.of_floor = max(moved / report.gb_per_s / 1e9, exponentials / report.exp_per_s) / row.seconds
    return row


def run(budget_seconds: float, output: Path, show: Callable[[str], None] = lambda line: None) -> Report:
    """Measure what fits into the budget; the file `output` grows row by row, and `show` gets the table line by line."""
    import triton

    begin, longest = time.perf_counter(), 15.0  # of a row so far; a first guess that allows for compiling
    copied, exponentials = ceilings()
    report = Report(torch.cuda.get_device_name(), torch.__version__, triton.__version__, copied / 1e9, exponentials)
    for text in head(report):
        show(text)
    for task in tasks():
        start = time.perf_counter()
        if start - begin + max(longest, LONG_ROWS.get(task.way, 0.0)) > budget_seconds:
            report.rows.append(Row(task, problem="no time left"))
        else:
            report.rows.append(measure(task, report))
            if task.way not in LONG_ROWS:
                longest = max(longest, time.perf_counter() - start)
        show(line(report.rows[-1]))
        with atomic_write(output) as file:
            file.write(json.dumps(asdict(report), indent=1).encode() + b"\n")
    return report


def head(report: Report) -> list[str]:
    """The lines above the rows of the table, in markdown. `samples/s` of a token stack counts its one input."""
    return [
        f"{report.machine}, torch {report.torch}, triton {report.triton}; ceilings: {report.gb_per_s:.0f} GB/s, "
        f"{report.exp_per_s / 1e9:.0f} G exponentials/s",
        "",
        "| what | of | kernels | precision | pass | ms | samples/s | peak MiB | GB/s | G exp/s | of floor |",
        "|---|---|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]


def line(row: Row) -> str:
    task = row.task
    passes = "forward + backward" if task.backward else "forward"
    cells = [task.kind, task.subject, task.way, task.precision, passes]
    if row.problem:
        cells += [f"not measured: {row.problem.replace('|', '/')}", *5 * [""]]
    else:
        samples = {"scan": SCANS.get(task.subject, (1,))[0], "tokens": 1}.get(task.kind, BATCH)
        cells += [f"{1000 * row.seconds:.3g}", f"{samples / row.seconds:.0f}", f"{row.peak_mib:.0f}"]
        cells += (
            [f"{row.gb_per_s:.0f}", f"{row.exp_per_s / 1e9:.0f}", f"{row.of_floor:.0%}"]
            if task.kind == "scan"
            else 3 * [""]
        )
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budget-seconds", type=float, default=500, help="what no longer fits is left out (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmark_gpu.json"),
        help="where the numbers are written as JSON, row by row (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: no CUDA device; benchmarks.cpu measures this machine")
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 in the float32 rows
    try:
        run(args.budget_seconds, args.output, show=lambda text: print(text, flush=True))
    finally:
        torch.set_float32_matmul_precision(precision)


if __name__ == "__main__":
    main()
