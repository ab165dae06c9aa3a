"""An experiment with a very small model."""

from audio_mamba.configs.base import ssam_config


def get_config():
    config = ssam_config("tiny")
    config.model.model_args.update({"depth": 1, "embed_dim": 64})
    return config
