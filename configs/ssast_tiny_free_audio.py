"""SSAST-Tiny on five hours of free recordings: the experiment of experiments/free_audio, for a CPU.

    torchrun --standalone --nproc-per-node=1 train.py --config configs.ssast_tiny_free_audio --workdir RUN --no-wandb

Cost: 10 epochs of 400 steps of 8 crops of 2 s each.
"""

from audio_mamba.configs.base import free_audio_config, ssast_config
from audio_mamba.hear_api.api import hear_functions


def get_config():
    return free_audio_config(ssast_config("tiny"))


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
