"""The causal depthwise convolution along time of the Mamba block, behind one function."""

from torch import Tensor

from audio_mamba.models.ops.calls import ConvCall
from audio_mamba.models.ops.causal_conv1d import cpu, package, reference, triton
from audio_mamba.models.ops.dispatch import Operator

BACKENDS = {"causal_conv1d": package, "triton": triton, "cpu": cpu, "reference": reference}
_operator = Operator("causal_conv1d", BACKENDS)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    backend: str = "auto",
    reverse: bool = False,
) -> Tensor:
    """y_t = sum_k weight_k x_{t-K+1+k} + bias for each channel, then SiLU if asked for.

    Args:
        x: [B, D, L].
        weight: [D, K], K at least 1.
        bias: [D].
        activation: None or "silu".
        backend: see `models.ops.dispatch`.
        reverse: walk backward in time: y_t depends on x_t, ..., x_{t+K-1}, as if x and y were flipped along L.

    Returns:
        [B, D, L] in x's dtype.

    Raises:
        ValueError: shapes that do not fit, or an unknown activation or back end.
        RuntimeError: the back end named in `backend` does not support the call.
    """
    if activation not in (None, "silu"):
        raise ValueError(f"causal_conv1d: activation must be None or 'silu', got {activation!r}")
    call = ConvCall(x, weight, bias, activation, reverse)
    _check_shapes(call)
    return _operator.choose(call, backend).causal_conv1d(x, weight, bias, activation, reverse)


def _check_shapes(call: ConvCall) -> None:
    x, weight, bias = call.x, call.weight, call.bias
    if x.dim() != 3:
        raise ValueError(f"causal_conv1d: x must be [B, D, L], got {list(x.shape)}")
    channels = x.shape[1]
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        raise ValueError(
            f"causal_conv1d: weight must be [{channels}, K] to fit x, with at least one tap, got {list(weight.shape)}"
        )
    if bias is not None and list(bias.shape) != [channels]:
        raise ValueError(f"causal_conv1d: bias must be {[channels]} to fit x, got {list(bias.shape)}")
