"""SSAM-Tiny that predicts what a moving average of itself makes of the whole clip (data2vec, Baevski et al. 2022).

    python train.py --config configs.ssam_teacher_tiny_200_16x4 --workdir RUN --data ARCHIVES --no-wandb \\
        --set batch_size=32 opt.learning_rate=4e-3

Encoder and recipe are those of configs.ssam_tiny_200_16x4, with positions on masked tokens. The targets are the mean of
the teacher's last 8 of 12 blocks; `--set opt.objective_args.reconstruction_weight=1.0` adds the published loss.
"""

from audio_mamba.configs.base import ssam_config, with_objective
from audio_mamba.hear_api.api import hear_functions


def get_config():
    return with_objective(ssam_config("tiny"), "teacher", last_blocks=8, reconstruction_weight=0.0)


load_model, get_scene_embeddings, get_timestamp_embeddings = hear_functions(__name__)
