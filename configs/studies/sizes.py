"""Sizes: tiny, small and base, the same configs as those of configs/.

    python -m experiments.sweep sizes --runs RUNS --data ARCHIVES --val-data VALIDATION --no-wandb
    python train.py --config configs.studies.sizes:ssam_small_200_16x4 --workdir RUN --data ARCHIVES

Cost: nine runs of about 200,000 steps of 4 x 256 crops of 2 s (100 epochs of AudioSet).
"""

from audio_mamba.configs.studies.base import MODELS, Variant, study

VARIANTS, get_config, load_model, get_scene_embeddings, get_timestamp_embeddings = study(
    __name__,
    (Variant(model, size) for model in MODELS for size in ("tiny", "small", "base")),
)
