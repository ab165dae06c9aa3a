"""A whole Mamba block in one fused call.

The only back end is the package mamba-ssm. If it does not support a call, or the user asks for other kernels, the block
is composed of its operators: `models.mamba.Mamba.compose`.
"""

from types import ModuleType

from audio_mamba.models.ops.calls import BlockCall
from audio_mamba.models.ops.dispatch import Operator, announce, requested_backend
from audio_mamba.models.ops.mamba_block import package

BACKENDS = {"mamba_ssm": package}
_operator = Operator("mamba_block", BACKENDS)


def choose_fused(call: BlockCall, backend: str = "auto") -> ModuleType | None:
    """The back end with a fused `mamba_block(hidden, block)` for a call, or None: use the operators.

    Args:
        call: hidden states [B, L, D] and the block's parameters.
        backend: see `models.ops.dispatch`. Only "auto" and "mamba_ssm" may give a fused kernel. A call that the fused
            kernel does not support is never an error, since the operators may support it.

    Raises:
        ValueError: an unknown back end.
    """
    if requested_backend(backend) not in ("auto", *BACKENDS):
        return None
    name = _operator.first_that_supports(call)
    if name is None:
        return None
    announce("mamba_block", call.device_type, name)
    return BACKENDS[name]
