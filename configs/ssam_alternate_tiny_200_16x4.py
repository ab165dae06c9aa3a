"""SSAM-Tiny whose every second block walks backward in time (4.81 M parameters), on AudioSet.

    torchrun --standalone --nnodes=1 --nproc-per-node=4 train.py --config configs.ssam_alternate_tiny_200_16x4 \\
        --workdir RUN --precision float16 --print-freq 50

Cost: that of configs.ssam_tiny_200_16x4. No weights of it were published.
"""

from audio_mamba.configs.base import ssam_config
from audio_mamba.hear_api.api import hear_functions


def get_config():
    return ssam_config("tiny", direction="alternate")


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
