"""The chunked mLSTM cell against the equation in float64: values, every gradient, odd lengths, extreme gates."""

import re

import pytest
import torch

from audio_mamba.models.ops.mlstm import chunked, mlstm, parallel

LENGTHS = [1, 2, 63, 64, 65, 129, 251, 300]


def inputs(length, width=8, dtype=torch.float64, gates=3.0):
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, width, generator=generator, dtype=dtype) for _ in range(3))
    i, f = (gates * torch.randn(2, 3, length, generator=generator, dtype=dtype) for _ in range(2))
    return [tensor.requires_grad_() for tensor in (q, k, v, i, f)]


def loop(q, k, v, i, f):
    """The recurrence of the paper (its equations 19 to 27 with the stabiliser of appendix A), step by step."""
    rows, width = [], q.shape[-1]
    C = q.new_zeros(*q.shape[:2], width, width)
    n, m = q.new_zeros(*q.shape[:2], width), q.new_full(q.shape[:2], -torch.inf)
    for t in range(q.shape[2]):
        log_f = torch.nn.functional.logsigmoid(f[:, :, t])
        new_m = torch.maximum(log_f + m, i[:, :, t])
        keep, write = torch.exp(log_f + m - new_m), torch.exp(i[:, :, t] - new_m)
        key = k[:, :, t] / width**0.5
        C = keep[..., None, None] * C + write[..., None, None] * key[..., :, None] * v[:, :, t, None, :]
        n, m = keep[..., None] * n + write[..., None] * key, new_m
        query = q[:, :, t]
        scale = torch.maximum((n * query).sum(-1).abs(), torch.exp(-m)) + 1e-6
        rows.append((query[..., None, :] @ C).squeeze(-2) / scale[..., None])
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("length", [1, 7, 70])
def test_the_equation_equals_the_recurrence(length):
    q, k, v, i, f = (tensor.detach() for tensor in inputs(length))
    torch.testing.assert_close(parallel.mlstm(q, k, v, i, f), loop(q, k, v, i, f), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_equal_the_equation_with_all_gradients(length):
    tensors = inputs(length)
    expected, found = parallel.mlstm(*tensors), chunked.mlstm(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), tensors),
        torch.autograd.grad((expected * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * theirs.abs().max().item() + 1e-12)


@pytest.mark.parametrize("shift", [0.0, -20.0, -60.0])
@pytest.mark.parametrize("cell", [parallel.mlstm, chunked.mlstm])
def test_nearly_closed_input_gates_give_the_recurrence(cell, shift):
    """What they let in counts little against the 1 in the denominator, exp(-m) times as large."""
    q, k, v, i, f = (tensor.detach() for tensor in inputs(70))
    single = [tensor.float() for tensor in (q, k, v, i + shift, f)]
    exact = loop(*(tensor.double() for tensor in single))
    torch.testing.assert_close(cell(*single).double(), exact, rtol=1e-3, atol=1e-4 * exact.abs().max().item())


@pytest.mark.parametrize("gates", [1.0, 30.0, 300.0])
def test_extreme_gates_stay_finite(gates):
    tensors = inputs(200, dtype=torch.float32, gates=gates)
    h = mlstm(*tensors)
    grads = torch.autograd.grad(h.square().sum(), tensors)
    assert all(torch.isfinite(tensor).all() for tensor in (h, *grads))


def test_float32_is_about_as_exact_as_the_equation_in_float32():
    exact = inputs(251, width=96)
    expected = parallel.mlstm(*exact)
    single = [tensor.detach().float() for tensor in exact]
    errors = [(cell(*single) - expected).abs() for cell in (chunked.mlstm, parallel.mlstm)]
    assert errors[0].median() <= 2 * errors[1].median()


def test_no_step_sees_a_later_one():
    q, k, v, i, f = inputs(130)
    for cell in (chunked.mlstm, parallel.mlstm):
        grads = torch.autograd.grad(cell(q, k, v, i, f)[:, :, 66].sum(), (q, k, v, i, f))
        assert all(not grad[:, :, 67:].any() for grad in grads) and all(grad[:, :, 66].any() for grad in grads[:1])


def test_without_gradients_long_and_short_inputs_take_either_way(monkeypatch):
    tensors = [tensor.detach() for tensor in inputs(100)]
    short = mlstm(*tensors)
    monkeypatch.setattr("audio_mamba.models.ops.mlstm.LONGEST_PARALLEL", 50)
    torch.testing.assert_close(mlstm(*tensors), short, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("longest", [50, 1024])
def test_gradients_either_way(monkeypatch, longest):
    monkeypatch.setattr("audio_mamba.models.ops.mlstm.LONGEST_PARALLEL", longest)
    tensors = inputs(100)
    expected = torch.autograd.grad(parallel.mlstm(*tensors).square().sum(), tensors)
    for ours, theirs in zip(torch.autograd.grad(mlstm(*tensors).square().sum(), tensors), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_comes_back_in_its_own_dtype(dtype):
    tensors = [tensor.detach().to(dtype) for tensor in inputs(80, gates=1.0)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = mlstm(*tensors)
    expected = parallel.mlstm(*(tensor.double() for tensor in tensors))
    assert h.dtype == dtype
    torch.testing.assert_close(h.double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("longest", [0, 1024])
@pytest.mark.parametrize(
    "name, shape", [("q", (9, 4)), ("k", (2, 1, 9, 4)), ("v", (2, 3, 9, 5)), ("i", (2, 3, 1)), ("f", (9,))]
)
def test_shapes_that_do_not_fit(monkeypatch, longest, name, shape):
    monkeypatch.setattr("audio_mamba.models.ops.mlstm.LONGEST_PARALLEL", longest)
    tensors = dict(zip("qkvif", inputs(9, width=4), strict=True)) | {name: torch.ones(shape)}
    with pytest.raises(ValueError, match=f"^mlstm: {name} must be .* got {re.escape(str(list(shape)))}$"):
        mlstm(**tensors)
