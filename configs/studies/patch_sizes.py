"""Patch sizes: 4 x 8, 4 x 16 (the paper's), 8 x 16 and 16 x 16, in frames x mel bands.

    python -m experiments.sweep patch_sizes --runs RUNS --data ARCHIVES --val-data VALIDATION --no-wandb
    python train.py --config configs.studies.patch_sizes:ssam_tiny_200_8x4 --workdir RUN --data ARCHIVES

Names have bands x frames, as the published ones: `8x4` is 4 frames x 8 bands. Patches must tile a crop, and 200 frames
are 12.5 patches of 16 frames, so `ssam_tiny_208_16x16` reads 208 frames (2.08 s), 13 patches.

Cost: twelve runs of about 200,000 steps of 4 x 256 crops of 500, 250, 125 and 65 patches.
"""

from audio_mamba.configs.studies.base import MODELS, Variant, study

VARIANTS, get_config, load_model, get_scene_embeddings, get_timestamp_embeddings = study(
    __name__,
    (
        Variant(model, num_frames=-(-200 // patch[0]) * patch[0], patch=patch)  # the next multiple of the patch
        for model in MODELS
        for patch in ((4, 8), (4, 16), (8, 16), (16, 16))
    ),
)
