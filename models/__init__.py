"""The encoders, by the arch names that configs use: `models.build(arch, model_args)`.

`mamba_ssast_<size>` builds SSAM, `ssast_<size>` SSAST, `xlstm_ssast_<size>` AxLSTM. The defaults are frequency-first
[B, 1, 80, 200] inputs; the paper's configs choose time-first ones.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from audio_mamba.models.axlstm import XLSTMSSAST
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.ops.dispatch import configured_backend
from audio_mamba.models.ssam import MambaSSAST
from audio_mamba.models.ssast import SSAST

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
for _size, (_depth, _width, _heads) in SIZES.items():
    ARCHS[f"mamba_ssast_{_size}"] = partial(MambaSSAST, depth=_depth, embed_dim=_width)
    ARCHS[f"xlstm_ssast_{_size}"] = partial(XLSTMSSAST, depth=_depth, embed_dim=_width)
    ARCHS[f"ssast_{_size}"] = partial(SSAST, depth=_depth, embed_dim=_width, num_heads=_heads)


def __getattr__(name: str) -> Callable[..., MaskedSpectrogramEncoder]:
    """The constructors of ARCHS are attributes of this module, as in the published code: `models.ssast_tiny(...)`."""
    if name in ARCHS:
        return ARCHS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build(arch: str, model_args: Mapping[str, Any], backend: str = "auto") -> MaskedSpectrogramEncoder:
    """An encoder with new weights, drawn from torch's generator.

    Args:
        arch: a key of ARCHS.
        model_args: arguments of its constructor.
        backend: the config's `model.backend`, whose kernels SSAM uses, see `models.ops.dispatch`. The environment
            variable AUDIO_MAMBA_BACKEND, if set, wins over it.

    Raises:
        ValueError: an unknown arch, argument or back end.
    """
    backend = configured_backend(backend)
    if arch not in ARCHS:
        raise ValueError(f"model.arch {arch!r} is unknown; choose from {', '.join(ARCHS)}")
    try:
        encoder = ARCHS[arch](**model_args)
    except TypeError as error:
        raise ValueError(f"model.model_args: {error}") from error
    if isinstance(encoder, MambaSSAST):
        encoder.use_backend(backend)
    return encoder


__all__ = ["ARCHS", "SIZES", "SSAST", "XLSTMSSAST", "MambaSSAST", "MaskedSpectrogramEncoder", "build"]

if __name__ == "models":
    from audio_mamba import published_names

    published_names.refuse(__name__)
