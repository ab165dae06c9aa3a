"""The fused Mamba block of the CPU against the block composed of its operators."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from audio_mamba.models.mamba import Mamba
from audio_mamba.models.ops import native
from audio_mamba.models.ops.calls import BlockCall
from audio_mamba.models.ops.mamba_block import choose_fused, cpu

needs_kernels = pytest.mark.skipif(native.unsupported_reason() is not None, reason=str(native.unsupported_reason()))

BLOCKS = [
    {"d_model": 24, "d_state": 24, "expand": 3},
    {"d_model": 10, "d_state": 5, "d_conv": 3, "conv_bias": False, "bias": True},
    {"d_model": 200, "d_state": 6, "dt_rank": 4},
    {"d_model": 24, "d_state": 24, "expand": 3, "direction": "backward"},
    {"d_model": 24, "d_state": 24, "expand": 3, "direction": "both"},
    {"d_model": 10, "d_state": 5, "d_conv": 3, "conv_bias": False, "bias": True, "direction": "both"},
]
BOTH = BLOCKS[4]


def make(arguments, batch=2, length=37):
    torch.manual_seed(0)
    block = Mamba(**arguments)
    block.init_weights(depth=2)
    return block, torch.randn(batch, length, arguments["d_model"])


def output_and_gradients(function, block, hidden, dtype=torch.float32):
    leaf = hidden.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = function(leaf)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, [leaf, *block.parameters()], dy)]


@needs_kernels
@pytest.mark.parametrize("arguments", BLOCKS)
def test_no_further_from_float64_than_the_operators(poisoned, arguments):
    block, hidden = make(arguments)
    double = copy.deepcopy(block).double()
    double.backend = "reference"
    exact = output_and_gradients(double.compose, double, hidden.double())
    composed = output_and_gradients(block.compose, block, hidden)
    fused = output_and_gradients(lambda x: cpu.mamba_block(x, block), block, hidden)
    for one, other, true in zip(fused, composed, exact, strict=True):
        assert one.shape == other.shape and one.dtype == torch.float32
        assert (one - true).norm() <= 1.5 * (other - true).norm() + 1e-6 * true.norm()


@needs_kernels
@pytest.mark.parametrize("dtype, rounding", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("arguments", [BLOCKS[0], BOTH])
def test_under_autocast_as_the_operators_but_for_rounding(poisoned, arguments, dtype, rounding):
    block, hidden = make(arguments)
    composed = output_and_gradients(block.compose, block, hidden, dtype)
    fused = output_and_gradients(lambda x: cpu.mamba_block(x, block), block, hidden, dtype)
    for one, other in zip(fused, composed, strict=True):
        assert one.dtype == other.dtype
        assert (one.float() - other.float()).norm() <= rounding * other.float().norm()


@needs_kernels
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_the_same_bits_for_any_number_of_threads(direction):
    block, hidden = make(BLOCKS[2] | {"direction": direction}, batch=3)
    results = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            d_xz = output_and_gradients(lambda x: cpu.mamba_block(x, block), block, hidden)
        finally:
            torch.set_num_threads(before)
        results.append(d_xz)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@needs_kernels
@pytest.mark.parametrize("arguments", [BLOCKS[0], BOTH])
def test_recomputed_blocks_have_the_same_bits(arguments):
    block, hidden = make(arguments)
    kept = output_and_gradients(block, block, hidden)
    again = output_and_gradients(lambda x: checkpoint(block, x, use_reentrant=False), block, hidden)
    assert all(map(torch.equal, kept, again))


@needs_kernels
@pytest.mark.parametrize("arguments", [BLOCKS[0], BOTH])
def test_frozen_weights_get_no_gradient(arguments):
    block, hidden = make(arguments)
    wanted = output_and_gradients(block, block, hidden)[1]
    block.requires_grad_(False)
    leaf = hidden.clone().requires_grad_()
    y = block(leaf)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(leaf.grad, wanted) and all(p.grad is None for p in block.parameters())


@needs_kernels
def test_it_is_chosen_for_training_only(monkeypatch):
    monkeypatch.delenv("AUDIO_MAMBA_BACKEND", raising=False)
    block, hidden = make(BLOCKS[0])
    leaf = hidden.requires_grad_()
    assert choose_fused(BlockCall(leaf, block)) is cpu and choose_fused(BlockCall(leaf, block), "cpu") is cpu
    assert choose_fused(BlockCall(leaf, block), "reference") is None
    assert choose_fused(BlockCall(leaf.bfloat16(), block)) is None
    assert choose_fused(BlockCall(leaf, copy.deepcopy(block).bfloat16())) is None
    for taps, chosen in ((16, cpu), (17, None)):  # the kernels of the convolution have room for 16
        assert choose_fused(BlockCall(leaf, make(BLOCKS[0] | {"d_conv": taps})[0])) is chosen
    with torch.no_grad():
        assert choose_fused(BlockCall(leaf, block)) is None
    monkeypatch.setattr(native, "unsupported_reason", lambda *tensors: "no compiler")
    assert choose_fused(BlockCall(leaf, block)) is None
