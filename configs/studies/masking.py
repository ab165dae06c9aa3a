"""Masking: single patches or whole time steps, and 30 to 90 percent of them.

    python -m experiments.sweep masking --runs RUNS --data ARCHIVES --val-data VALIDATION --no-wandb
    python train.py --config configs.studies.masking:ssam_tiny_200_16x4_timestep_70 --workdir RUN --data ARCHIVES

The paper hides 50 percent of the patches ("unstructured"): `ssam_tiny_200_16x4`. The loss is a mean over all patches,
hidden and visible, so losses of different ratios do not rank the variants; embeddings do.

Cost: 30 runs of about 200,000 steps of 4 x 256 crops of 2 s (100 epochs of AudioSet).
"""

from audio_mamba.configs.studies.base import MODELS, Variant, study

VARIANTS, get_config, load_model, get_scene_embeddings, get_timestamp_embeddings = study(
    __name__,
    (
        Variant(model, masking_mode=mode, mask_ratio=ratio)
        for model in MODELS
        for mode in ("unstructured", "timestep")
        for ratio in (0.3, 0.5, 0.7, 0.8, 0.9)
    ),
)
