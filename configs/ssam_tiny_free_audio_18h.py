"""SSAM-Tiny on eighteen hours of free recordings: the experiment of experiments/long_run, for a CPU.

    python train.py --config configs.ssam_tiny_free_audio_18h --workdir RUN --no-wandb

Cost: 4 epochs of 1,576 steps of 8 crops of 2 s each.
"""

from audio_mamba.configs.base import long_run_config, ssam_config
from audio_mamba.hear_api.api import hear_functions


def get_config():
    return long_run_config(ssam_config("tiny"))


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
