"""The packages mamba-ssm and causal-conv1d (CUDA kernels by Gu and Dao), if they are installed."""

import functools
import logging
import re
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from audio_mamba.models.ops.private_torch import constant_when_traced

logger = logging.getLogger(__name__)

# Versions whose functions have the signatures used here: from the first up to, but not including, the second.
VERSIONS = {"mamba-ssm": ((1, 1), (3,)), "causal-conv1d": ((1, 1), (2,))}
# The module with the functions, and the compiled module that it calls.
MODULES = {
    "mamba-ssm": ("mamba_ssm.ops.selective_scan_interface", "selective_scan_cuda"),
    "causal-conv1d": ("causal_conv1d", "causal_conv1d_cuda"),
}
DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TAPS = range(2, 5)  # for which causal-conv1d has kernels


def unsupported_tensors(tensors: Iterable[Tensor]) -> str | None:
    """Why the packages' kernels do not support these tensors, as a sentence."""
    for tensor in tensors:
        if tensor.device.type != DEVICE:
            return f"a tensor is on {tensor.device}, not on a CUDA device"
        if tensor.dtype not in DTYPES:
            return f"a tensor is {tensor.dtype}, not float32, bfloat16 or float16"
    return None


def unsupported_taps(taps: int, bias: Tensor | None) -> str | None:
    """Why causal-conv1d does not support a convolution with these taps and this bias, as a sentence."""
    if taps not in TAPS:
        return f"the package causal-conv1d has kernels for 2 to 4 taps, not {taps}"
    return "the gradients of causal-conv1d need a bias" if bias is None else None


@constant_when_traced
def unavailable_reason(package: str) -> str | None:
    """Why a package ("mamba-ssm" or "causal-conv1d") cannot be used, as a sentence."""
    return _module_or_reason(package)[1]


def module(package: str) -> ModuleType:
    """The module with a package's functions. RuntimeError if the package cannot be used."""
    loaded, reason = _module_or_reason(package)
    if loaded is None:
        raise RuntimeError(reason)
    return loaded


@constant_when_traced
def incompatible_reason() -> str | None:
    """Why mamba-ssm cannot call causal-conv1d, as a sentence.

    It calls functions below the public ones of that package, whose signatures have changed twice.
    """
    for package in MODULES:
        if reason := unavailable_reason(package):
            return reason
    if getattr(module("mamba-ssm"), "causal_conv1d_fwd_function", None) is not None:  # versions that fit any signature
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
    if reason:  # whoever installed the package wants to know
        logger.warning("%s; other kernels are used instead", reason)
    return loaded, reason


def _load(package: str, found: str) -> tuple[ModuleType | None, str | None]:
    oldest, too_new = VERSIONS[package]
    if not oldest <= _numbers(found) < too_new:
        return None, (
            f"{package} {found} is installed, but a version from {'.'.join(map(str, oldest))} up to, not including, "
            f"{'.'.join(map(str, too_new))} is needed"
        )
    name, compiled = MODULES[package]
    if find_spec(compiled) is None:
        return None, f"{package} {found} was built without its module {compiled}, see requirements-gpu.txt"
    try:
        import_module(compiled)  # newer versions silently do without it if it does not fit this PyTorch
        return import_module(name), None
    except Exception as error:  # a package built for other versions of its requirements fails in any way
        return None, f"{package} {found} cannot be imported: {type(error).__name__}: {error}"


def _numbers(text: str) -> tuple[int, ...]:
    """The release in a version: "2.3.2.post1" -> (2, 3, 2)."""
    release = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, release.group().split("."))) if release else ()
