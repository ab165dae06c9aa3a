"""Counting the scan's instructions without a GPU, and a rehearsal of timing its variants, in Triton's interpreter."""

import os
import re
import subprocess
import sys

import pytest
import torch

from audio_mamba.models.ops.selective_scan import triton as scan
from benchmarks import gpu_counts, gpu_embed, gpu_sweep, measure
from tests.conftest import DEVICE, ROOT, runs_on_device

pytest.importorskip("triton")

# An outer loop of six instructions, with a loop of two in it. The last line jumps to itself, as every kernel's.
LISTING = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   FADD R2, R2, R3 ;
        /*0020*/                   IADD3 R4, R4, 0x1, RZ ;
.L_x_0:
        /*0030*/                   FFMA R5, R2, R3, R5 ;
        /*0040*/              @!P0 BRA `(.L_x_0) ;
        /*0050*/               @P2 BRA `(.L_x_2) ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0070*/                   EXIT ;
.L_x_3:
        /*0080*/                   BRA `(.L_x_3);
"""


def test_instructions_and_loops_are_read_off_the_listing():
    code = gpu_counts.parse("Function f:\n  REG:129 STACK:16 SHARED:0 LOCAL:0", LISTING)
    assert (code.registers, code.spilled, len(code.instructions)) == (129, 16, 9)
    assert code.loops == [(1, 7), (3, 5)]
    assert [code.slots(0), code.slots(1)] == [4, 2]


def test_slots_of_a_step_weigh_each_loop_by_its_trips():
    code = gpu_counts.parse("REG:128 STACK:0", LISTING)
    span = 4 + 2 * scan.SPAN / 4  # one outer body, and one inner body per group of four steps
    assert gpu_counts.slots_per_step(code, "forward", group=4, block=32, num_warps=1) == span / scan.SPAN
    assert gpu_counts.slots_per_step(code, "forward", group=4, block=64, num_warps=2) == span / scan.SPAN
    with pytest.raises(ValueError, match="backward has 2 loops"):
        gpu_counts.slots_per_step(code, "backward", group=4, block=32, num_warps=1)


@pytest.mark.parametrize("registers, warps", [(255, 2), (169, 2), (168, 3), (136, 3), (129, 3), (128, 4), (32, 16)])
def test_warps_for_which_the_registers_suffice(registers, warps):
    assert gpu_counts.parse(f"REG:{registers} STACK:0", LISTING).warps == warps


def test_a_listing_without_registers_is_an_error():
    with pytest.raises(ValueError, match="does not say how many registers"):
        gpu_counts.parse("cuobjdump fatal: no such file", LISTING)


def test_a_variant_changes_the_scan_only_inside_its_block():
    before = scan.tiles(24), scan.GROUP
    with gpu_counts.changed({"GROUP": 2, "maxnreg": 168}) as cut:
        assert cut == scan.tiles(24) and (cut["GROUP"], cut["maxnreg"], scan.GROUP) == (2, 168, 2)
        assert scan.padded(20) == 24
    assert (scan.tiles(24), scan.GROUP) == before


def test_the_backward_pass_gets_fewer_registers_only_where_they_pay_and_can_be_limited(monkeypatch):
    from audio_mamba.models.ops.selective_scan import triton_kernels

    limits = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: limits.append(options.get("maxnreg"))

    monkeypatch.setattr(triton_kernels, "backward", Kernel())
    for states, hip in ((24, None), (25, None), (24, "7.1")):
        monkeypatch.setattr(torch.version, "hip", hip)
        inputs = gpu_sweep.make_inputs(1, 8, 5, torch.float32, "cpu")
        inputs[2], inputs[3], inputs[4] = (torch.ones(*t.shape[:-1], states) for t in inputs[2:5])
        starts = torch.zeros(1, 1, scan.padded(states), 8)
        torch.ops.audio_mamba.selective_scan_triton_backward(inputs[0], None, starts, *inputs, True)
    assert limits == [168, None, None]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["forward", "backward"])
def test_the_compiled_scan_is_counted(which, tmp_path):
    """Its least work per channel step and state is known: one exponential, two products and two sums forward."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_counts", which],
        cwd=ROOT,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines()[2:]]
    assert len(rows) == len(gpu_counts.VARIANTS[which])
    registers = {name.strip(): int(number) for _, name, number, _, _, _ in rows}
    assert which == "forward" or registers["as it is"] == scan.BACKWARD_REGISTERS < registers["maxnreg 255"]
    slots = {name.strip(): int(number) for _, name, _, _, _, number in rows}
    assert min(slots.values()) > {"forward": 5, "backward": 15}[which] * 24
    assert slots["as it is"] < {"forward": 260, "backward": 1150}[which]  # 226 and 1029 with triton 3.7.1


@pytest.mark.parametrize("device", [pytest.param(DEVICE, marks=runs_on_device)])
@pytest.mark.slow
def test_variants_are_compared_before_they_are_timed(device, monkeypatch, capsys):
    variants = {"forward": [{}, {"GROUP": 2}], "backward": [{"BLOCK": 16}, {"BLOCK": 24}]}
    monkeypatch.setattr(gpu_sweep, "VARIANTS", variants)
    monkeypatch.setattr(gpu_sweep, "PRECISIONS", ("float32",))
    monkeypatch.setattr(gpu_sweep, "SMALL", (2, 18, 9))
    gpu_sweep.main(["--small"])
    rows = [re.split(r" ?\| ?", line)[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:2] for row in rows] == [
        ["forward", "as it is"],
        ["forward", "GROUP 2"],
        ["backward", "as it is"],
        ["backward", "BLOCK 16"],
        ["backward", "BLOCK 24"],
    ]
    assert all(float(row[4]) < 1e-5 for row in rows[:4])
    assert rows[4][3].startswith("not measured: ")  # tiles are powers of two


def test_without_a_gpu_the_sweep_says_so_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_sweep.triton_support, "interpreted", lambda: False)
    with pytest.raises(SystemExit, match="^benchmarks.gpu_sweep: no CUDA device; [^\n]*$"):
        gpu_sweep.main([])


def test_precisions_of_embeddings_are_compared_with_float32_on_the_cpu(monkeypatch):
    monkeypatch.setattr(measure, "SECONDS", 0)
    monkeypatch.setattr(gpu_embed, "SECONDS", 1)
    errors = [float(line.split("|")[3]) for line in gpu_embed.rows(gpu_embed.MODELS[0], "cpu", count=1)]
    assert errors[0] < 1e-5 and 0 < errors[1] < 1e-3 and errors[1] < errors[2] < 1e-2
