"""SSAST-Base (ViT blocks, 85.94 M parameters) on AudioSet, as in Yadav and Tan 2024 (arXiv 2406.02178).

    torchrun --standalone --nnodes=1 --nproc-per-node=4 train.py --config configs.poc.ssast_base_200_16x4 \\
        --workdir RUN --precision float16 --print-freq 50

Cost: 100 epochs of 2.05 M clips, 2003 steps of 4 x 256 crops of 2 s each, so about 200,000 steps. Time: not measured.
"""

from audio_mamba.configs.base import ssast_config
from audio_mamba.hear_api.api import hear_functions


def get_config():
    return ssast_config("base")


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
