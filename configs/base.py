"""The recipes that the experiments share: the paper's values, and those for the free recordings."""

import os

from ml_collections import ConfigDict

from audio_mamba.schema import DEFAULTS

AUDIOSET = [("balanced_train", 18988), ("unbalanced_train", 1766912), ("unbalanced_train_2", 265408)]


def paper_config(arch: str, **model_args) -> ConfigDict:
    """The paper's pretraining on AudioSet (section 3.2) of one arch: 200 frames x 80 mels, patches of 4 x 16.

    The archives are looked for in $DATASETS_BASE_DIR (default: the folder `datasets`).
    """
    config = ConfigDict(DEFAULTS)
    config.model.arch = arch
    config.model.model_args = {
        "img_size": (200, 80),
        "patch_size": (4, 16),
        "mask_ratio": 0.5,
        "frequency_first": False,
        **model_args,
    }
    base = os.path.join(os.environ.get("DATASETS_BASE_DIR", "datasets"), "audioset_logmelspec_webdataset")
    config.data.train_dirs = [os.path.join(base, folder) for folder, _ in AUDIOSET]
    config.data.train_samples = [samples for _, samples in AUDIOSET]
    config.data.val_dir, config.data.val_samples = os.path.join(base, "eval"), 17408
    return config


def ssam_config(size: str, **model_args) -> ConfigDict:
    """The paper's SSAM of one size: LayerNorm, plain add + norm. `model_args` are added to those of the paper."""
    return paper_config(f"mamba_ssast_{size}", rms_norm=False, fused_add_norm=False, **model_args)


def ssast_config(size: str) -> ConfigDict:
    """The paper's SSAST of one size."""
    return paper_config(f"ssast_{size}")


def axlstm_config(size: str) -> ConfigDict:
    """AxLSTM of one size (Yadav, Theodoridis and Tan 2025): the same pretraining with mLSTM blocks."""
    config = paper_config(f"xlstm_ssast_{size}")
    config.wandb.project = "ssast-pytorch-xlstm"
    return config


def with_objective(config: ConfigDict, objective: str, **objective_args) -> ConfigDict:
    """The same recipe with another objective, see `models.objectives`.

    Masked tokens then carry their positions, as in data2vec and SSAST.
    """
    config.opt.objective, config.opt.objective_args = objective, objective_args
    config.model.model_args.masked_positions = True
    return config


def free_audio_config(config: ConfigDict) -> ConfigDict:
    """The paper's recipe scaled to 32,000 crops on one CPU core (experiments/free_audio); the same for SSAM and SSAST.

    What differs from the paper, and why:
        data            3,201 clips of free recordings for AudioSet's two million
        num_epochs      10, each one crop of every clip; the paper's 100 epochs are 205 million crops
        batch_size      8 instead of 4 x 256, so that these crops make 4,000 steps
        learning_rate   1.6e-2, a peak of 1.6e-2 x 8 / 256 = 5e-4, near the paper's 6e-4
        warmup_epochs   a tenth of the run, as in the paper
        precision       bfloat16: in float32 a step takes 1.4 times as long on CPUs with AVX-512 (docs/speed.md);
                        CPUs without instructions for it use float32 anyway
        scene_layout    true time order: there are no published numbers to match
    """
    config.data.train_dirs, config.data.train_samples = ["free_audio/archives/train"], [3201]
    config.data.val_dir, config.data.val_samples = "free_audio/archives/validation", 300
    config.num_epochs, config.batch_size, config.precision = 10, 8, "bfloat16"
    config.opt.learning_rate, config.opt.warmup_epochs = 1.6e-2, 1.0
    config.log_every_steps = 10
    config.scene_layout = "bands"
    return config


def long_run_config(config: ConfigDict) -> ConfigDict:
    """The recipe for 18 hours of free recordings (experiments/long_run).

    What differs from `free_audio_config`, and why:
        front_end       fixed normalisation, near the archive's own, so that the level of a clip is not lost
        schedule        staged, so that the run can go on and be ended anywhere
        learning_rate   2e-2, held at 2e-2 x 8 / 256 = 6.25e-4
    """
    config = free_audio_config(config)
    config.data.train_dirs, config.data.train_samples = ["long_run/archives/train"], [12612]
    config.data.val_dir = "long_run/archives/validation"
    config.front_end.mean, config.front_end.std = -4.0, 5.0
    config.num_epochs = 4
    config.opt.learning_rate, config.opt.schedule = 2e-2, "warmupstabledecay"
    config.opt.warmup_epochs, config.opt.decay_epochs = 0.1, 1.0
    return config
