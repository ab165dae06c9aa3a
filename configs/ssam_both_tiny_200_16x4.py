"""SSAM-Tiny whose blocks walk through time both ways, as in SSAMBA (5.52 M parameters), on AudioSet.

    torchrun --standalone --nnodes=1 --nproc-per-node=4 train.py --config configs.ssam_both_tiny_200_16x4 \\
        --workdir RUN --precision float16 --print-freq 50

Cost: a step takes longer than one of configs.ssam_tiny_200_16x4, see docs/speed.md. No weights of it were published.
"""

from audio_mamba.configs.base import ssam_config
from audio_mamba.hear_api.api import hear_functions


def get_config():
    return ssam_config("tiny", direction="both")


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
