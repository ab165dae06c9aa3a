"""The encoders, by the arch names that configs use: `models.build(arch, model_args)`.

`mamba_ssast_<size>` builds SSAM, `ssast_<size>` SSAST, `xlstm_ssast_<size>` AxLSTM, `ssamba_<size>` SSAMBA;
`register_encoder` adds others. The defaults are frequency-first [B, 1, 80, 200] inputs; the paper's configs choose
time-first ones.
"""

from collections.abc import Callable

from audio_mamba.models.axlstm import XLSTMSSAST
from audio_mamba.models.encoder import MaskedSpectrogramEncoder
from audio_mamba.models.registry import ARCHS, SIZES, build, known_archs, register_encoder
from audio_mamba.models.ssam import MambaSSAST
from audio_mamba.models.ssamba import SSAMBA
from audio_mamba.models.ssast import SSAST

register_encoder("mamba_ssast", MambaSSAST)
register_encoder("xlstm_ssast", XLSTMSSAST)
register_encoder(
    "ssast",
    SSAST,
    {size: {"depth": depth, "embed_dim": width, "num_heads": heads} for size, (depth, width, heads) in SIZES.items()},
)
register_encoder(
    "ssamba", SSAMBA, {size: {"depth": 24, "embed_dim": SIZES[size][1]} for size in ("tiny", "small", "base")}
)


def __getattr__(name: str) -> Callable[..., MaskedSpectrogramEncoder]:
    """The constructors of ARCHS are attributes of this module, as in the published code: `models.ssast_tiny(...)`."""
    if name in ARCHS:
        return ARCHS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ARCHS",
    "SIZES",
    "SSAMBA",
    "SSAST",
    "XLSTMSSAST",
    "MambaSSAST",
    "MaskedSpectrogramEncoder",
    "build",
    "known_archs",
    "register_encoder",
]

if __name__ == "models":
    from audio_mamba import published_names

    published_names.refuse(__name__)
