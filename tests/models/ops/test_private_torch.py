"""The private parts of torch, and their public fall-backs, which must give the same results."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from audio_mamba.models.ops import native, private_torch
from audio_mamba.models.ops.linear import linear
from audio_mamba.models.ops.private_torch import constant_when_traced, forward_mode, unwatched
from audio_mamba.models.ops.selective_scan import cpu, selective_scan
from tests.conftest import ROOT
from tests.models.ops.scan_cases import make_inputs


@pytest.fixture(params=["private", "public"])
def mark(request, monkeypatch):
    """`constant_when_traced`, by the private mark and by the public function."""
    if request.param == "public":
        monkeypatch.setattr(private_torch, "_compiler_knows_the_mark", lambda: False)
        public, calls = torch.compiler.assume_constant_result, []
        monkeypatch.setattr(
            torch.compiler, "assume_constant_result", lambda function: (calls.append(function), public(function))[1]
        )
    yield constant_when_traced
    if request.param == "public":
        assert len(calls) == 1


def test_the_result_is_a_constant_of_the_graph(mark):
    calls = []

    @mark
    def answer():
        calls.append(len(calls))  # torch.compile would break the graph here
        return "no" if calls else "yes"

    double = torch.compile(lambda x: 2 * x if answer() == "no" else x, fullgraph=True, backend="eager")
    assert double(torch.tensor(3.0)) == 6.0 and double(torch.tensor(4.0)) == 8.0
    assert len(calls) == 1


def test_this_torch_knows_the_mark():
    """Otherwise every command waits for the compiler to be imported."""
    assert private_torch._compiler_knows_the_mark()


def test_inference_imports_neither_the_compiler_nor_triton():
    """So that commands that use neither do not wait for them."""
    script = """
import sys, torch
from audio_mamba import models
with torch.no_grad():
    models.mamba_ssast_tiny(depth=1).eval().forward_blocks(torch.randn(1, 5, 192))
print([name for name in ('torch._dynamo', 'triton') if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_whatever_traces_or_transforms_sees_the_operator():
    x, weight = torch.zeros(2), torch.nn.Parameter(torch.zeros(2))
    seen = []

    def look(x):
        seen.append(unwatched(x))
        return x * 2

    assert unwatched(x, None) and not unwatched(x, weight)
    with torch.no_grad():
        assert unwatched(x, weight)
    with FakeTensorMode() as mode:
        assert not unwatched(mode.from_tensor(x))
        assert not unwatched(x)
    torch.func.vmap(look)(torch.zeros(3, 2))
    torch.func.jvp(look, (x,), (x,))
    torch.jit.trace(look, (x,), check_trace=False)
    with forward_ad.dual_level():
        look(forward_ad.make_dual(x, x))
    assert len(seen) >= 4 and not any(seen)


@pytest.mark.parametrize(
    "owner, name", [(torch._C, "_len_torch_dispatch_stack"), (torch._C, "_functorch"), (forward_ad, "_current_level")]
)
def test_a_torch_that_cannot_tell_counts_as_watched(monkeypatch, owner, name):
    assert unwatched(torch.zeros(2))
    with monkeypatch.context() as missing:
        missing.delattr(owner, name)
        assert not unwatched(torch.zeros(2))


@pytest.mark.parametrize("way", ["private", "public"])
def test_forward_mode_is_noticed(monkeypatch, way):
    seen = []

    def look(x):
        seen.append(forward_mode())
        return x.sum()

    if way == "public":
        monkeypatch.setattr(private_torch, "forward_ad", SimpleNamespace(make_dual=forward_ad.make_dual))
    x = torch.zeros(3, 2)
    look(x)
    torch.func.vmap(torch.func.grad(look))(x)
    torch.func.jacrev(look)(x)
    assert not any(seen)
    seen.clear()
    torch.func.jvp(look, (x,), (x,))
    torch.func.hessian(look)(x)
    with forward_ad.dual_level():
        look(x)
    assert len(seen) == 3 and all(seen)


@pytest.mark.skipif(native.unsupported_reason() is not None, reason="no compiled kernels on this machine")
def test_through_the_operator_the_kernel_gives_the_same_numbers(monkeypatch):
    inputs = make_inputs(2, 20, 21, 3)
    direct = selective_scan(**inputs, delta_softplus=True, backend="cpu")
    monkeypatch.delattr(torch._C, "_len_torch_dispatch_stack")
    monkeypatch.setattr(cpu, "forward_in_c", lambda *arguments: pytest.fail("not through the operator"))
    assert torch.equal(selective_scan(**inputs, delta_softplus=True, backend="cpu"), direct)


def test_without_the_private_onednn_product_linear_is_f_linear(monkeypatch):
    x, weight, bias = torch.randn(3, 7, 5), torch.randn(11, 5), torch.randn(11)
    with_onednn = linear(x, weight, bias)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, weight, bias), with_onednn)
