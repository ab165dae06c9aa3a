"""Our Triton kernels of the causal convolution: interpreted, or on a CUDA device if there is one."""

import pytest
import torch

pytest.importorskip("triton")

from audio_mamba.models.ops.causal_conv1d import triton
from tests.conftest import DEVICE, runs_on_device
from tests.models.ops.test_causal_conv1d import expected

pytestmark = runs_on_device


@pytest.mark.parametrize(
    "batch, channels, length, taps, silu, has_bias, dtype",
    [
        (1, 1, 1, 4, True, True, torch.float32),
        (2, 33, 63, 4, True, True, torch.float32),
        (1, 65, 64, 4, True, False, torch.float32),
        (1, 3, 130, 4, True, True, torch.float32),
        (3, 5, 2, 3, False, True, torch.float32),
        (1, 16, 65, 1, True, True, torch.float32),
        (1, 6, 40, 9, False, False, torch.float32),
        (2, 7, 33, 4, True, True, torch.float16),
        (1, 7, 9, 4, True, True, torch.bfloat16),
    ],
)
def test_outputs_and_gradients(batch, channels, length, taps, silu, has_bias, dtype, poisoned):
    torch.manual_seed(0)
    x = torch.randn(batch, length, 2 * channels)[..., :channels].transpose(1, 2).to(dtype)  # a view, as in the block
    inputs = [x, torch.randn(channels, taps), *([torch.randn(channels)] if has_bias else [])]
    weights = torch.randn(batch, channels, length)
    results = []
    for convolve, device in ((triton.causal_conv1d, DEVICE), (expected, "cpu")):
        leaves = [t.detach().to(device).requires_grad_() for t in inputs]
        y = convolve(*leaves, *([] if has_bias else [None]), "silu" if silu else None)
        results.append([y, *torch.autograd.grad(y, leaves, weights.to(y))])
    rounding = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for ours, true, like in zip(*results, [x, *inputs], strict=True):
        assert ours.dtype == like.dtype
        torch.testing.assert_close(
            ours.double().cpu(), true.double(), rtol=10 * rounding, atol=rounding * true.abs().max().item() + 1e-7
        )


@pytest.mark.parametrize("length, taps", [(70, 4), (2, 3), (33, 1)])
def test_backward_in_time(length, taps, poisoned):
    """As flipped by hand, in the interpreter bit for bit. A GPU may sum in another order."""
    torch.manual_seed(0)
    x = torch.randn(2, length, 10, device=DEVICE)[..., :5].transpose(1, 2)
    inputs = [x, torch.randn(5, taps, device=DEVICE), torch.randn(5, device=DEVICE)]
    weights = torch.randn(2, 5, length, device=DEVICE)
    results = []
    for by_hand in (False, True):
        x, weight, bias = leaves = [t.detach().requires_grad_() for t in inputs]
        if by_hand:
            y = triton.causal_conv1d(x.flip(-1), weight, bias, "silu").flip(-1)
        else:
            y = triton.causal_conv1d(x, weight, bias, "silu", reverse=True)
        results.append([y, *torch.autograd.grad(y, leaves, weights)])
    for backward, flipped in zip(*results, strict=True):
        if DEVICE == "cpu":
            assert torch.equal(backward, flipped)
        torch.testing.assert_close(backward, flipped)


def test_inference_calls_the_kernel_without_the_dispatcher(monkeypatch):
    x, weight = torch.randn(1, 3, 9, device=DEVICE), torch.randn(3, 4, device=DEVICE, requires_grad=True)
    through_operator = triton.causal_conv1d(x, weight, None, "silu")
    monkeypatch.setattr(torch.ops.audio_mamba, "causal_conv1d_triton", None)
    with torch.no_grad():
        assert torch.equal(triton.causal_conv1d(x, weight, None, "silu"), through_operator)
    with pytest.raises(TypeError):
        triton.causal_conv1d(x, weight, None, "silu")


def test_no_time():
    x = torch.zeros(2, 3, 0, device=DEVICE, requires_grad=True)
    weight = torch.ones(3, 4, device=DEVICE, requires_grad=True)
    triton.causal_conv1d(x, weight, None, "silu").sum().backward()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("has_bias, reverse", [(True, False), (False, False), (True, True)])
def test_opcheck(has_bias, reverse):
    x = torch.randn(1, 5, 3, device=DEVICE, requires_grad=True)  # [B, L, D]
    weight = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    bias = torch.randn(3, device=DEVICE, requires_grad=True) if has_bias else None
    torch.library.opcheck(torch.ops.audio_mamba.causal_conv1d_triton, (x, weight, bias, True, reverse))
    x, weight = x.detach(), weight.detach()
    torch.library.opcheck(
        torch.ops.audio_mamba.causal_conv1d_triton_backward,
        (torch.randn_like(x), x, weight, None if bias is None else bias.detach(), True, reverse),
    )
