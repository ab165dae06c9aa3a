"""Lengths of a crop: 200 (the paper's), 400, 600 and 1000 frames of 10 ms.

    python -m experiments.sweep sequence_lengths --runs RUNS --data ARCHIVES --val-data VALIDATION --no-wandb
    python train.py --config configs.studies.sequence_lengths:ssam_tiny_400_16x4 --workdir RUN --data ARCHIVES

Shorter clips are repeated to fill a crop. Embedding reads segments of the same length.

Cost: twelve runs of about 200,000 steps of 4 x 256 crops of 250, 500, 750 and 1,250 patches. If memory is short, add
`--set batch_size=64 opt.grad_accum_steps=4`, which keeps samples per update and the learning rate.
"""

from audio_mamba.configs.studies.base import MODELS, Variant, study

VARIANTS, get_config, load_model, get_scene_embeddings, get_timestamp_embeddings = study(
    __name__,
    (Variant(model, num_frames=frames) for model in MODELS for frames in (200, 400, 600, 1000)),
)
