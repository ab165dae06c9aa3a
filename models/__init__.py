"""The encoders, by the arch names that configs use: `models.build(arch, model_args)`.

`mamba_ssast_<size>` builds SSAM, `ssast_<size>` SSAST, `xlstm_ssast_<size>` AxLSTM. The defaults are frequency-first
[B, 1, 80, 200] inputs; the paper's configs choose time-first ones.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from audio_mamba.models.axlstm import XLSTMSSAST
from audio_mamba.models.ssam import MambaSSAST
from audio_mamba.models.ssast import SSAST

# depth, width, heads: ViT's sizes (Dosovitskiy et al. 2021), with the paper's own medium (Yadav and Tan 2024).
SIZES = {
    "tiny": (12, 192, 3),
    "small": (12, 384, 6),
    "medium": (12, 512, 8),
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
    "huge": (32, 1280, 16),
}

ARCHS = {}
for _size, (_depth, _width, _heads) in SIZES.items():
    ARCHS[f"mamba_ssast_{_size}"] = partial(MambaSSAST, depth=_depth, embed_dim=_width)
    ARCHS[f"xlstm_ssast_{_size}"] = partial(XLSTMSSAST, depth=_depth, embed_dim=_width)
    ARCHS[f"ssast_{_size}"] = partial(SSAST, depth=_depth, embed_dim=_width, num_heads=_heads)
globals().update(ARCHS)


def build(arch: str, model_args: Mapping[str, Any]) -> nn.Module:
    """An encoder with new weights, drawn from torch's generator. ValueError for an unknown arch or argument."""
    if arch not in ARCHS:
        raise ValueError(f"model.arch {arch!r} is unknown; choose from {', '.join(ARCHS)}")
    try:
        return ARCHS[arch](**model_args)
    except TypeError as error:
        raise ValueError(f"model.model_args: {error}") from error


__all__ = ["ARCHS", "SIZES", "SSAST", "XLSTMSSAST", "MambaSSAST", "build", *ARCHS]

if __name__ == "models":
    from audio_mamba import published_names

    published_names.refuse(__name__)
