"""The causal convolution, compiled and in plain PyTorch, against conv1d in float64."""

import functools

import pytest
import torch
import torch.nn.functional as F

from audio_mamba.models.ops import native
from audio_mamba.models.ops.causal_conv1d import BACKENDS, causal_conv1d

needs_kernels = pytest.mark.skipif(
    native.unsupported_reason() is not None, reason="no compiled kernels on this machine"
)
SHAPES = [(1, 1, 1, 4), (2, 33, 63, 4), (3, 5, 2, 3), (2, 576, 131, 4), (1, 16, 300, 1), (2, 8, 20, 17)]


@pytest.fixture(params=["auto", "reference"])
def back_end(request):
    return request.param


def expected(x, weight, bias, activation):
    padded = F.pad(x.double(), (weight.shape[1] - 1, 0))
    y = F.conv1d(padded, weight.double()[:, None], bias if bias is None else bias.double(), groups=len(weight))
    return F.silu(y) if activation else y


@pytest.mark.parametrize("batch, channels, length, taps", SHAPES)
@pytest.mark.parametrize("activation, has_bias", [("silu", True), (None, False)])
def test_outputs_and_gradients(back_end, batch, channels, length, taps, activation, has_bias):
    torch.manual_seed(0)
    x = torch.randn(batch, length, 2 * channels)[..., :channels].transpose(1, 2)  # a view, as in the Mamba block
    inputs = [x, torch.randn(channels, taps), *([torch.randn(channels)] if has_bias else [])]
    results = []
    for convolve in (functools.partial(causal_conv1d, backend=back_end), expected):
        leaves = [t.detach().requires_grad_() for t in inputs]
        y = convolve(*leaves, *([] if has_bias else [None]), activation)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        results.append([y, *torch.autograd.grad((y * weights).sum(), leaves)])
    for ours, true in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), true.double(), rtol=1e-5, atol=1e-6 * true.abs().max().item() + 1e-7)


def test_causality(back_end):
    x = torch.randn(1, 5, 30).requires_grad_()
    causal_conv1d(x, torch.randn(5, 4), None, "silu", back_end)[..., 20].sum().backward()
    assert x.grad.abs().sum((0, 1)).nonzero().flatten().tolist() == [17, 18, 19, 20]


def test_low_precision_keeps_its_dtype(back_end):
    x, weight = torch.randn(2, 8, 40), torch.randn(8, 4)
    y = causal_conv1d(x.bfloat16(), weight, None, "silu", back_end)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected(x.bfloat16(), weight, None, "silu"), rtol=2e-2, atol=2e-2)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("taps", [3, 4])
def test_low_precision_is_float32_inside(poisoned, dtype, taps):
    """Outputs and gradients are those in float32 of the same inputs, rounded once."""
    x, weight, dy = torch.randn(2, 20, 70).to(dtype), torch.randn(20, taps), torch.randn(2, 20, 70).to(dtype)
    x[0, 0, 5], x[0, 1, 6] = float("nan"), float("inf")
    results = []
    for one in (x, x.float()):
        leaves = one.clone().requires_grad_(), weight.clone().requires_grad_()
        y = causal_conv1d(*leaves, None, "silu", backend="cpu")
        results.append([y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    for rounded, exact in zip(*results, strict=True):
        assert torch.equal(rounded.nan_to_num(nan=1.5), exact.to(rounded.dtype).nan_to_num(nan=1.5))


def test_unknown_activation():
    with pytest.raises(ValueError, match="'gelu'"):
        causal_conv1d(torch.zeros(1, 1, 1), torch.zeros(1, 1), None, "gelu")


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize(
    "x, weight, bias, message",
    [
        ((6, 5), (6, 4), None, r"x must be \[B, D, L\], got \[6, 5\]"),
        ((1, 6, 5), (3, 4), None, r"weight must be \[6, K\] to fit x, with at least one tap, got \[3, 4\]"),
        ((1, 6, 5), (1, 4), None, r"weight must be .* got \[1, 4\]"),
        ((1, 6, 5), (6, 0), None, r"weight must be .* got \[6, 0\]"),
        ((1, 6, 5), (6, 1, 4), None, r"weight must be .* got \[6, 1, 4\]"),
        ((1, 6, 5), (6, 4), (2,), r"bias must be \[6\] to fit x, got \[2\]"),
        ((1, 6, 5), (6, 4), (1,), r"bias must be .* got \[1\]"),
    ],
)
def test_shapes_that_do_not_fit(backend, x, weight, bias, message):
    """The kernels would read and write beyond the tensors."""
    with pytest.raises(ValueError, match=f"^causal_conv1d: {message}$"):
        causal_conv1d(torch.ones(x), torch.ones(weight), bias and torch.ones(bias), backend=backend)


def test_same_bits_for_any_number_of_threads():
    x, weight = torch.randn(2, 100, 90), torch.randn(100, 4).requires_grad_()
    before, results = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        results.append(torch.autograd.grad(causal_conv1d(x, weight, None, "silu").sum(), weight)[0])
    torch.set_num_threads(before)
    assert torch.equal(*results)


@needs_kernels
def test_operator():
    x = torch.randn(2, 9, 20).requires_grad_()  # [B, L, D]
    weight, bias = torch.randn(20, 4).requires_grad_(), torch.randn(20).requires_grad_()
    torch.library.opcheck(torch.ops.audio_mamba.causal_conv1d_cpu, (x, weight, bias, True))
    torch.library.opcheck(torch.ops.audio_mamba.causal_conv1d_cpu, (x, weight, None, False))
