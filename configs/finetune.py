"""Fine-tuning on hundreds to thousands of labelled clips, the default of finetune.py. All values are ours.

    python finetune.py --data ARCHIVE --workdir RUN

`recipe` is what the configs of other data sets start from; its keys are those of `audio_mamba.finetune_schema`.
"""

import os

from ml_collections import ConfigDict

from audio_mamba.finetune_schema import DEFAULTS


def recipe(*train_dirs: str, val_dir: str = "", test_dir: str = "") -> ConfigDict:
    """The defaults with the published SSAM-Base, and archives below $DATASETS_BASE_DIR (default: `datasets`)."""
    base = os.environ.get("DATASETS_BASE_DIR", "datasets")
    config = ConfigDict(DEFAULTS)
    config.encoder.name = "ssam_base_200_16x4"
    config.data.train_dirs = [os.path.join(base, folder) for folder in train_dirs]
    config.data.val_dir, config.data.test_dir = (
        folder and os.path.join(base, folder) for folder in (val_dir, test_dir)
    )
    return config


def get_config():
    config = recipe()
    config.encoder.name = "ssam_tiny_free_audio"
    config.head.update({"pooling": "mean_std", "start": "probe"})
    config.opt.update({"learning_rate": 16e-3, "warmup_epochs": 3.0, "layer_decay": 0.9, "label_smoothing": 0.1})
    config.augment.update({"filter": 6.0, "freq_shift": 3, "time_shift": 10, "time_mask": 20, "freq_mask": 12})
    config.batch_size, config.num_epochs = 8, 20
    config.keep = "last"
    return config
