"""Self-supervised audio Mamba: pretrain encoders on spectrograms, embed recordings, evaluate the result.

    import audio_mamba
    model = audio_mamba.load_model("ssam_tiny_free_audio")
    embeddings = model.embed(["recording.wav"])  # float32 [1, 960]

Most of the code is in the folders at the top of a checkout (`models`, `data`, `hear_api` ...), to which this package
links; everything is imported as `audio_mamba.<folder>`. Importing the package itself loads neither torch nor numpy.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from audio_mamba import published_names

if TYPE_CHECKING:
    from audio_mamba.hear_api.api import list_models, load_model
    from audio_mamba.hear_api.classifier import load_classifier
    from audio_mamba.hear_api.runtime import RuntimeSSAST
    from audio_mamba.hear_api.runtime import RuntimeSSAST as AudioEncoder

__all__ = ["AudioEncoder", "RuntimeSSAST", "__version__", "list_models", "load_classifier", "load_model"]
__version__ = "2.0.0"

if not (Path(__file__).parent / "models").is_dir():
    raise ImportError(
        f"{Path(__file__).parent / 'models'} must be a symbolic link to a folder, but it is a text file, as after "
        "unpacking a zip or cloning on Windows: use `git clone -c core.symlinks=true`, or install a wheel"
    )

published_names.install()


def __getattr__(name: str) -> Any:
    """The public names, imported on first use."""
    if name in ("AudioEncoder", "RuntimeSSAST"):
        from audio_mamba.hear_api.runtime import RuntimeSSAST

        return RuntimeSSAST
    if name in ("list_models", "load_model"):
        from audio_mamba.hear_api import api

        return getattr(api, name)
    if name == "load_classifier":
        from audio_mamba.hear_api.classifier import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
