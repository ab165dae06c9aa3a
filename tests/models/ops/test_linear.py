import pytest
import torch
import torch.nn.functional as F

from audio_mamba.models.ops.linear import linear

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def products(monkeypatch):
    """Records the calls of F.linear."""
    plain, calls = F.linear, []
    monkeypatch.setattr(F, "linear", lambda *args: calls.append(args) or plain(*args))
    return calls


@pytest.mark.parametrize("shape, out", [((3, 7, 5), 11), ((251, 192), 1152), ((1, 1, 12), 576), ((0, 4), 2)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_as_close_to_float64_as_f_linear(shape, out, with_bias):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(out, shape[-1], generator=generator)
    bias = torch.randn(out, generator=generator) if with_bias else None
    exact = F.linear(x.double(), weight.double(), bias if bias is None else bias.double())
    ours, plain = linear(x, weight, bias), F.linear(x, weight, bias)
    assert ours.shape == plain.shape and ours.dtype == torch.float32
    if x.numel():
        assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6


@needs_onednn
def test_without_gradients_onednn_is_used(monkeypatch):
    calls = products(monkeypatch)
    x, weight = torch.randn(2, 5), torch.nn.Parameter(torch.randn(3, 5))
    with torch.no_grad():
        linear(x, weight)
    assert not calls


@pytest.mark.parametrize("x_needs, weight_needs", [(True, False), (False, True)])
def test_with_gradients_f_linear_is_used(monkeypatch, x_needs, weight_needs):
    calls = products(monkeypatch)
    x, weight = torch.randn(2, 5, requires_grad=x_needs), torch.randn(3, 5, requires_grad=weight_needs)
    assert linear(x, weight).requires_grad and len(calls) == 1


def test_autocast_and_other_dtypes_use_f_linear():
    x, weight = torch.randn(2, 5), torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight), F.linear(x.bfloat16(), weight.bfloat16()))
    assert torch.equal(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))


def test_strided_inputs_are_read_as_they_are():
    x, weight = torch.randn(2, 6, 9)[:, ::2].transpose(1, 2), torch.randn(4, 3)
    torch.testing.assert_close(linear(x, weight), F.linear(x.contiguous(), weight))
