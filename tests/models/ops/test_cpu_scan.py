"""The compiled back end beyond its numbers: the build, the torch operators, torch.compile and other transformations."""

import ctypes
import logging
import multiprocessing
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from audio_mamba.models.mamba import Mamba
from audio_mamba.models.ops import native
from audio_mamba.models.ops.native import build
from audio_mamba.models.ops.selective_scan import selective_scan
from tests.conftest import ROOT
from tests.models.ops.scan_cases import make_inputs

needs_kernels = pytest.mark.skipif(native.unsupported_reason() is not None, reason=str(native.unsupported_reason()))


def _build(directory):
    return build.build_library(directory)


@needs_kernels
class TestBuild:
    def test_concurrent_processes_share_one_library(self, tmp_path):
        """None fails, all get the same file, and nothing else is left behind."""
        directory = tmp_path / "new" / "cache"
        with multiprocessing.get_context("spawn").Pool(3) as pool:
            paths = pool.map(_build, [directory] * 3)
        assert len(set(paths)) == 1
        assert list(directory.iterdir()) == paths[:1]
        written = paths[0].stat().st_mtime_ns
        assert (
            build.build_library(directory) == paths[0] and paths[0].stat().st_mtime_ns == written
        )  # kept, not rebuilt

    def test_a_changed_source_gives_another_library(self, tmp_path, monkeypatch):
        (tmp_path / "csrc").mkdir()
        monkeypatch.setattr(build, "SOURCES", tmp_path / "csrc")
        source = tmp_path / "csrc" / "one.c"
        source.write_text("int one(void) { return 1; }\n")
        first = build.build_library(tmp_path / "cache")
        source.write_text("int one(void) { return 2; }\n")
        assert build.build_library(tmp_path / "cache") != first

    def test_chosen_flags_replace_the_machines_own(self, tmp_path, monkeypatch):
        monkeypatch.setattr(build, "SOURCES", tmp_path / "csrc")
        (tmp_path / "csrc").mkdir()
        (tmp_path / "csrc" / "one.c").write_text("int answer(void) { return ANSWER; }\n")
        monkeypatch.delenv("AUDIO_MAMBA_CFLAGS", raising=False)
        with pytest.raises(build.BuildError):
            build.build_library(tmp_path / "cache")
        libraries = {}
        for answer in (1, 2):
            monkeypatch.setenv("AUDIO_MAMBA_CFLAGS", f"-DANSWER={answer}")
            libraries[answer] = build.build_library(tmp_path / "cache")
            assert ctypes.CDLL(str(libraries[answer])).answer() == answer
        assert libraries[1] != libraries[2]

    def test_a_compiler_error_is_reported(self, tmp_path, monkeypatch):
        (tmp_path / "one.c").write_text("int one(void) { return undeclared; }\n")
        monkeypatch.setattr(build, "SOURCES", tmp_path)
        with pytest.raises(build.BuildError, match="one.c"):
            build.build_library(tmp_path / "cache")
        assert not list((tmp_path / "cache").iterdir())


@pytest.fixture
def fresh_build(tmp_path, monkeypatch):
    """An empty cache, in a process that has not looked for the kernels yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library_or_reason.cache_clear()
    yield tmp_path
    native._library_or_reason.cache_clear()


@pytest.mark.parametrize("obstacle", ["compiler", "folder"])
def test_without_kernels_plain_pytorch_is_used_after_one_warning(fresh_build, monkeypatch, caplog, obstacle):
    if obstacle == "compiler":
        monkeypatch.setenv("CC", "no-such-compiler")
    else:
        (fresh_build / "audio_mamba").write_text("a file where the folder should be")
    inputs = make_inputs(1, 4, 6, 2)
    with caplog.at_level(logging.WARNING):
        results = [selective_scan(**inputs) for _ in range(2)]
    assert torch.equal(results[0], selective_scan(**inputs, backend="chunked"))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1 and "plain PyTorch" in warnings[0] and "\n" not in warnings[0]
    assert ("no-such-compiler" if obstacle == "compiler" else "audio_mamba") in warnings[0]
    with pytest.raises(RuntimeError, match="'cpu' does not support this call"):
        selective_scan(**inputs, backend="cpu")


def test_a_relative_cache_folder_is_passed_over(tmp_path, monkeypatch):
    """It would be another one in each folder in which the user works."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for relative in ("cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert build.cache_directory() == tmp_path / ".cache" / "audio_mamba"


def test_importing_compiles_nothing(tmp_path):
    subprocess.run(
        [sys.executable, "-c", "import audio_mamba.models"], check=True, env={"XDG_CACHE_HOME": str(tmp_path)}, cwd=ROOT
    )
    assert not list(tmp_path.iterdir())


def operator_arguments(optional):
    inputs = make_inputs(2, 20, 21, 3, optional=optional)
    leaves = {
        name: (t if name in ("A", "D", "delta_bias") else t.transpose(1, 2)).detach().requires_grad_()
        for name, t in inputs.items()
    }
    return *(leaves.get(name) for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")), True, True


@needs_kernels
class TestOperator:
    @pytest.mark.parametrize("optional", [True, False])
    def test_opcheck(self, optional):
        torch.library.opcheck(torch.ops.audio_mamba.selective_scan_cpu, operator_arguments(optional))

    def test_opcheck_backward(self):
        arguments = [t.detach() if isinstance(t, torch.Tensor) else t for t in operator_arguments(True)]
        y, last, starts = torch.ops.audio_mamba.selective_scan_cpu(*arguments)
        torch.library.opcheck(
            torch.ops.audio_mamba.selective_scan_cpu_backward,
            (torch.randn_like(y), torch.randn_like(last), starts, *arguments[:-1]),
        )

    def test_no_second_derivative(self):
        inputs = {name: t.requires_grad_() for name, t in make_inputs(1, 4, 6, 2).items()}
        first = torch.autograd.grad(selective_scan(**inputs, backend="cpu").sum(), inputs["u"], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="no autograd formula"):
            first.sum().backward()

    def test_empty_time_and_empty_batch(self):
        for batch, length in ((1, 0), (0, 5)):
            y, last = selective_scan(**make_inputs(batch, 3, length, 2), return_last_state=True, backend="cpu")
            assert y.shape == (batch, 3, length) and (last == 0).all() and last.shape == (batch, 3, 2)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_float32_inside(poisoned, dtype):
    """Outputs and gradients are those in float32 of the same inputs, rounded once."""
    low = make_inputs(2, 40, 37, 6, dtype=dtype)
    results = []
    for inputs in (low, {name: t.float() for name, t in low.items()}):
        leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
        y = selective_scan(**leaves, delta_softplus=True, backend="cpu")
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        y.backward(dy.to(y.dtype))
        results.append([y] + [t.grad for t in leaves.values()])
    for rounded, exact in zip(*results, strict=True):
        assert torch.equal(rounded, exact.to(rounded.dtype))


@pytest.fixture
def block():
    torch.manual_seed(0)
    block = Mamba(16, d_state=5, d_conv=4, expand=2)
    block.init_weights(depth=2)
    return block


def gradients(function, block, x):
    return torch.autograd.grad(function(x).square().sum(), [x, *block.parameters()])


@needs_kernels
class TestTransformations:
    """A Mamba block gives the same numbers as without the transformation."""

    def test_compile_without_graph_breaks(self, block):
        x = torch.randn(2, 19, 16, requires_grad=True)
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(gradients(compiled, block, x), gradients(block, block, x))

    def test_export(self, block):
        x = torch.randn(2, 19, 16)
        exported = torch.export.export(block, (x,))
        assert any("selective_scan_cpu" in str(node.target) for node in exported.graph.nodes)
        torch.testing.assert_close(exported.module()(x), block(x))

    @pytest.mark.parametrize("kernels", [True, False])
    @pytest.mark.parametrize("grad", [True, False])
    def test_an_exported_program_with_and_without_kernels(self, block, monkeypatch, kernels, grad):
        """It has gradients, too, even if it was exported without, as `audio-mamba export` does."""
        x = torch.randn(2, 19, 16, requires_grad=True)
        expected = [block(x), *gradients(block, block, x)]
        with torch.set_grad_enabled(grad):
            program = torch.export.export(block, (x.detach(),)).module()
        if not kernels:
            monkeypatch.setattr(native, "_library_or_reason", lambda: (None, "no compiler"))
        parameters = dict(program.named_parameters())
        inputs = [x, *(parameters[name] for name, _ in block.named_parameters())]
        y = program(x)
        torch.testing.assert_close([y, *torch.autograd.grad(y.square().sum(), inputs)], expected)

    def test_checkpoint(self, block):
        x = torch.randn(2, 19, 16, requires_grad=True)
        checkpointed = gradients(lambda x: checkpoint(block, x, use_reentrant=False), block, x)
        assert all(torch.equal(*pair) for pair in zip(checkpointed, gradients(block, block, x), strict=True))

    def test_autocast(self, block):
        """bfloat16 products around a float32 scan."""
        x = torch.randn(2, 19, 16)
        with torch.autocast("cpu", torch.bfloat16):
            y = block(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), block(x), rtol=0.05, atol=0.05 * block(x).abs().max().item())

    @pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch itself uses it here
    def test_forward_mode(self, block):
        """The product of tangent and dy is that of v and the gradient."""
        x, v, dy = torch.randn(3, 2, 19, 16).unbind()
        leaf = x.clone().requires_grad_()
        expected = (torch.autograd.grad(block(leaf), leaf, dy)[0] * v).sum()
        _, tangent = torch.func.jvp(block, (x,), (v,))
        torch.testing.assert_close((tangent * dy).sum(), expected)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(block(forward_ad.make_dual(x, v))).tangent
        torch.testing.assert_close((tangent * dy).sum(), expected)
        block.backend = "cpu"
        with pytest.raises(RuntimeError, match="'cpu' does not support this call: it has no derivatives in forward"):
            torch.func.jvp(block, (x,), (v,))

    @pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch itself uses it here
    def test_a_compiled_block_notices_forward_mode(self, block):
        x, v = torch.randn(2, 2, 19, 16).unbind()
        compiled = torch.compile(block, backend="aot_eager")
        torch.testing.assert_close(compiled(x), block(x))
        expected = torch.func.jvp(block, (x,), (v,))[1]
        torch.testing.assert_close(torch.func.jvp(compiled, (x,), (v,))[1], expected)
