"""What the kernels of our scan cost, counted in their machine code without a GPU: `python -m benchmarks.gpu_counts`.

The scan is compiled for the GPU of `--target`, for the states and dtype of SSAM's pretraining, once for each way of
dividing the work in VARIANTS. The tools in triton's wheel give registers and spills, and the disassembly gives the
issue slots: the instructions that warps issue for 32 channels and one time step. What instructions wait for cannot be
counted; benchmarks.gpu_sweep times the same variants.
"""

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audio_mamba.models.ops.selective_scan import triton as scan

STATES = 24  # of SSAM
REGISTERS = 16384  # of one of the four schedulers of a multiprocessor, from sm_70 to sm_100
MOST_WARPS = 16
# Changes of the constants of models/ops/selective_scan/triton.py, or options of the compiler. The first is today's.
VARIANTS: dict[str, list[dict[str, int]]] = {
    "forward": [{}, {"GROUP": 1}, {"GROUP": 2}, {"GROUP": 8}, {"BLOCK": 64}, {"PER_THREAD": 16}, {"maxnreg": 128}],
    "backward": [{}, {"GROUP": 2}, {"GROUP": 8}, {"BLOCK": 64}, {"PER_THREAD": 16}, {"maxnreg": 255}],
}
# Arguments in the dtype of the activations; other addresses are float32.
LOW = {
    *("u_ptr", "delta_ptr", "z_ptr", "y_ptr", "dy_ptr", "du_ptr", "d_delta_ptr", "dz_ptr"),
    *("x_ptr", "gate_ptr", "dx_ptr", "hidden_ptr", "d_hidden_ptr"),
}


@contextmanager
def changed(change: dict[str, int]) -> Iterator[dict[str, int]]:
    """The scan with one of VARIANTS. Gives what `triton.tiles` gives for STATES, compiler options included."""
    constants = {name: value for name, value in change.items() if hasattr(scan, name)}
    options = {name: value for name, value in change.items() if name not in constants}
    before, tiles = {name: getattr(scan, name) for name in constants}, scan.tiles
    for name, value in constants.items():
        setattr(scan, name, value)
    scan.tiles = lambda states: tiles(states) | options
    try:
        yield scan.tiles(STATES)
    finally:
        scan.tiles = tiles
        for name, value in before.items():
            setattr(scan, name, value)


def compile_kernel(kernel, target: int, dtype: str, absent=(), size: str = "i32", options=None, **constants) -> Any:
    """A Triton kernel compiled for compute capability `target`, such as 90, and for activations of `dtype`.

    The arguments named in `absent` are None. Sizes and strides have the type `size`, or are all "1", which Triton makes
    constants. Addresses and sizes are multiples of 16, as they mostly are, which Triton exploits. TRITON_INTERPRET must
    be unset.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants |= dict.fromkeys(absent)
    unspecialised = {"eps", *(kernel.do_not_specialize or ())}
    if size == "1":
        constants |= {
            name: 1
            for name in kernel.arg_names
            if not name.endswith("_ptr") and name not in unspecialised | set(constants)
        }
        size = "i32"
    signature, sixteens = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name not in unspecialised | set(constants):
            sixteens[place,] = [["tt.divisibility", 16]]
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = f"*{dtype if name in LOW else 'fp32'}"
        else:
            signature[name] = "fp32" if name == "eps" else size
    return triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=sixteens),
        target=GPUTarget("cuda", target, 32),
        options=options or {},
    )


@dataclass(frozen=True)
class Code:
    """A kernel's machine code: its instructions, and its loops as [begin, end) in them, outer before inner."""

    registers: int
    spilled: int  # bytes of a thread
    instructions: list[str]
    loops: list[tuple[int, int]]

    @property
    def warps(self) -> int:
        """Warps of a scheduler for which the registers suffice; a warp gets them in units of 8 per thread."""
        return min(MOST_WARPS, REGISTERS // (32 * (-(-self.registers // 8) * 8)))

    def slots(self, loop: int) -> int:
        """Instructions in a loop's body, without the loops within."""
        begin, end = self.loops[loop]
        inner = [place for place in self.loops if begin <= place[0] and place[1] <= end and place != (begin, end)]
        return sum(not any(first <= at < last for first, last in inner) for at in range(begin, end))


def read_code(cubin: bytes) -> Code:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        used, listing = (
            subprocess.run([tools / tool, option, path], check=True, capture_output=True, text=True).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    return parse(used, listing)


def parse(used: str, listing: str) -> Code:
    """The output of `cuobjdump -res-usage` and of `nvdisasm -c` for one kernel."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", used)
    if not found:
        raise ValueError(f"cuobjdump does not say how many registers are used: {used[:200]}")
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            instructions.append(instruction[1])
    loops = set()
    for at, instruction in enumerate(instructions):
        if (jump := re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction)) and labels[jump[1]] < at:
            loops.add((labels[jump[1]], at + 1))
    return Code(int(found[1]), int(found[2]), instructions, sorted(loops, key=lambda loop: (loop[0], -loop[1])))


def slots_per_step(code: Code, which: str, group: int, block: int, num_warps: int) -> float:
    """Issue slots of a time step of 32 channels, over a whole span. The loops are: spans; groups; and in backward pairs
    of steps, and in them the steps between the group's state and the pair's, (GROUP - 2) / 2 on average."""
    trips = [1.0, scan.SPAN / group]
    if which == "backward":
        trips += [scan.SPAN / 2, scan.SPAN / 2 * (group - 2) / 2]
    if len(code.loops) != len(trips) - (which == "backward" and group == 2):
        raise ValueError(f"{which} has {len(code.loops)} loops, not as in its source")
    span = sum(code.slots(loop) * times for loop, times in zip(range(len(code.loops)), trips))
    return span / scan.SPAN * num_warps * 32 / block


def count(which: str, change: dict[str, int], target: int, dtype: str) -> str:
    """The row of the table for one variant."""
    from audio_mamba.models.ops.selective_scan import triton_kernels

    with changed(change) as cut:
        if which == "backward":
            cut = scan.backward_options(STATES) | cut
        options = {name: value for name, value in cut.items() if name in ("num_warps", "maxnreg")}
        tile = {name: value for name, value in cut.items() if name not in options}
        absent = {"forward": {"carry_ptr"}, "backward": {"d_carry_ptr"}}[which]
        kernel = getattr(triton_kernels, which)
        constants = {"SIGN": 1, "SOFTPLUS": True, "SPAN": scan.SPAN} | tile
        compiled = compile_kernel(kernel, target, dtype, absent, "i32", options, **constants)
        code = read_code(compiled.asm["cubin"])
        slots = slots_per_step(code, which, tile["GROUP"], tile["BLOCK"], options["num_warps"])
    name = ", ".join(f"{key} {value}" for key, value in change.items()) or "as it is"
    return f"| {which} | {name} | {code.registers} | {code.spilled} | {code.warps} | {slots:.0f} |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", help="forward or backward (default: both)")
    parser.add_argument("--target", type=int, default=90, help="compute capability (default: %(default)s, an H100)")
    parser.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16", help="default: %(default)s")
    args = parser.parse_args(arguments)
    if unknown := set(args.which) - set(VARIANTS):
        parser.error(f"unknown pass {', '.join(sorted(unknown))}; choose from {', '.join(VARIANTS)}")
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise SystemExit("benchmarks.gpu_counts: TRITON_INTERPRET is set, and the interpreter compiles nothing")
    print("| pass | variant | registers | spilled bytes | warps per scheduler | issue slots per step |")
    print("|---|---|---:|---:|---:|---:|")
    for which in args.which or VARIANTS:
        for change in VARIANTS[which]:
            print(count(which, change, args.target, args.dtype), flush=True)


if __name__ == "__main__":
    main()
