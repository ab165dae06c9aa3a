"""AxLSTM-Tiny (mLSTM blocks, 2.97 M parameters) on AudioSet, as in arXiv 2408.16568 (Interspeech 2025).

    torchrun --standalone --nnodes=1 --nproc-per-node=4 train.py --config configs.poc.axlstm_tiny_200_16x4 \\
        --workdir RUN --precision float16 --print-freq 50

Cost: 100 epochs of 2.05 M clips, 2003 steps of 4 x 256 crops of 2 s each, so about 200,000 steps. Time: not measured.
"""

from audio_mamba.configs.base import axlstm_config
from audio_mamba.hear_api.api import hear_functions


def get_config():
    return axlstm_config("tiny")


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
