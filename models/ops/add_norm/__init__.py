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
        ValueError: an unknown back end.
        RuntimeError: the back end named in `backend` does not support the call.
    """
    module = _operator.choose(AddNormCall(hidden, residual, norm, residual_in_fp32), backend)
    return module.add_norm(hidden, residual, norm, residual_in_fp32)
