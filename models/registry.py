"""The encoders by arch name, the `model.arch` of a config. Other packages add theirs with `register_encoder`."""

import importlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from audio_mamba.models.checks import check_call
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.ops.dispatch import configured_backend
from audio_mamba.schema import ENCODERS_VARIABLE, argument_names, suggestion, unknown_arch

# depth, width, heads: the sizes of ViT (Dosovitskiy et al. 2021), and the paper's own medium (Yadav and Tan 2024).
SIZES = {
    "tiny": (12, 192, 3),
    "small": (12, 384, 6),
    "medium": (12, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
    "huge": (32, 1280, 16),
}

ARCHS: dict[str, Callable[..., MaskedSpectrogramEncoder]] = {}


def register_encoder(
    name: str, encoder: type[MaskedSpectrogramEncoder], sizes: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Make an encoder available to configs, as the archs `<name>_<size>`.

    The keys of `model.model_args` are the arguments of the encoder's constructor; its `**kwargs` stands for those of
    its base class. Call it where the encoder is defined. The module is imported with a config that imports it, or if
    the environment variable AUDIO_MAMBA_ENCODERS names it (several: separated by commas).

    Args:
        name: such as "gru_ssast".
        encoder: the class.
        sizes: the arguments of each size, which a config may replace. Default: depth and embed_dim of SIZES.

    Raises:
        TypeError: `encoder` is not a MaskedSpectrogramEncoder.
        ValueError: another class has one of these names, a name is not a Python name, or the encoder does not have an
            argument of a size. Nothing is then registered.
    """
    if not (isinstance(encoder, type) and issubclass(encoder, MaskedSpectrogramEncoder)):
        raise TypeError(f"{name}: an encoder must be a subclass of MaskedSpectrogramEncoder, got {encoder!r}")
    if sizes is None:
        sizes = {size: {"depth": depth, "embed_dim": width} for size, (depth, width, _) in SIZES.items()}
    valid, constructors = argument_names(encoder), {}
    for size, arguments in sizes.items():
        arch = f"{name}_{size}"
        if not arch.isidentifier():
            raise ValueError(f"the arch {arch!r} must consist of letters, digits and underscores")
        if unknown := [argument for argument in arguments if argument not in valid]:
            nearest = suggestion(unknown[0], valid)
            raise ValueError(f"{arch}: {encoder.__name__} has no argument {unknown[0]!r}; {nearest}")
        if arch in ARCHS and _origin(ARCHS[arch]) != _origin(encoder):
            raise ValueError(f"the arch {arch!r} is already registered by {_origin(ARCHS[arch])}; choose another name")
        constructors[arch] = partial(encoder, **arguments)
    ARCHS.update(constructors)


def _origin(constructor: Callable[..., Any]) -> str:
    """Where a class is defined; it stays the same when its module is reloaded."""
    cls = constructor.func if isinstance(constructor, partial) else constructor
    return f"{cls.__module__}.{cls.__qualname__}"


def known_archs() -> dict[str, Callable[..., MaskedSpectrogramEncoder]]:
    """ARCHS, after the modules that $AUDIO_MAMBA_ENCODERS names were imported. ValueError if one cannot be."""
    for module in filter(None, map(str.strip, os.environ.get(ENCODERS_VARIABLE, "").split(","))):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ValueError(f"{ENCODERS_VARIABLE}: cannot import {module!r} ({error})") from error
    return ARCHS


def build(arch: str, model_args: Mapping[str, Any], backend: str = "auto") -> MaskedSpectrogramEncoder:
    """An encoder with new weights, drawn from torch's generator.

    Args:
        arch: a key of ARCHS.
        model_args: arguments of its constructor.
        backend: the config's `model.backend`, whose kernels SSAM uses, see `models.ops.dispatch`. The environment
            variable AUDIO_MAMBA_BACKEND, if set, wins over it.

    Raises:
        ValueError: an unknown arch, argument or back end. What the constructor itself raises passes.
    """
    backend = configured_backend(backend)
    archs = known_archs()
    if arch not in archs:
        raise ValueError(unknown_arch(arch, archs))
    check_call("model.model_args", archs[arch], model_args)
    encoder = archs[arch](**model_args)
    encoder.use_backend(backend)
    return encoder
