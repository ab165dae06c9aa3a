"""The packages mamba-ssm and causal-conv1d (CUDA kernels of Gu and Dao), where they are installed."""

import functools
import logging
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

from audio_mamba.models.ops.tracing import constant_when_traced

logger = logging.getLogger(__name__)

# Versions whose functions have the signatures used here: from the first, up to but not the second.
VERSIONS = {"mamba-ssm": ((1, 1), (3,)), "causal-conv1d": ((1, 1), (2,))}
# The module with the functions, and the compiled one beneath it.
MODULES = {
    "mamba-ssm": ("mamba_ssm.ops.selective_scan_interface", "selective_scan_cuda"),
    "causal-conv1d": ("causal_conv1d", "causal_conv1d_cuda"),
}


@constant_when_traced
def why_not(package: str) -> str | None:
    """The reason why a package ("mamba-ssm" or "causal-conv1d") cannot be used, as a sentence."""
    return _module_or_reason(package)[1]


def module(package: str) -> ModuleType:
    """The module with a package's functions. RuntimeError where there is none."""
    loaded, reason = _module_or_reason(package)
    if reason:
        raise RuntimeError(reason)
    return loaded


@constant_when_traced
def why_not_together() -> str | None:
    """The reason why mamba-ssm cannot call causal-conv1d, as a sentence. It calls what is beneath that package's
    functions, which has changed twice."""
    for package in MODULES:
        if reason := why_not(package):
            return reason
    if getattr(module("mamba-ssm"), "causal_conv1d_fwd_function", None) is not None:  # which is there for such calls
        return None
    versions = [version(package) for package in MODULES]
    if all(_numbers(found)[:2] == (1, 1) for found in versions):
        return None
    return "mamba-ssm {} cannot call the kernels of causal-conv1d {}".format(*versions)


@functools.cache
def _module_or_reason(package: str) -> tuple[ModuleType | None, str | None]:
    try:
        found = version(package)
    except PackageNotFoundError:
        return None, f"the package {package} is not installed"
    loaded, reason = _load(package, found)
    if reason:  # who installed it wants to know
        logger.warning("%s; other kernels serve instead", reason)
    return loaded, reason


def _load(package: str, found: str) -> tuple[ModuleType | None, str | None]:
    oldest, too_new = VERSIONS[package]
    if not oldest <= _numbers(found) < too_new:
        return None, (
            f"{package} {found} is installed, and {'.'.join(map(str, oldest))} up to, but not, "
            f"{'.'.join(map(str, too_new))} fit"
        )
    name, compiled = MODULES[package]
    if find_spec(compiled) is None:
        return None, f"{package} {found} was built without its module {compiled}, see requirements-gpu.txt"
    try:
        import_module(compiled)  # which newer versions do without, where it does not fit this PyTorch
        return import_module(name), None
    except Exception as error:  # whatever a package meets that was made for other versions of its own needs
        return None, f"{package} {found} cannot be imported: {type(error).__name__}: {error}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.match(r"\d+(\.\d+)*", version).group().split(".")))
