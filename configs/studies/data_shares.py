"""Shares of the data: 10, 25, 50 and 100 percent of the clips.

    python -m experiments.sweep data_shares --runs RUNS --data ARCHIVES --val-data VALIDATION --no-wandb
    python train.py --config configs.studies.data_shares:ssam_tiny_200_16x4_10_percent --workdir RUN --data ARCHIVES

A clip's key decides whether it is in a share (`data.fraction`), so all models train on the same clips, and those of 10
percent are among those of 25. Validation clips are always all used.

Cost: twelve runs of 100 epochs, so a share of 10 percent has a tenth of the 200,000 steps. For as many steps as with
all clips, train it alone with `--set num_epochs=1000 opt.warmup_epochs=100`.
"""

from audio_mamba.configs.studies.base import MODELS, Variant, study

VARIANTS, get_config, load_model, get_scene_embeddings, get_timestamp_embeddings = study(
    __name__,
    (Variant(model, fraction=fraction) for model in MODELS for fraction in (0.1, 0.25, 0.5, 1.0)),
)
