"""A whole Mamba block in one fused call.

The package mamba-ssm has one for CUDA tensors, and `cpu` is one for training on a CPU. If none supports a call, or the
user asks for other kernels, the block is composed of its operators: `models.mamba.Mamba.compose`.
"""

from types import ModuleType

from audio_mamba.models.ops.calls import BlockCall
from audio_mamba.models.ops.dispatch import Operator, announce, requested_backend
from audio_mamba.models.ops.mamba_block import cpu, package
from audio_mamba.models.ops.measured_order import measured_order

BACKENDS = {"mamba_ssm": package, "cpu": cpu}
_operator = Operator("mamba_block", BACKENDS)


def choose_fused(call: BlockCall, backend: str = "auto") -> ModuleType | None:
    """The back end with a fused `mamba_block(hidden, block)` for a call, or None: use the operators.

    Args:
        call: hidden states [B, L, D] and the block's parameters.
        backend: see `models.ops.dispatch`. "auto" takes the first fused kernel that supports the call, but none where
            the operators were measured to be faster; any other name only the one of that name. A call that it does not
            support is never an error, since the operators may support it.

    Raises:
        ValueError: an unknown back end.
    """
    name: str | None = requested_backend(backend)
    if name == "auto":
        operators_first = measured_order("mamba_block", call)[:1] == ("triton",)
        name = None if operators_first else _operator.first_that_supports(call)
    elif name not in BACKENDS or _operator.unsupported_reason(name, call):
        name = None
    if name is None:
        return None
    announce("mamba_block", call.device_type, name)
    return BACKENDS[name]
