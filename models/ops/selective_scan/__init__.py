"""The selective scan of Mamba (Gu and Dao 2023, section 3.2 and algorithm 2), behind one function."""

from torch import Tensor

from audio_mamba.models.ops.calls import ScanCall
from audio_mamba.models.ops.dispatch import Operator
from audio_mamba.models.ops.selective_scan import chunked, cpu, package, reference, triton

BACKENDS = {"mamba_ssm": package, "triton": triton, "cpu": cpu, "chunked": chunked, "reference": reference}
_operator = Operator("selective_scan", BACKENDS)


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
    reverse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The linear recurrence along time with input-dependent step, input and output matrices:

        delta_t = softplus(delta_t + delta_bias)
        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        y_t = (C_t h_t + D u_t) * silu(z_t)

    The state h is float32 (float64 for float64 inputs).

    Args:
        u: inputs [B, D, L].
        delta: step sizes [B, D, L], before bias and softplus.
        A: real, [D, N].
        B: [B, N, L], or [B, G, N, L] where D/G neighbouring channels share a group.
        C: like B.
        D: weight of the skip connection [D].
        z: gate [B, D, L].
        delta_bias: [D].
        delta_softplus: apply the softplus.
        return_last_state: also return the state after the last step of the walk, h_L.
        backend: mamba_ssm, triton, cpu, chunked, reference or auto; see `models.ops.dispatch`.
        reverse: walk backward in time, from the state 0 after the last step: h_t = exp(delta_t A) h_{t+1} + delta_t B_t
            u_t, as if all inputs and y were flipped along L. The last state then is the one after step 0.

    Returns:
        y [B, D, L] in u's dtype and, with `return_last_state`, the last state [B, D, N].

    Raises:
        ValueError: shapes that do not fit, a complex A, or an unknown back end.
        RuntimeError: the back end named in `backend` does not support the call.
    """
    call = ScanCall(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, reverse)
    _check_shapes(call)
    module = _operator.choose(call, backend)
    return module.selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, reverse)


def _check_shapes(call: ScanCall) -> None:
    u, A = call.u, call.A
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"selective_scan: u must be [B, D, L] and A [D, N]; got {list(u.shape)} and {list(A.shape)}")
    if A.is_complex():
        raise ValueError("selective_scan: A must be real; complex states are not supported")
    for name, tensor in (("u", u), ("delta", call.delta), ("A", A), ("B", call.B), ("C", call.C), ("z", call.z)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"selective_scan: {name} must be floating-point, got {tensor.dtype}")
    (batch, channels, length), state = u.shape, A.shape[1]
    expected = {
        "delta": (call.delta, [batch, channels, length]),
        "z": (call.z, [batch, channels, length]),
        "A": (A, [channels, state]),
        "D": (call.D, [channels]),
        "delta_bias": (call.delta_bias, [channels]),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"selective_scan: {name} must be {shape} to fit u, got {list(tensor.shape)}")
    for name, matrix in (("B", call.B), ("C", call.C)):
        groups = matrix.shape[1] if matrix.dim() == 4 else 1
        plain = [batch, state, length]
        grouped = [batch, groups, state, length]
        if list(matrix.shape) not in (plain, grouped) or groups == 0 or channels % groups:
            raise ValueError(
                f"selective_scan: {name} must be {plain} or [{batch}, G, {state}, {length}] "
                f"with G dividing {channels}, got {list(matrix.shape)}"
            )
