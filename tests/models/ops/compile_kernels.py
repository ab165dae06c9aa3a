"""Compiles all Triton kernels for a GPU without one: `python -m tests.models.ops.compile_kernels 80 --published`.

Run it in a process of its own, without TRITON_INTERPRET. It finds what the interpreter accepts but the compiler does
not: types that change in a loop, and unknown functions.
"""

import argparse
import functools

from audio_mamba.models.ops.add_norm import triton_kernels as norm_kernels
from audio_mamba.models.ops.causal_conv1d import triton_kernels as conv_kernels
from audio_mamba.models.ops.selective_scan import triton as triton_scan
from audio_mamba.models.ops.selective_scan import triton_chunk_kernels
from audio_mamba.models.ops.selective_scan import triton_kernels as scan_kernels
from benchmarks.gpu_counts import compile_kernel

FEW = {"GROUP": 2, "BLOCK": 16, "WIDTH": 4, "PARTS": 2, "num_warps": 1}


def compile_one(kernel, target, dtype, absent=(), num_warps=1, size="i32", **constants):
    """Compiles `kernel`, see `benchmarks.gpu_counts`, and returns the bytes of shared memory that a program needs."""
    compiled = compile_kernel(kernel, target, dtype, absent, size, {"num_warps": num_warps}, **constants)
    assert compiled.asm["cubin"]
    return compiled.metadata.shared


def check_forward_layout(target):
    """A thread holds all states of its channels. Sums over states or rows of B and C that cross threads would need
    shared memory and double the time."""
    for states in (16, 24):
        shared = compile_one(
            scan_kernels.forward,
            target,
            "bf16",
            {"carry_ptr"},
            SIGN=1,
            SOFTPLUS=True,
            SPAN=triton_scan.SPAN,
            **triton_scan.tiles(states),
        )
        assert shared == 0, f"forward with {states} states needs {shared} bytes of shared memory"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=int, help="compute capability, such as 90")
    parser.add_argument("--published", action="store_true", help="with the tiles of 24 states")
    parser.add_argument("--size", choices=["i32", "i64", "1"], default="i32", help="type of sizes and strides")
    args = parser.parse_args()
    compile_sized = functools.partial(compile_one, size=args.size)
    cut = triton_scan.tiles(24) if args.published else FEW
    check_forward_layout(args.target)
    for dtype, softplus, sign, absent in (("bf16", True, 1, ()), ("fp32", False, -1, ("D_ptr", "z_ptr", "bias_ptr"))):
        options = {"SIGN": sign, "SOFTPLUS": softplus, "SPAN": triton_scan.SPAN}
        without_z = {"dz_ptr"} if absent else set()
        compile_sized(
            scan_kernels.forward,
            args.target,
            dtype,
            {*absent, "carry_ptr" if absent else "starts_ptr"},
            **options,
            **cut,
        )
        compile_sized(scan_kernels.backward, args.target, dtype, {*absent, "d_carry_ptr"} | without_z, **options, **cut)
        for reverse in (False, True):
            compile_sized(
                triton_chunk_kernels.chunk_ends,
                args.target,
                dtype,
                {"gate_ptr", "bias_ptr"} if absent else (),
                SIGN=sign,
                REVERSE=reverse,
                SOFTPLUS=softplus,
                **cut,
            )
            compile_sized(
                triton_chunk_kernels.combine,
                args.target,
                dtype,
                ("entry_ptr",) if absent else (),
                REVERSE=reverse,
                GROUP=4,
                BLOCK=32,
            )
        for kernel, group in ((conv_kernels.forward_kernel, {}), (conv_kernels.backward_kernel, {"GROUP": 4})):
            compile_sized(
                kernel,
                args.target,
                dtype,
                ("bias_ptr",) if absent else (),
                SIGN=sign,
                TAPS=4 if softplus else 1,
                SILU=softplus,
                STEPS=32,
                BLOCK=32,
                **group,
            )
        rms = not softplus
        compile_sized(
            norm_kernels.forward_kernel,
            args.target,
            dtype,
            ("residual_ptr", "bias_ptr", "mean_ptr") if rms else (),
            RMS=rms,
            BLOCK=256,
        )
        compile_sized(
            norm_kernels.backward_kernel,
            args.target,
            dtype,
            ("d_total_ptr", "d_residual_ptr", "mean_ptr") if rms else (),
            RMS=rms,
            BLOCK=256,
        )


if __name__ == "__main__":
    main()
