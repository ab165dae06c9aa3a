"""SSAM-Tiny with the joint objective of SSAST and SSAMBA: tell masked patches apart and reconstruct them.

    python train.py --config configs.ssam_joint_tiny_200_16x4 --workdir RUN --data ARCHIVES --no-wandb \\
        --set batch_size=32 opt.learning_rate=4e-3

Encoder and recipe are those of configs.ssam_tiny_200_16x4, with positions on masked tokens. The loss is InfoNCE plus
10 times the squared error at masked patches (Gong et al. 2022, eq. 1 and 2).
"""

from audio_mamba.configs.base import ssam_config, with_objective
from audio_mamba.hear_api.api import hear_functions


def get_config():
    return with_objective(ssam_config("tiny"), "joint", generative_weight=10.0)


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
