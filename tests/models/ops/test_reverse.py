"""Scan and convolution backward in time: every back end of a CPU as by hand, by flipping or step by step."""

import pytest
import torch

from audio_mamba.models.ops import causal_conv1d as conv
from audio_mamba.models.ops import native
from audio_mamba.models.ops import selective_scan as scan
from audio_mamba.models.ops.calls import ConvCall, ScanCall
from audio_mamba.models.ops.selective_scan import cpu, reference
from tests.models.ops.scan_cases import (
    CPU_BACKENDS,
    Flipped,
    Reversed,
    check_against_float64,
    make_inputs,
    outputs_and_gradients,
)

needs_kernels = pytest.mark.skipif(native.unsupported_reason() is not None, reason=str(native.unsupported_reason()))
CASES = [
    {"batch": 2, "channels": 33, "length": 63, "state": 24},
    {"batch": 1, "channels": 5, "length": 1, "state": 3},
    {"batch": 2, "channels": 16, "length": 32, "state": 8, "dtype": torch.bfloat16},
    {"batch": 1, "channels": 210, "length": 37, "state": 6, "dtype": torch.float16},  # two blocks of channels
    {"batch": 2, "channels": 12, "length": 20, "state": 5, "groups": 3, "channels_last": False},
    {"batch": 2, "channels": 7, "length": 17, "state": 4, "optional": False, "softplus": False},
]


@pytest.fixture(params=CPU_BACKENDS)
def back_end(request):
    module = scan.BACKENDS[request.param]
    if reason := module.unsupported_reason(ScanCall(**make_inputs(1, 1, 1, 1), reverse=True)):
        pytest.skip(reason)
    return module


def scan_by_hand(u, delta, A, B, C, D, z, delta_bias):
    """The recurrence from the last step to the first."""
    dt = torch.nn.functional.softplus(delta + delta_bias[:, None])
    state, y = torch.zeros(*u.shape[:2], A.shape[1], dtype=u.dtype), torch.empty_like(u)
    for t in range(u.shape[-1] - 1, -1, -1):
        state = torch.exp(dt[..., t, None] * A) * state + (dt * u)[..., t, None] * B[:, None, :, t]
        y[..., t] = (state * C[:, None, :, t]).sum(-1) + D * u[..., t]
    return y * z * torch.sigmoid(z), state


def test_the_reference_walks_from_the_last_step_to_the_first():
    """Its last state is the one after step 0."""
    inputs = {name: t.double() for name, t in make_inputs(2, 3, 9, 4).items()}
    y, last = scan.selective_scan(**inputs, delta_softplus=True, return_last_state=True, reverse=True)
    expected = scan_by_hand(**inputs)
    torch.testing.assert_close((y, last), expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_reference():
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(1, 3, 5, 2).items()}

    def walk(*tensors):
        named = dict(zip(inputs, tensors))
        return reference.selective_scan(**named, delta_softplus=True, return_last_state=True, reverse=True)

    assert torch.autograd.gradcheck(walk, tuple(inputs.values()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_back_end_as_flipped_by_hand_bit_for_bit(back_end, poisoned, case):
    """Output, last state and all gradients."""
    inputs, softplus = make_inputs(**case), case.get("softplus", True)
    backward, flipped = (outputs_and_gradients(walk(back_end), inputs, softplus) for walk in (Reversed, Flipped))
    assert all(torch.equal(backward[name], flipped[name]) for name in flipped)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_back_end_against_float64(back_end, poisoned, case):
    """What is flipped twice, once by hand and once by the kernels, is the forward scan."""
    check_against_float64(Flipped(Reversed(back_end)), make_inputs(**case), case.get("softplus", True))


def test_no_output_depends_on_an_earlier_input(back_end):
    k, inputs = 20, {name: t.requires_grad_() for name, t in make_inputs(1, 5, 40, 3).items()}
    back_end.selective_scan(**inputs, delta_softplus=True, reverse=True)[..., k].sum().backward()
    for name in ("u", "delta", "B"):
        per_step = inputs[name].grad.abs().sum((0, 1))
        assert (per_step[:k] == 0).all() and (per_step[k:] > 0).all(), name


@needs_kernels
def test_same_bits_for_any_number_of_threads():
    inputs, before, results = make_inputs(2, 150, 70, 5), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(outputs_and_gradients(Reversed(cpu), inputs))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[name], results[0][name]) for name in result)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_results_can_be_added_to_what_is_there(dtype, reverse):
    """By the scan to y and to the gradient of z, rounded once; a fused Mamba block uses it."""
    inputs = make_inputs(2, 20, 37, 5, dtype=dtype)
    arguments = [
        t if name in ("A", "D", "delta_bias") else t.transpose(1, 2)
        for name, t in ((name, inputs[name]) for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"))
    ]
    y, _, starts = cpu.forward_in_c(*arguments, True, True, reverse)
    already = torch.randn(y.shape).to(dtype)
    total = already.clone()
    cpu.forward_into(total, *arguments, True, True, reverse, add=True)
    rounding = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(total, already + y, rtol=rounding, atol=rounding)

    dz, total = torch.empty_like(y), already.clone()
    gradients = cpu.backward_in_c(already, None, starts, *arguments, True, reverse, dz)
    again = cpu.backward_in_c(already, None, starts, *arguments, True, reverse, total, add=True)
    torch.testing.assert_close(total, already + dz, rtol=rounding, atol=2 * rounding)
    assert all(map(torch.equal, gradients, again))


class TestConvolution:
    @pytest.mark.parametrize("name", ["cpu", "reference"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("channels, length, taps, bias", [(33, 70, 4, True), (5, 2, 3, False), (100, 40, 7, True)])
    def test_as_flipped_by_hand_bit_for_bit(self, poisoned, name, dtype, channels, length, taps, bias):
        module = conv.BACKENDS[name]
        x, weight = torch.randn(2, length, 2 * channels)[..., :channels].transpose(1, 2), torch.randn(channels, taps)
        inputs = [x.to(dtype), weight, *([torch.randn(channels)] if bias else [])]
        if reason := module.unsupported_reason(ConvCall(*inputs, reverse=True)):
            pytest.skip(reason)
        dy = torch.randn(x.shape).to(dtype)
        results = []
        for by_hand in (False, True):
            x, weight, *rest = leaves = [t.detach().requires_grad_() for t in inputs]
            arguments = weight, *(rest or [None]), "silu"
            if by_hand:
                y = module.causal_conv1d(x.flip(-1), *arguments).flip(-1)
            else:
                y = module.causal_conv1d(x, *arguments, reverse=True)
            results.append([y, *torch.autograd.grad(y, leaves, dy)])
        assert all(map(torch.equal, *results))

    @pytest.mark.parametrize("backend", ["auto", "reference"])
    def test_each_output_is_a_sum_over_later_inputs(self, backend):
        """y_t = sum_k weight_k x_{t+K-1-k} + bias."""
        x, weight, bias = torch.randn(2, 3, 6), torch.randn(3, 4), torch.randn(3)
        y = conv.causal_conv1d(x, weight, bias, backend=backend, reverse=True)
        padded = torch.cat([x, torch.zeros(2, 3, 3)], dim=-1)
        for t in range(6):
            expected = sum(weight[:, k] * padded[..., t + 3 - k] for k in range(4)) + bias
            torch.testing.assert_close(y[..., t], expected)

    @needs_kernels
    def test_the_gradient_of_x_can_be_added_to_what_is_there(self):
        x, weight, dy, already = (torch.randn(*shape) for shape in ((2, 50, 20), (20, 4), (2, 50, 20), (2, 50, 20)))
        dx, total = torch.empty_like(x), already.clone()
        conv.cpu.backward_in_c(dy, None, x, weight, None, True, True, dx)
        conv.cpu.backward_in_c(dy, None, x, weight, None, True, True, total, add=True)
        torch.testing.assert_close(total, already + dx)


@needs_kernels
class TestOperators:
    """Programs that were exported before `reverse` existed call the operators without it."""

    def arguments(self):
        inputs = make_inputs(2, 20, 21, 3)
        channels = ("A", "D", "delta_bias")
        leaves = {name: t if name in channels else t.transpose(1, 2) for name, t in inputs.items()}
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        return *(leaves[name].detach().requires_grad_() for name in names), True, True

    def test_opcheck(self):
        torch.library.opcheck(torch.ops.audio_mamba.selective_scan_cpu, (*self.arguments(), True))
        x, weight = torch.randn(2, 9, 20).requires_grad_(), torch.randn(20, 4).requires_grad_()
        torch.library.opcheck(torch.ops.audio_mamba.causal_conv1d_cpu, (x, weight, None, True, True))

    def test_without_the_argument_they_walk_forward(self):
        operator, arguments = torch.ops.audio_mamba.selective_scan_cpu, self.arguments()
        for result in (operator(*arguments), operator(*arguments, False)):
            gradients = torch.autograd.grad(result[0].square().sum(), arguments[:8])
            expected = outputs_of_forward_scan(arguments)
            assert all(map(torch.equal, (result[0], *gradients), expected))


def outputs_of_forward_scan(arguments):
    y = cpu.selective_scan(
        *(t.transpose(1, 2) if t.dim() == 3 else t for t in arguments[:8]), delta_softplus=True
    ).transpose(1, 2)
    return y, *torch.autograd.grad(y.square().sum(), arguments[:8])


class TestChoice:
    """The installed packages walk forward only, so the next back end is taken."""

    def test_the_packages_say_so_in_a_sentence(self):
        x = torch.zeros(1, 4, 6)
        inputs = make_inputs(1, 4, 6, 2)
        assert scan.package.unsupported_reason(ScanCall(**inputs, reverse=True)) == (
            "the package mamba-ssm does not walk backward in time"
        )
        assert conv.package.unsupported_reason(ConvCall(x, x[0], reverse=True)) == (
            "the package causal-conv1d does not walk backward in time"
        )
        with pytest.raises(RuntimeError, match="'mamba_ssm' does not support this call: .* backward in time"):
            scan.selective_scan(**inputs, backend="mamba_ssm", reverse=True)

    def test_auto_takes_the_next(self, monkeypatch):
        """Here the packages say that they support everything else."""
        for package, operator, call in (
            (scan.package, scan._operator, ScanCall(**make_inputs(1, 4, 6, 2), reverse=True)),
            (conv.package, conv._operator, ConvCall(torch.zeros(1, 4, 6), torch.zeros(4, 4), reverse=True)),
        ):
            monkeypatch.setattr(package.packages, "unsupported_tensors", lambda tensors: None)
            monkeypatch.setattr(package.packages, "unavailable_reason", lambda package: None)
            assert operator.choose(call) is not package
