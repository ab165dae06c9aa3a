"""SSAM-Tiny (Mamba blocks, 4.81 M parameters) on AudioSet, as in Yadav and Tan 2024 (arXiv 2406.02178).

    torchrun --standalone --nnodes=1 --nproc-per-node=4 train.py --config configs.poc.ssam_tiny_200_16x4 \\
        --workdir RUN --precision float16 --print-freq 50

Cost: 100 epochs of 2.05 M clips, 2003 steps of 4 x 256 crops of 2 s each, so about 200,000 steps. Time: about 15 hours
on one H200, by the time of a step alone (docs/gpu.md).
"""

from audio_mamba.configs.base import ssam_config
from audio_mamba.hear_api.api import hear_functions


def get_config():
    return ssam_config("tiny")


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
