"""Speed and memory on a GPU: `python -m benchmarks.gpu`, in one call of under nine minutes, offline.

It measures the selective scan by itself, for pretraining (there also backward in time) and for one long clip; the
encoders and full training steps of SSAM in three sizes and three directions and of AxLSTM; SSAM and AxLSTM against
SSAST from 251 to 22,000 tokens. `ours` are our own Triton kernels, whatever packages are installed. The other side is
mamba-ssm: its scan in our block, and its fused block. Where it is not installed, torch.compile of the plain PyTorch
scan is the other side, and the first line says so.

The machine's ceilings, a large copy and exponentials in registers, are measured in the same run. `of copy` and `of exp`
are a scan's least bytes and exponentials per second divided by them; the larger one is the share of the least possible
time. Rows that fail or no longer fit into the budget are listed with the reason; a compilation is stopped when its time
is over. If the device stops working, the rest is not measured. Each line is printed as soon as it is measured, and
written to the JSON file of `--output`, if there is one.
"""

import argparse
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from audio_mamba.system.atomic_files import atomic_write
from benchmarks.gpu_tasks import BATCH, DTYPES, RUNS, SCANS, Task, other_side, scan_work, tasks

SECONDS = 1.0  # each measurement is repeated for this long and its median counts
QUEUED = 5  # runs that the device is given at once
LONG_ROWS = {"torch.compile": 150.0, "plain": 40.0}  # seconds after which rows of these ways are stopped


@dataclass
class Row:
    """A task's result; times in seconds, memory in MiB above what was there before."""

    task: Task
    seconds: float = 0
    peak_mib: float = 0
    gb_per_s: float = 0
    exp_per_s: float = 0
    of_copy: float = 0  # achieved bytes per second, as a share of a copy's
    of_exp: float = 0  # the same of exponentials
    problem: str = ""


@dataclass
class Report:
    machine: str
    torch: str
    triton: str
    other_side: str = ""
    gb_per_s: float = 0
    exp_per_s: float = 0
    rows: list[Row] = field(default_factory=list)


class OutOfTime(BaseException):
    """Not an Exception, so that no compiler takes it for a failure of its own and tries another way."""


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


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """OutOfTime in the main thread once `seconds` have passed."""

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


def in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def measure(task: Task, report: Report, seconds: float = 600.0) -> Row:
    """The row of a task, which is stopped after `seconds`."""
    row = Row(task)
    try:
        with time_limit(seconds):
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            row.seconds = median_seconds(RUNS[task.kind](task))
            row.peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    except torch.cuda.OutOfMemoryError:
        return Row(task, problem="out of memory")
    except OutOfTime:
        return Row(task, problem=f"stopped after {seconds:.0f} s")
    except Exception as error:  # of any kind: the other rows are still wanted
        return Row(task, problem=in_one_line(error))
    if task.kind == "scan":
        moved, exponentials = scan_work(SCANS[task.subject], DTYPES[task.precision].itemsize, task.backward)
        row.gb_per_s, row.exp_per_s = moved / row.seconds / 1e9, exponentials / row.seconds
        row.of_copy, row.of_exp = row.gb_per_s / report.gb_per_s, row.exp_per_s / report.exp_per_s
    return row


def broken_reason() -> str | None:
    """Why the device cannot be used any more. After an invalid access to memory, for one, every later call fails."""
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except Exception as error:
        return in_one_line(error)
    return None


def run(budget_seconds: float, output: Path | None, show: Callable[[str], None] = lambda line: None) -> Report:
    """Measure what fits into the budget; the file `output` grows row by row, and `show` gets the table line by line."""
    import triton

    begin, longest = time.perf_counter(), 15.0  # of a row so far; a first guess that allows for compiling
    copied, exponentials = ceilings()
    report = Report(
        torch.cuda.get_device_name(),
        torch.__version__,
        triton.__version__,
        other_side(),
        gb_per_s=copied / 1e9,
        exp_per_s=exponentials,
    )
    for text in head(report):
        show(text)
    broken = None
    for task in tasks():
        start = time.perf_counter()
        left = budget_seconds - (start - begin)
        if broken:
            report.rows.append(Row(task, problem=f"the device stopped working: {broken}"))
        elif left < max(longest, LONG_ROWS.get(task.way, 0.0)):
            report.rows.append(Row(task, problem="no time left"))
        else:
            report.rows.append(measure(task, report, min(left, LONG_ROWS.get(task.way, left))))
            if task.way not in LONG_ROWS:
                longest = max(longest, time.perf_counter() - start)
            if report.rows[-1].problem:
                broken = broken_reason()
        show(line(report.rows[-1]))
        if output:
            with atomic_write(output) as file:
                file.write(json.dumps(asdict(report), indent=1).encode() + b"\n")
    return report


def head(report: Report) -> list[str]:
    """The lines above the rows of the table, in markdown. `samples/s` of a token stack counts its one input."""
    return [
        f"{report.machine}, torch {report.torch}, triton {report.triton}; ceilings: {report.gb_per_s:.0f} GB/s, "
        f"{report.exp_per_s / 1e9:.0f} G exponentials/s; the other side: {report.other_side}",
        "",
        "| what | of | kernels | precision | pass | ms | samples/s | peak MiB | GB/s | of copy | G exp/s | of exp |",
        "|---|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]


def line(row: Row) -> str:
    task = row.task
    passes = "forward + backward" if task.backward else "forward"
    cells = [task.kind, task.subject, task.way, task.precision, passes]
    if row.problem:
        cells += [f"not measured: {row.problem.replace('|', '/')}", *6 * [""]]
    else:
        samples = {"scan": SCANS.get(task.subject, (1,))[0], "tokens": 1}.get(task.kind, BATCH)
        cells += [f"{1000 * row.seconds:.3g}", f"{samples / row.seconds:.0f}", f"{row.peak_mib:.0f}"]
        cells += (
            [f"{row.gb_per_s:.0f}", f"{row.of_copy:.0%}", f"{row.exp_per_s / 1e9:.0f}", f"{row.of_exp:.0%}"]
            if task.kind == "scan"
            else 4 * [""]
        )
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--budget-seconds", type=float, default=500, help="what no longer fits is left out (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="where the numbers are written as JSON, row by row, if anywhere")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: no CUDA device; benchmarks.cpu measures this machine")
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 in the float32 rows
    try:
        report = run(args.budget_seconds, args.output, show=lambda text: print(text, flush=True))
    finally:
        torch.set_float32_matmul_precision(precision)
    if any(row.problem.startswith("the device stopped working") for row in report.rows):
        raise SystemExit("benchmarks.gpu: the device stopped working, see above; the rows before are valid")


if __name__ == "__main__":
    main()
