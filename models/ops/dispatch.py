"""Choosing the back end of an operator: one way for all operators.

A back end is a module with a function of the operator's name and

    unsupported_reason(call) -> str | None

which says in a sentence why the module does not support a call (see `calls`), or returns None if it does. The module
may also define AUTO_DEVICES, the types of devices on which "auto" considers it (default: all). To add a back end, write
such a module and add it to the operator's BACKENDS, and to NAMES if its name is new.

Derivatives in forward mode (`torch.func.jvp`) are left to "reference": the others have none, and torch would take those
of their operators for zero.

The user's switch is the environment variable AUDIO_MAMBA_BACKEND, or the config key `model.backend`; the variable wins.
An operator that has no back end of that name chooses by itself, as under "auto".
"""

import logging
import os
from collections.abc import Mapping
from types import ModuleType

from audio_mamba.models.ops.calls import Call
from audio_mamba.models.ops.measured_order import measured_order, reordered
from audio_mamba.models.ops.private_torch import constant_when_traced, forward_mode

logger = logging.getLogger(__name__)

VARIABLE = "AUDIO_MAMBA_BACKEND"
NAMES = ("auto", "mamba_ssm", "causal_conv1d", "triton", "cpu", "chunked", "reference")

_announced: set[tuple[str, str, str]] = set()


def configured_backend(backend: str) -> str:
    """The back end for a model whose config says `backend`: the environment variable, if set, wins.

    Raises:
        ValueError: one of the two is not in NAMES.
    """
    if backend not in NAMES:
        raise ValueError(f"model.backend {backend!r} is unknown; choose from {', '.join(NAMES)}")
    return _from_environment() or backend


@constant_when_traced
def requested_backend(backend: str) -> str:
    """The back end for a call with `backend=`: "auto" leaves it to the environment variable. ValueError if unknown."""
    if backend not in NAMES:
        raise ValueError(f"unknown back end {backend!r}; choose from {', '.join(NAMES)}")
    return (_from_environment() or "auto") if backend == "auto" else backend


def _from_environment() -> str | None:
    name = os.environ.get(VARIABLE)
    if name and name not in NAMES:
        raise ValueError(f"{VARIABLE}={name} names an unknown back end; choose from {', '.join(NAMES)}")
    return name


class Operator:
    """An operator and its back ends, in the order in which "auto" asks them, unless `measured_order` has another."""

    def __init__(self, name: str, backends: Mapping[str, ModuleType]):
        self.name, self.backends = name, backends

    def choose(self, call: Call, backend: str = "auto") -> ModuleType:
        """The back end that computes a call. What it raises while it computes is the caller's to see.

        Args:
            call: the arguments.
            backend: a name of NAMES. One that this operator has must support the call; any other means "auto", the
                first that supports it.

        Raises:
            ValueError: an unknown name.
            RuntimeError: no back end supports the call, or not the named one; the message gives the reasons.
        """
        name = requested_backend(backend)
        if name in self.backends:
            if reason := self.unsupported_reason(name, call):
                raise RuntimeError(f"{self.name}: back end {name!r} does not support this call: {reason}")
        elif (first := self.first_that_supports(call)) is not None:
            name = first
        else:
            reasons = [f"{other}: {self.unsupported_reason(other, call)}" for other in self.backends]
            raise RuntimeError(f"{self.name}: no back end supports this call: {'; '.join(reasons)}")
        announce(self.name, call.device_type, name)
        return self.backends[name]

    def first_that_supports(self, call: Call) -> str | None:
        """The name of the back end that "auto" takes for a call."""
        device_type = call.device_type
        for name in reordered(list(self.backends), measured_order(self.name, call)):
            devices = getattr(self.backends[name], "AUTO_DEVICES", None)
            if (devices is None or device_type in devices) and self.unsupported_reason(name, call) is None:
                return name
        return None

    def unsupported_reason(self, name: str, call: Call) -> str | None:
        """Why the back end of that name does not support a call, as a sentence."""
        if name != "reference" and forward_mode():
            return "it has no derivatives in forward mode"
        return self.backends[name].unsupported_reason(call)


@constant_when_traced  # so that torch.compile does not trace the log
def announce(operator: str, device_type: str, backend: str) -> None:
    """Logs a choice the first time that it is made."""
    choice = (operator, device_type, backend)
    if choice not in _announced:
        _announced.add(choice)
        logger.info("%s on %s: back end %r", *choice)
