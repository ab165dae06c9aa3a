"""A whole Mamba block in one fused call.

The only back end is the package mamba-ssm. If it does not support a call, or the user asks for other kernels, the block
is composed of its operators: `models.mamba.Mamba.compose`.
"""

from types import ModuleType

from audio_mamba.models.ops.calls import BlockCall
from audio_mamba.models.ops.dispatch import Operator, announce, requested_backend
from audio_mamba.models.ops.mamba_block import package
from audio_mamba.models.ops.measured_order import measured_order

BACKENDS = {"mamba_ssm": package}
_operator = Operator("mamba_block", BACKENDS)


def choose_fused(call: BlockCall, backend: str = "auto") -> ModuleType | None:
    """The back end with a fused `mamba_block(hidden, block)` for a call, or None: use the operators.

    Args:
        call: hidden states [B, L, D] and the block's parameters.
        backend: see `models.ops.dispatch`. Only "auto" and "mamba_ssm" may give a fused kernel, "auto" not where the
            operators were measured to be faster. A call that the fused
            kernel does not support is never an error, since the operators may support it.

    Raises:
        ValueError: an unknown back end.
    """
    requested = requested_backend(backend)
    if requested not in ("auto", *BACKENDS):
        return None
    if requested == "auto" and measured_order("mamba_block", call)[:1] == ("triton",):
        return None
    name = _operator.first_that_supports(call)
    if name is None:
        return None
    announce("mamba_block", call.device_type, name)
    return BACKENDS[name]
