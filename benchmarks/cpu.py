"""Time and memory on the CPU of SSAM-tiny, its peers and its siblings: `python -m benchmarks.cpu`.

All are stacks of 12 blocks of width 192 on random tokens in float32 (SSAM and the Mamba peers: expand 3, state 24; SSAM
with LayerNorm, as in the paper's configs; also with its blocks walking forward and backward in turns, and both ways
each). Each row runs in a process of its own, so that peak memory is measured per
row. The machine's ceilings, a large matrix product and an exponential of a vector, are measured in the same run. `of
ceiling` is the time that the stack's matrix products and exponentials would take at those rates, divided by the time
measured. The parts of a block of SSAM-tiny follow, with their shares of ceilings and their errors against float64.

    git worktree add OLD COMMIT && python -m benchmarks.cpu --against OLD

compares SSAM-tiny, SSAST-tiny and AxLSTM-tiny with the same stacks of another checkout instead. Old and new code run in
turns, --rounds times each, in fresh processes. The median of the ratios counts; the lowest and the highest are printed
beside it. In the same way

    python -m benchmarks.cpu --stacks SSAM-tiny "SSAM-tiny, alternate" "SSAM-tiny, both"

compares stacks of this checkout with the first one named.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from audio_mamba import models
from benchmarks import cpu_against, cpu_parts
from benchmarks.measure import fastest, peak_mib, resident_mib, without_kernels

DEPTH, WIDTH, EXPAND, STATE, CONV = 12, 192, 3, 24, 4
INNER, RANK = EXPAND * WIDTH, WIDTH // 16


@dataclass
class Row:
    """One measurement: time in seconds, memory in MiB in addition to the idle model."""

    stack: str
    batch: int
    tokens: int
    backward: bool
    seconds: float = 0
    peak_mib: float = 0
    of_ceiling: float = 0


@dataclass
class Report:
    machine: str
    threads: int
    torch: str
    matmul_gflops: float
    exp_per_us: float
    rows: list[Row] = field(default_factory=list)


def ssam(direction: str = "forward") -> Callable[[Tensor], Tensor]:
    return models.mamba_ssast_tiny(rms_norm=False, direction=direction).forward_blocks


def ssam_plain() -> Callable[[Tensor], Tensor]:
    """SSAM as a machine without a compiler runs it."""
    model = models.mamba_ssast_tiny(rms_norm=False)
    without_kernels(model)
    return model.forward_blocks


def ssast() -> Callable[[Tensor], Tensor]:
    return models.ssast_tiny().forward_blocks


def axlstm() -> Callable[[Tensor], Tensor]:
    return models.xlstm_ssast_tiny().forward_blocks


def transformers_mamba() -> Callable[[Tensor], Tensor]:
    from transformers import MambaConfig, MambaModel, logging

    logging.set_verbosity_error()  # it warns of its missing CUDA kernels, once each
    model = MambaModel(
        MambaConfig(
            vocab_size=8,
            hidden_size=WIDTH,
            state_size=STATE,
            num_hidden_layers=DEPTH,
            expand=EXPAND,
            conv_kernel=CONV,
            use_cache=False,
        )
    )
    return lambda tokens: model(inputs_embeds=tokens).last_hidden_state


def mambapy() -> Callable[[Tensor], Tensor]:
    from mambapy.mamba import Mamba, MambaConfig

    return Mamba(MambaConfig(d_model=WIDTH, n_layers=DEPTH, d_state=STATE, expand_factor=EXPAND, d_conv=CONV))


STACKS = {
    "SSAM-tiny": ssam,
    "SSAM-tiny, alternate": partial(ssam, "alternate"),
    "SSAM-tiny, both": partial(ssam, "both"),
    "SSAM-tiny, plain PyTorch": ssam_plain,
    "transformers MambaModel": transformers_mamba,
    "mambapy": mambapy,
    "SSAST-tiny": ssast,
    "AxLSTM-tiny": axlstm,
}
OURS = ["SSAM-tiny", "SSAST-tiny", "AxLSTM-tiny"]


def measure(row: Row) -> Row:
    """Fill a row's time and memory; meant for a fresh process."""
    torch.manual_seed(0)
    stack = STACKS[row.stack]()
    tokens = torch.randn(row.batch, row.tokens, WIDTH)
    resident = resident_mib()

    def run():
        with torch.set_grad_enabled(row.backward):
            output = stack(tokens)
        if row.backward:
            output.sum().backward()

    row.seconds = fastest(run)
    row.peak_mib = peak_mib() - resident
    return row


def ceilings(_: None) -> tuple[float, float]:
    """The machine's rates: of a matrix product in FLOP/s, and of exponentials per second (both float32)."""
    matrix, vector = torch.randn(1536, 1536), torch.randn(2**17)
    out = torch.empty_like(vector)
    return (
        2 * matrix.shape[0] ** 3 / fastest(lambda: matrix @ matrix),
        100 * vector.numel() / fastest(lambda: [torch.exp(vector, out=out) for _ in range(100)]),
    )


def work(row: Row) -> tuple[float, float]:
    """FLOPs of matrix products and number of exponentials in a row's forward pass."""
    if row.stack == "SSAST-tiny":
        per_token = 12 * WIDTH**2 + 2 * WIDTH * row.tokens
        exponentials = 3 * row.tokens  # of the softmax, per head
    elif row.stack == "AxLSTM-tiny":
        inner = 2 * WIDTH
        per_token = 6 * WIDTH**2 + 12 * inner + 24 * inner + 2 * inner * row.tokens
        exponentials = 4 * row.tokens  # of the gates, per head
    else:
        paths = 2 if row.stack == "SSAM-tiny, both" else 1
        per_token = WIDTH * 2 * INNER + paths * (INNER * (RANK + 2 * STATE) + RANK * INNER) + INNER * WIDTH
        exponentials = paths * INNER * STATE
    tokens = DEPTH * row.batch * row.tokens
    return 2 * tokens * per_token, tokens * exponentials


def of_ceiling(row: Row, flops_per_second: float, exp_per_second: float) -> float:
    """A backward pass needs twice the matrix products, and recomputes the exponentials of the forward pass."""
    flops, exponentials = work(row)
    passes = (3, 2) if row.backward else (1, 1)
    return (passes[0] * flops / flops_per_second + passes[1] * exponentials / exp_per_second) / row.seconds


def run(lengths: list[int], output: Path) -> Report:
    """Measure everything, one fresh process after the other; the file `output` grows row by row."""
    rows = [Row(stack, batch, 251, backward) for batch in (1, 8) for backward in (False, True) for stack in STACKS]
    rows += [
        Row(stack, 1, tokens, backward)
        for tokens in lengths
        for backward in (False, True)
        for stack in ("SSAM-tiny", "SSAST-tiny")
    ]
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh_process:
        matmul, exp = next(fresh_process.map(ceilings, [None]))
        report = Report(
            platform.processor() or platform.machine(),
            torch.get_num_threads(),
            torch.__version__,
            matmul / 1e9,
            exp / 1e6,
        )
        for row in tqdm(fresh_process.map(measure, rows), total=len(rows), unit="row"):
            row.of_ceiling = of_ceiling(row, matmul, exp)
            report.rows.append(row)
            output.write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def table(report: Report) -> str:
    """The rows in markdown, with the ratio to SSAM-tiny's time and memory in the same setting."""
    ours = {(row.batch, row.tokens, row.backward): row for row in report.rows if row.stack == "SSAM-tiny"}
    lines = [
        f"{report.threads} threads, torch {report.torch}; ceilings: {report.matmul_gflops:.0f} GFLOP/s of matrix "
        f"products, {report.exp_per_us:.0f} exponentials per microsecond",
        "",
        "| tokens | batch | pass | stack | ms | times SSAM-tiny | peak MiB | times SSAM-tiny | of ceiling |",
        "|---:|---:|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in report.rows:
        base = ours[row.batch, row.tokens, row.backward]
        lines.append(
            f"| {row.tokens} | {row.batch} | {'forward + backward' if row.backward else 'forward'} "
            f"| {row.stack} | {1000 * row.seconds:.1f} | {row.seconds / base.seconds:.1f} "
            f"| {row.peak_mib:.0f} | {row.peak_mib / base.peak_mib:.1f} | {row.of_ceiling:.0%} |"
        )
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="*",
        default=[1000, 4000, 16000, 22000],
        metavar="TOKENS",
        help="long inputs on which SSAM and SSAST are compared (default: 1000 4000 16000 22000)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmark_cpu.json"),
        help="where the numbers are written as JSON, row by row (default: %(default)s)",
    )
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare with the stacks of another checkout")
    parser.add_argument(
        "--stacks", nargs="+", choices=STACKS, metavar="STACK", help="compare these stacks with the first of them"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of --against and --stacks (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.against and not (args.against / "benchmarks" / "cpu.py").is_file():
        parser.error(f"--against {args.against}: not a checkout of this project (no benchmarks/cpu.py)")
    if args.stacks and (args.against or len(args.stacks) < 2):
        parser.error(f"--stacks needs two or more stacks, and not --against; choose from {', '.join(STACKS)}")
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    return args


def collect(found: Iterator[cpu_against.Comparison], stacks: int, output: Path) -> list[cpu_against.Comparison]:
    """All comparisons of so many stacks; the file `output` grows setting by setting."""
    comparisons = []
    for one in tqdm(found, total=stacks * len(cpu_against.CASES), unit="setting"):
        comparisons.append(one)
        output.write_text(json.dumps([asdict(one) for one in comparisons], indent=1) + "\n")
    return comparisons


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.against:
        found = cpu_against.compare(OURS, 251, args.rounds, args.against)
        print(cpu_against.table(collect(found, len(OURS), args.output)))
    elif args.stacks:
        first, *others = args.stacks
        found = cpu_against.compare_stacks(first, others, 251, args.rounds)
        print(cpu_against.table_of_stacks(first, collect(found, len(others), args.output)))
    else:
        print(table(run(args.lengths, args.output)))
        print("", cpu_parts.table(cpu_parts.measure()), "", cpu_parts.error_table(cpu_parts.errors()), sep="\n")


if __name__ == "__main__":
    main()
