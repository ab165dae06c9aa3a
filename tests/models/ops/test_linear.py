"""The linear layer by both libraries, and how one is chosen."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from audio_mamba.models.ops import linear as linear_module
from audio_mamba.models.ops import linear_choice as choosing
from audio_mamba.models.ops.linear import Linear, linear
from audio_mamba.models.ops.private_torch import has_onednn_linear

needs_onednn = pytest.mark.skipif(not has_onednn_linear(), reason="this PyTorch has no oneDNN")
SHAPES = [((5,), 11), ((3, 7, 5), 11), ((502, 192), 1152), ((2, 251, 576), 60), ((1, 1, 12), 576), ((4, 100, 192), 192)]


@pytest.fixture(params=["torch", pytest.param("onednn", marks=needs_onednn)])
def library(request, monkeypatch):
    monkeypatch.setattr(choosing, "_choice", request.param)
    return request.param


@pytest.fixture
def onednn(monkeypatch):
    monkeypatch.setattr(choosing, "_choice", "onednn")


@pytest.fixture
def nothing_chosen(monkeypatch, tmp_path):
    """A process that has not chosen yet, on a machine that has measured nothing."""
    monkeypatch.setattr(choosing, "_choice", None)
    monkeypatch.delenv("AUDIO_MAMBA_LINEAR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "audio_mamba"


@pytest.fixture
def onednn_calls(monkeypatch):
    """Counts the products by oneDNN."""
    plain, calls = linear_module.onednn_linear, []
    monkeypatch.setattr(linear_module, "onednn_linear", lambda *args: calls.append(args) or plain(*args))
    return calls


def output_and_gradients(function, x, weight, bias, dtype):
    leaves = [t.to(dtype).requires_grad_() for t in (x, weight, bias) if t is not None]
    y = function(*leaves)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y, *torch.autograd.grad(y, leaves, dy.to(dtype))]


@pytest.mark.parametrize("shape, out", SHAPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_no_further_from_float64_than_plain_pytorch(library, poisoned, shape, out, with_bias):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(shape, generator=generator), torch.randn(out, shape[-1], generator=generator)
    bias = torch.randn(out, generator=generator) if with_bias else None
    exact = output_and_gradients(F.linear, x, weight, bias, torch.float64)
    plain = output_and_gradients(F.linear, x, weight, bias, torch.float32)
    ours = output_and_gradients(linear, x, weight, bias, torch.float32)
    for one, other, true in zip(ours, plain, exact, strict=True):
        assert one.shape == other.shape and one.dtype == torch.float32
        assert (one - true).norm() <= 1.5 * (other - true).norm() + 1e-6 * true.norm()


def test_empty_inputs(library):
    x, weight = torch.zeros(0, 4, requires_grad=True), torch.zeros(2, 4, requires_grad=True)
    y = linear(x, weight)
    y.sum().backward()
    assert y.shape == (0, 2) and x.grad.shape == (0, 4) and (weight.grad == 0).all()


@pytest.mark.parametrize("weight, bias", [((4, 6), None), ((2, 4, 5), None), ((4, 5), (3,))])
def test_shapes_that_do_not_fit_get_the_message_of_plain_pytorch(library, weight, bias):
    inputs = torch.ones(3, 5), torch.ones(weight), bias and torch.ones(bias)
    with pytest.raises(RuntimeError) as expected:
        F.linear(*inputs)
    with pytest.raises(RuntimeError) as raised:
        linear(*inputs)
    assert str(raised.value) == str(expected.value)


@needs_onednn
@pytest.mark.parametrize("x_needs, weight_needs, products", [(False, False, 1), (True, False, 2), (False, True, 2)])
def test_onednn_multiplies_forward_and_backward(onednn, onednn_calls, x_needs, weight_needs, products):
    x, weight = torch.randn(2, 5, requires_grad=x_needs), torch.randn(3, 5, requires_grad=weight_needs)
    y = linear(x, weight)
    if y.requires_grad:
        y.sum().backward()
    assert len(onednn_calls) == products


@needs_onednn
def test_the_module_is_torch_own_but_for_the_product(onednn, onednn_calls):
    torch.manual_seed(0)
    ours, x = Linear(5, 3), torch.randn(2, 5)
    plain = nn.Linear(5, 3)
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), plain(x))
    assert isinstance(ours, nn.Linear) and len(onednn_calls) == 1


@needs_onednn
def test_autocast_and_other_types_are_left_to_plain_pytorch(onednn, onednn_calls):
    x, weight = torch.randn(2, 5), torch.randn(3, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight), F.linear(x.bfloat16(), weight.bfloat16()))
    assert torch.equal(linear(x.double(), weight.double()), F.linear(x.double(), weight.double()))
    assert not onednn_calls


@needs_onednn
def test_a_user_may_switch_onednn_off(onednn, onednn_calls):
    with torch.backends.mkldnn.flags(enabled=False):
        linear(torch.randn(2, 5), torch.randn(3, 5))
    assert not onednn_calls


@needs_onednn
def test_compiled_and_exported_graphs_hold_the_plain_function(onednn, onednn_calls):
    layer, x = Linear(5, 3), torch.randn(2, 5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(layer, (x,))
    assert any("linear" in str(node.target) for node in exported.graph.nodes)
    for function in (compiled, exported.module(), torch.func.vmap(layer)):
        torch.testing.assert_close(function(x), F.linear(x, layer.weight, layer.bias))
    assert not onednn_calls


def test_second_derivatives(library):
    torch.manual_seed(0)
    inputs = [torch.randn(4, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)]

    def penalty(function):
        first = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)

    torch.testing.assert_close(penalty(linear), penalty(F.linear))


def test_strided_inputs(library):
    x = torch.randn(2, 6, 9)[:, ::2].transpose(1, 2).requires_grad_()
    weight = torch.randn(4, 3, requires_grad=True)
    ours, plain = linear(x, weight), F.linear(x.contiguous(), weight)
    torch.testing.assert_close(ours, plain)
    # A gradient of one number, expanded
    pair = [torch.autograd.grad(y.sum(), (x, weight)) for y in (ours, plain)]
    torch.testing.assert_close(*pair)


@needs_onednn
def test_the_same_bits_each_time(onednn):
    torch.manual_seed(0)
    x, weight = torch.randn(4016, 192), torch.randn(576, 192)
    results = [output_and_gradients(linear, x, weight, None, torch.float32) for _ in range(3)]
    assert all(torch.equal(*pair) for result in results[1:] for pair in zip(result, results[0], strict=True))


@needs_onednn
class TestChoice:
    def test_it_is_measured_once_and_kept(self, nothing_chosen, monkeypatch):
        measured = []
        monkeypatch.setattr(choosing, "_measure", lambda: measured.append(1) or "onednn")
        assert choosing.linear_choice() == "onednn"
        monkeypatch.setattr(choosing, "_choice", None)
        assert choosing.linear_choice() == "onednn" and len(measured) == 1
        (kept,) = nothing_chosen.iterdir()
        kept.write_text("gibberish")
        monkeypatch.setattr(choosing, "_choice", None)
        assert choosing.linear_choice() == "onednn" and len(measured) == 2

    def test_threads_that_ask_at_once_share_one_measurement(self, nothing_chosen, monkeypatch):
        together, measured = Barrier(4), []

        def measure():
            measured.append(1)
            time.sleep(0.2)
            return choosing.CHOICES[len(measured) % 2]

        def ask(_):
            together.wait()
            return choosing.linear_choice()

        monkeypatch.setattr(choosing, "_measure", measure)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, range(4))) == ["onednn"] * 4
        assert len(measured) == 1

    def test_without_a_folder_each_process_measures(self, nothing_chosen, monkeypatch):
        nothing_chosen.write_text("a file where the folder should be")
        monkeypatch.setattr(choosing, "_measure", lambda: "onednn")
        assert choosing.linear_choice() == "onednn"

    def test_without_a_home_each_process_measures(self, nothing_chosen, monkeypatch):
        """As in a container whose user has a number alone."""
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
        with pytest.raises(RuntimeError, match="home"):
            Path.home()
        monkeypatch.setattr(choosing, "_measure", lambda: "onednn")
        assert choosing.linear_choice() == "onednn"

    def test_the_measurement_leaves_the_random_numbers_alone(self, nothing_chosen):
        before = torch.get_rng_state()
        assert choosing._measure() in choosing.CHOICES
        assert torch.equal(before, torch.get_rng_state())

    def test_the_slower_library_is_not_chosen(self, monkeypatch):
        """Nor one that is hardly faster."""
        clock = iter(range(10**6))
        monkeypatch.setattr(choosing.time, "perf_counter", lambda: float(next(clock)))
        assert choosing._measure() == "torch"

    @pytest.mark.parametrize("name", choosing.CHOICES)
    def test_the_environment_decides(self, nothing_chosen, monkeypatch, caplog, name):
        monkeypatch.setenv("AUDIO_MAMBA_LINEAR", name)
        other = choosing.CHOICES[1 - choosing.CHOICES.index(name)]
        choosing.set_linear_choice(other)
        assert choosing.linear_choice() == name and not nothing_chosen.exists()
        assert "AUDIO_MAMBA_LINEAR" in caplog.text

    @pytest.mark.parametrize("name", choosing.CHOICES)
    def test_a_named_library_is_taken(self, nothing_chosen, name):
        choosing.set_linear_choice(name)
        assert choosing.linear_choice() == name and not nothing_chosen.exists()

    def test_unknown_names(self, nothing_chosen, monkeypatch):
        with pytest.raises(ValueError, match="'mkl'.*torch, onednn"):
            choosing.set_linear_choice("mkl")
        monkeypatch.setenv("AUDIO_MAMBA_LINEAR", "mkl")
        with pytest.raises(ValueError, match="AUDIO_MAMBA_LINEAR.*'mkl'"):
            choosing.linear_choice()


def test_without_onednn_plain_pytorch_serves(nothing_chosen, monkeypatch, caplog):
    monkeypatch.setattr(choosing, "has_onednn_linear", lambda: False)
    assert choosing.linear_choice() == "torch"
    choosing.set_linear_choice("onednn")
    assert choosing.linear_choice() == "torch" and "rounds differently" in caplog.text
