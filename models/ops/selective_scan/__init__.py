"""The selective scan of Mamba (Gu and Dao 2023, section 3.2 and algorithm 2), behind one function.

Each back end is a module of this package with the same two functions:

    selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    why_not(*tensors) -> str | None      the reason why it cannot serve these tensors, as a sentence
"""

import logging

import torch
from torch import Tensor

from audio_mamba.models.ops.selective_scan import chunked, cpu, mamba_ssm, reference, triton_scan
from audio_mamba.models.ops.tracing import constant_when_traced

logger = logging.getLogger(__name__)

# In the order in which "auto" asks them.
BACKENDS = {"mamba_ssm": mamba_ssm, "triton": triton_scan, "cpu": cpu, "chunked": chunked, "reference": reference}

_announced = set()


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the linear recurrence with input-dependent step, input and output matrices along time.

        delta_t = softplus(delta_t + delta_bias)
        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        y_t = (C_t h_t + D u_t) * silu(z_t)

    u, delta, z: [B, D, L]. A: [D, N], real. B, C: [B, N, L], or [B, G, N, L] where D/G neighbouring channels
    share a group. D, delta_bias: [D]. The state is float32 (float64 for float64 inputs).

    Returns y [B, D, L] in u's dtype and, with `return_last_state`, also the last state h_L [B, D, N].
    A back end named in `backend` raises RuntimeError with its reason if it cannot serve the tensors; "auto" takes
    the first of BACKENDS that can. ValueError for shapes that do not fit and for an unknown back end.
    """
    _check_shapes(u, delta, A, B, C, D, z, delta_bias)
    tensors = [t for t in (u, delta, A, B, C, D, z, delta_bias) if t is not None]
    module = _choose(backend, tensors, return_last_state)
    return module.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def _check_shapes(u, delta, A, B, C, D, z, delta_bias):
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"selective_scan: u must be [B, D, L] and A [D, N]; got {list(u.shape)} and {list(A.shape)}")
    if A.is_complex():
        raise ValueError("selective_scan: A must be real, complex states are not supported")
    (batch, channels, length), state = u.shape, A.shape[1]
    expected = {
        "delta": (delta, [batch, channels, length]),
        "z": (z, [batch, channels, length]),
        "A": (A, [channels, state]),
        "D": (D, [channels]),
        "delta_bias": (delta_bias, [channels]),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"selective_scan: {name} must be {shape} to fit u, got {list(tensor.shape)}")
    for name, tensor in (("B", B), ("C", C)):
        groups = tensor.shape[1] if tensor.dim() == 4 else 1
        plain = [batch, state, length]
        grouped = [batch, groups, state, length]
        if list(tensor.shape) not in (plain, grouped) or groups == 0 or channels % groups:
            raise ValueError(
                f"selective_scan: {name} must be {plain} or [{batch}, G, {state}, {length}] "
                f"with G dividing {channels}, got {list(tensor.shape)}"
            )


def _choose(backend, tensors, return_last_state):
    if backend != "auto":
        module = _load(backend)
        if reason := module.why_not(*tensors):
            raise RuntimeError(f"selective_scan: back end {backend!r} cannot serve this call: {reason}")
        return module
    for name in BACKENDS:
        module = _load(name)
        if module.why_not(*tensors) is None and not _passed_over(name, tensors, return_last_state):
            _announce(name, tensors[0].device.type)
            return module
    raise RuntimeError(
        "selective_scan: no back end can serve this call: "
        + "; ".join(f"{name}: {_load(name).why_not(*tensors)}" for name in BACKENDS)
    )


def _passed_over(name, tensors, return_last_state):
    """What serves only those who ask for it by name."""
    if name == "triton":
        return tensors[0].device.type == "cpu"  # that is its interpreter, which is for tests
    if name == "mamba_ssm" and return_last_state:  # whose last state has no gradient
        return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return False


def _load(name):
    if name not in BACKENDS:
        raise ValueError(f"selective_scan: unknown back end {name!r}; choose from auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]


@constant_when_traced  # which keeps the log out of torch.compile's sight
def _announce(name, device_type):
    if (name, device_type) not in _announced:
        _announced.add((name, device_type))
        logger.info("selective scan on %s: back end %r", device_type, name)
