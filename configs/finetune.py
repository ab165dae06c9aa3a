"""Fine-tuning on hundreds to thousands of labelled clips, the default of finetune.py. All values are ours.

    python finetune.py --data ARCHIVE --workdir RUN

`recipe` is what the configs of other data sets start from; its keys are those of `audio_mamba.finetune_schema`.
"""

from ml_collections import ConfigDict

from audio_mamba.finetune_schema import DEFAULTS


def recipe(
    encoder: str = "ssam_base_200_16x4", train_dirs: tuple[str, ...] = (), val_dir: str = "", test_dir: str = ""
) -> ConfigDict:
    """The defaults, with the encoder and the archives of a data set."""
    config = ConfigDict(DEFAULTS)
    config.encoder.name = encoder
    config.data.train_dirs, config.data.val_dir, config.data.test_dir = list(train_dirs), val_dir, test_dir
    return config


def get_config():
    config = recipe("ssam_tiny_free_audio")
    config.opt.layer_decay = 0.75
    config.augment.update({"mixup": 0.5, "time_shift": 10, "time_mask": 20, "freq_mask": 12})
    config.opt.label_smoothing = 0.1
    return config
