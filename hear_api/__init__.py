"""Pretrained encoders as audio embedding models: `RuntimeSSAST`, its files and its commands."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audio_mamba.hear_api.runtime import RuntimeSSAST

__all__ = ["RuntimeSSAST"]

if __name__ == "hear_api":  # its published name, in a checkout
    from audio_mamba import published_names

    published_names.share(__name__)


def __getattr__(name: str) -> Any:
    """Import torch only when the class is used, so that configs can be read without it."""
    if name == "RuntimeSSAST":
        from audio_mamba.hear_api.runtime import RuntimeSSAST

        return RuntimeSSAST
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
