"""Adding to the residual stream and normalising, the step between two Mamba blocks, behind one function."""

from torch import Tensor, nn

from audio_mamba.models.ops.add_norm import reference, triton
from audio_mamba.models.ops.calls import AddNormCall
from audio_mamba.models.ops.dispatch import Operator

BACKENDS = {"triton": triton, "reference": reference}
_operator = Operator("add_norm", BACKENDS)


def add_norm(
    hidden: Tensor,
    residual: Tensor | None,
    norm: nn.LayerNorm | nn.RMSNorm,
    residual_in_fp32: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """residual + hidden, and its norm.

    Args:
        hidden: [B, L, D].
        residual: [B, L, D], or None for zeros.
        norm: applied over D.
        residual_in_fp32: return the sum in float32.
        backend: see `models.ops.dispatch`.

    Returns:
        The norm [B, L, D] in the dtype of the norm's weight (under autocast on CUDA, in autocast's), and the sum
        [B, L, D].

    Raises:
        ValueError: shapes that do not fit, or an unknown back end.
        RuntimeError: the back end named in `backend` does not support the call.
    """
    call = AddNormCall(hidden, residual, norm, residual_in_fp32)
    _check_shapes(call)
    return _operator.choose(call, backend).add_norm(hidden, residual, norm, residual_in_fp32)


def _check_shapes(call: AddNormCall) -> None:
    hidden, residual, over = list(call.hidden.shape), call.residual, list(call.norm.normalized_shape)
    if residual is not None and list(residual.shape) != hidden:
        raise ValueError(f"add_norm: residual must be {hidden} to fit hidden, got {list(residual.shape)}")
    if over != hidden[-1:]:
        raise ValueError(f"add_norm: norm must be over {hidden[-1:]} to fit hidden, got one over {over}")
