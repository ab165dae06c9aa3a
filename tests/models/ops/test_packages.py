"""The adapters to mamba-ssm and causal-conv1d, tested with stand-ins that compute what the packages document."""

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from audio_mamba.models.mamba import Mamba
from audio_mamba.models.ops import mamba_block, packages
from audio_mamba.models.ops.calls import BlockCall, ConvCall, ScanCall
from audio_mamba.models.ops.causal_conv1d import package as conv_package
from audio_mamba.models.ops.selective_scan import package, reference, selective_scan
from tests.models.ops.scan_cases import make_inputs


@pytest.fixture(autouse=True)
def fresh_process():
    packages._module_or_reason.cache_clear()
    yield
    packages._module_or_reason.cache_clear()


def install(monkeypatch, versions, compiled=True, module=None):
    """Makes it look as if these packages were installed."""

    def version(package):
        if package not in versions:
            raise PackageNotFoundError(package)
        return versions[package]

    def import_module(name):
        if module is None:
            raise ImportError(f"no symbol in {name}")
        return module

    monkeypatch.setattr(packages, "version", version)
    monkeypatch.setattr(packages, "find_spec", lambda name: object() if compiled else None)
    monkeypatch.setattr(packages, "import_module", import_module)


class TestReasons:
    def test_not_installed(self, monkeypatch):
        install(monkeypatch, {})
        assert packages.unavailable_reason("mamba-ssm") == "the package mamba-ssm is not installed"
        with pytest.raises(RuntimeError, match="not installed"):
            packages.module("mamba-ssm")

    @pytest.mark.parametrize("version, fits", [("1.0.1", False), ("1.1.3", True), ("2.3.2.post1", True), ("3", False)])
    def test_version(self, monkeypatch, version, fits):
        install(monkeypatch, {"mamba-ssm": version}, module=SimpleNamespace())
        reason = packages.unavailable_reason("mamba-ssm")
        assert reason is None if fits else version in reason

    def test_built_without_the_kernels(self, monkeypatch):
        install(monkeypatch, {"mamba-ssm": "2.3.2.post1"}, compiled=False)
        assert "without its module selective_scan_cuda" in packages.unavailable_reason("mamba-ssm")

    def test_broken(self, monkeypatch):
        install(monkeypatch, {"causal-conv1d": "1.7.0"})
        assert "cannot be imported: ImportError: no symbol" in packages.unavailable_reason("causal-conv1d")

    @pytest.mark.parametrize(
        "scan, convolution, newer, fits",
        [
            ("1.1.3", "1.1.1", False, True),
            ("1.1.3", "1.7.0", False, False),
            ("2.2.2", "1.7.0", False, False),
            ("2.3.2.post1", "1.7.0", True, True),
        ],
    )
    def test_the_two_together(self, monkeypatch, scan, convolution, newer, fits):
        module = SimpleNamespace(causal_conv1d_fwd_function=print) if newer else SimpleNamespace()
        install(monkeypatch, {"mamba-ssm": scan, "causal-conv1d": convolution}, module=module)
        reason = packages.incompatible_reason()
        assert (
            reason is None
            if fits
            else reason == f"mamba-ssm {scan} cannot call the kernels of causal-conv1d {convolution}"
        )

    def test_tensors(self):
        inputs = make_inputs(1, 2, 3, 2)
        with pytest.raises(RuntimeError, match="'mamba_ssm' does not support this call.*cpu"):
            selective_scan(**inputs, backend="mamba_ssm")
        meta = {name: t.to("meta") for name, t in inputs.items()}
        assert "meta" in package.unsupported_reason(ScanCall(**meta))


@pytest.fixture
def stand_ins(monkeypatch):
    """Both packages, in plain PyTorch and for CPU tensors."""

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
    ):
        assert B.dim() == C.dim() and B.shape == C.shape
        assert u.dtype == delta.dtype == B.dtype == C.dtype and A.dtype == D.dtype == delta_bias.dtype == torch.float32
        return reference.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)

    def causal_conv1d_fn(x, weight, bias, activation):
        taps = weight.shape[1]
        assert 2 <= taps <= 4 and bias is not None and activation == "silu"
        return F.silu(F.conv1d(F.pad(x, (taps - 1, 0)), weight[:, None], bias, groups=len(weight)))

    def mamba_inner_fn(
        xz,
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        out_proj_weight,
        out_proj_bias,
        A,
        B=None,
        C=None,
        D=None,
        delta_bias=None,
        B_proj_bias=None,
        C_proj_bias=None,
        delta_softplus=True,
    ):
        assert B is None and C is None and conv1d_weight.dim() == 3 and xz.stride(-1) == 1
        x, z = xz.chunk(2, dim=1)
        x = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, "silu")
        rank, state = delta_proj_weight.shape[1], A.shape[1]
        dt, B, C = (x_proj_weight @ x).split([rank, state, state], dim=1)
        y = selective_scan_fn(x, delta_proj_weight @ dt, A, B, C, D, z, delta_bias, delta_softplus)
        return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)

    module = SimpleNamespace(
        selective_scan_fn=selective_scan_fn,
        causal_conv1d_fn=causal_conv1d_fn,
        mamba_inner_fn=mamba_inner_fn,
        causal_conv1d_fwd_function=object(),
    )
    install(monkeypatch, {"mamba-ssm": "2.3.2", "causal-conv1d": "1.7.0"}, module=module)
    monkeypatch.setattr(packages, "DEVICE", "cpu")
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_scan(stand_ins, dtype):
    inputs = make_inputs(2, 6, 5, 3, dtype=dtype, groups=2)
    ours = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend="mamba_ssm")
    plain = reference.selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    assert all(torch.equal(*pair) for pair in zip(ours, plain, strict=True))


def test_different_numbers_of_groups(stand_ins):
    inputs = make_inputs(2, 12, 5, 3, groups=3)
    for C in (make_inputs(2, 12, 5, 3, groups=4)["C"], make_inputs(2, 12, 5, 3)["C"]):
        pair = (back_end.selective_scan(**inputs | {"C": C}) for back_end in (package, reference))
        torch.testing.assert_close(*pair)


def test_a_gradient_of_the_last_state_is_computed_by_another_back_end(stand_ins):
    inputs = {name: t.requires_grad_() for name, t in make_inputs(1, 2, 3, 2).items()}
    with pytest.raises(RuntimeError, match="no gradient of the last state"):
        selective_scan(**inputs, return_last_state=True, backend="mamba_ssm")
    selective_scan(**inputs, return_last_state=True)[1].sum().backward()
    assert inputs["u"].grad.abs().sum() > 0


def test_the_fused_block_equals_its_parts(stand_ins, monkeypatch):
    torch.manual_seed(0)
    mixer, hidden = Mamba(8, d_state=3), torch.randn(2, 7, 8)
    mixer.init_weights(depth=2)
    torch.nn.init.normal_(mixer.D)
    results = []
    for backend in ("reference", "auto"):
        mixer.backend = backend
        if backend == "auto":
            monkeypatch.setattr("audio_mamba.models.mamba.selective_scan", lambda *arguments: pytest.fail("not fused"))
        y = mixer(hidden)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))])
    for parts, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, parts, rtol=1e-4, atol=1e-5)


def test_an_output_bias_is_fused_if_it_needs_no_gradient(stand_ins, monkeypatch):
    """The package's own gradient of it is wrong: the sum over all its entries."""
    torch.manual_seed(0)
    mixer, hidden = Mamba(8, d_state=3, bias=True), torch.randn(2, 7, 8)
    mixer.init_weights(depth=2)
    torch.nn.init.normal_(mixer.D)
    fused, plain = stand_ins.mamba_inner_fn, mixer(hidden)
    stand_ins.mamba_inner_fn = lambda *arguments, **options: pytest.fail("fused with gradients")
    mixer(hidden).sum().backward()
    stand_ins.mamba_inner_fn = fused
    monkeypatch.setattr("audio_mamba.models.mamba.selective_scan", lambda *arguments: pytest.fail("not fused"))
    with torch.no_grad():
        torch.testing.assert_close(mixer(hidden), plain, rtol=1e-4, atol=1e-5)


def test_five_taps_are_not_fused(stand_ins):
    mixer, hidden = Mamba(8, d_state=3, d_conv=5), torch.randn(1, 4, 8)
    mixer.init_weights(depth=2)
    stand_ins.mamba_inner_fn = None
    assert mixer(hidden).shape == hidden.shape


@pytest.mark.parametrize("direction", ["backward", "both"])
def test_what_walks_backward_is_computed_by_the_next_back_ends(stand_ins, direction):
    torch.manual_seed(0)
    mixer, hidden = Mamba(8, d_state=3, direction=direction), torch.randn(2, 7, 8)
    mixer.init_weights(depth=2)
    assert "does not walk backward" in mamba_block.package.unsupported_reason(BlockCall(hidden, mixer))
    stand_ins.mamba_inner_fn = None
    results = []
    for backend in ("reference", "auto"):
        mixer.backend = backend
        y = mixer(hidden)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(mixer.parameters()))])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_convolutions_that_the_package_supports(stand_ins):
    weight, bias, rows = torch.zeros(16, 4), torch.zeros(16), torch.zeros(2, 9, 32)

    def fits(x, weight, bias=bias):
        return conv_package.unsupported_reason(ConvCall(x, weight, bias)) is None

    assert fits(rows[..., :16].transpose(1, 2), weight)  # as in the block
    assert fits(torch.zeros(2, 16, 9), weight)
    assert not fits(torch.zeros(2, 9, 12).transpose(1, 2), weight[:12])  # strides of 12
    assert not fits(torch.zeros(2, 16, 9), torch.zeros(16, 5))
    assert not fits(torch.zeros(2, 16, 9, dtype=torch.float64), weight)
    assert not fits(torch.zeros(2, 16, 9), weight, None)
