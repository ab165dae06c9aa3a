"""The reference, on which all other tests rely, against independent results."""

import torch

from audio_mamba.models.ops.selective_scan.reference import selective_scan
from tests.models.ops.scan_cases import make_inputs


def test_gradcheck():
    inputs = {name: t.double().requires_grad_() for name, t in make_inputs(2, 4, 5, 3, groups=2).items()}

    def scan(*tensors):
        return selective_scan(**dict(zip(inputs, tensors)), delta_softplus=True, return_last_state=True)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


def test_closed_form():
    """With constant inputs the state is a geometric series: h_t = dt B u (1 + a + ... + a^(t-1)), a = exp(dt A)."""
    dt, A, B, C, u, length = 0.3, -0.7, 1.5, 2.0, 0.9, 12
    full = torch.ones(1, 1, length, dtype=torch.float64)
    y, last = selective_scan(u * full, dt * full, torch.full((1, 1), A), B * full, C * full, return_last_state=True)
    decay = torch.exp(torch.tensor(dt * A, dtype=torch.float64))
    states = dt * B * u * (1 - decay ** torch.arange(1, length + 1)) / (1 - decay)
    torch.testing.assert_close(y[0, 0], C * states, rtol=1e-6, atol=0)
    torch.testing.assert_close(last[0, 0, 0], states[-1], rtol=1e-6, atol=0)


def test_skip_gate_bias_and_groups_match_a_calculation_by_hand():
    """One step from the zero state: y = (C dt B u + D u) silu(z), dt = softplus(delta + bias), B and C per group."""
    inputs = {name: t.double() for name, t in make_inputs(1, 4, 1, 1, groups=2).items()}
    u, delta, z, D, bias = (inputs[name].flatten() for name in ("u", "delta", "z", "D", "delta_bias"))
    B, C = (inputs[name].flatten().repeat_interleave(2) for name in ("B", "C"))
    dt = torch.log1p(torch.exp(delta + bias))
    expected = (C * dt * B * u + D * u) * z / (1 + torch.exp(-z))
    torch.testing.assert_close(selective_scan(**inputs, delta_softplus=True).flatten(), expected)
