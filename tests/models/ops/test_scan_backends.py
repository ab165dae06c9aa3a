"""Every CPU back end of the selective scan that this machine can run, against the reference in float64."""

import math

import pytest
import torch

from audio_mamba.models.ops.calls import ScanCall
from audio_mamba.models.ops.selective_scan import BACKENDS, reference, selective_scan
from tests.models.ops.scan_cases import (
    CPU_BACKENDS,
    ROWS,
    check_against_float64,
    inputs_of,
    make_inputs,
    outputs_and_gradients,
)


@pytest.fixture(params=[name for name in CPU_BACKENDS if name != "reference"])
def back_end(request):
    module = BACKENDS[request.param]
    if reason := module.unsupported_reason(ScanCall(**make_inputs(1, 1, 1, 1))):
        pytest.skip(reason)
    return module


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row)))
def test_outputs_and_every_gradient(back_end, poisoned, row):
    inputs, softplus = inputs_of(row)
    check_against_float64(back_end, inputs, softplus)


def test_different_numbers_of_groups(back_end):
    inputs = make_inputs(2, 12, 9, 3, groups=3) | {"C": make_inputs(2, 12, 9, 3, groups=4, seed=1)["C"]}
    check_against_float64(back_end, inputs)


@pytest.mark.parametrize("batch, channels, length", [(0, 6, 5), (2, 6, 0), (2, 0, 5)])
def test_empty_inputs(back_end, batch, channels, length):
    for inputs in (make_inputs(batch, channels, length, 2), make_inputs(batch, channels, length, 2, optional=False)):
        y, last = back_end.selective_scan(**inputs, return_last_state=True)
        assert y.shape == (batch, channels, length)
        assert last.shape == (batch, channels, 2) and (last == 0).all()


@pytest.mark.parametrize("missing", ["D", "z", "delta_bias"])
def test_each_optional_input(back_end, missing):
    inputs = make_inputs(2, 20, 40, 6)
    del inputs[missing]
    check_against_float64(back_end, inputs)


def test_causality(back_end):
    """The output at k has a gradient from each input up to k, and from none after it."""
    k, inputs = 20, {name: t.requires_grad_() for name, t in make_inputs(1, 5, 40, 3).items()}
    back_end.selective_scan(**inputs, delta_softplus=True)[..., k].sum().backward()
    for name in ("u", "delta", "B"):
        per_step = inputs[name].grad.abs().sum((0, 1))
        assert (per_step[k + 1 :] == 0).all() and (per_step[: k + 1] > 0).all(), name


def test_very_large_steps_and_growing_states(back_end):
    """Decays below the smallest float32 number, and above 1."""
    inputs = make_inputs(1, 18, 40, 4, optional=False)
    inputs["delta"] = torch.rand(1, 18, 40) * torch.tensor(10.0) ** torch.randint(-3, 4, (1, 18, 40))
    truth = outputs_and_gradients(reference, inputs, False, torch.float64)
    ours = outputs_and_gradients(back_end, inputs, False)
    for name, true in truth.items():
        assert torch.allclose(ours[name], true, rtol=1e-4, atol=1e-5 * true.abs().max().item()), name
    inputs["A"], inputs["delta"] = torch.full((18, 4), 0.5), torch.full((1, 18, 40), 0.1)
    check_against_float64(back_end, inputs, softplus=False)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C"])
def test_nan_is_not_lost(back_end, name):
    inputs = make_inputs(1, 18, 20, 4)
    inputs[name][..., -1] = math.nan
    assert back_end.selective_scan(**inputs, delta_softplus=True)[..., -1].isnan().all()


def test_same_bits_for_any_number_of_threads(back_end):
    if back_end.__name__.endswith("chunked"):
        pytest.skip("plain PyTorch does not promise it")
    inputs, before, results = make_inputs(2, 150, 70, 5), torch.get_num_threads(), []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        results.append(outputs_and_gradients(back_end, inputs))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


def test_training_saves_little_memory(back_end):
    """Saved for backward: a few tensors of B D L, and B D N states per chunk of time, not B D L N."""
    batch, channels, length, state = 2, 64, 512, 16
    inputs = {name: t.requires_grad_() for name, t in make_inputs(batch, channels, length, state).items()}
    saved = {}

    def pack(tensor):
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        back_end.selective_scan(**inputs, delta_softplus=True)
    assert sum(saved.values()) < batch * channels * length * (10 + state / 8)


def test_auto_takes_the_first_back_end_that_supports_the_call():
    inputs = make_inputs(1, 4, 6, 2)
    first = next(name for name in CPU_BACKENDS if BACKENDS[name].unsupported_reason(ScanCall(**inputs)) is None)
    assert torch.equal(selective_scan(**inputs), selective_scan(**inputs, backend=first))
    double = {name: t.double() for name, t in inputs.items()}
    assert torch.equal(selective_scan(**double), selective_scan(**double, backend="reference"))


def test_errors_name_the_wrong_argument():
    inputs = make_inputs(1, 4, 6, 2)
    with pytest.raises(ValueError, match="'fastest'.*cpu"):
        selective_scan(**inputs, backend="fastest")
    with pytest.raises(ValueError, match=r"u must be floating-point, got torch.int64"):
        selective_scan(**inputs | {"u": inputs["u"].long()})
    with pytest.raises(ValueError, match=r"delta must be \[1, 4, 6\]"):
        selective_scan(**inputs | {"delta": torch.zeros(1, 4, 5)})
    with pytest.raises(ValueError, match=r"B must be .*G dividing 4"):
        selective_scan(**inputs | {"B": torch.zeros(1, 3, 2, 6)})
    with pytest.raises(RuntimeError, match="'cpu' does not support this call.*float64"):
        selective_scan(**{name: t.double() for name, t in inputs.items()}, backend="cpu")
