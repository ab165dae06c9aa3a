"""The schema of a config for fine-tuning: every key with its default, and the check that completes and refuses."""

from typing import Any

from ml_collections import ConfigDict

from audio_mamba.schema import POOLINGS, check_numbers, check_strings, merge

DEFAULTS: dict[str, Any] = {
    "encoder": {
        "name": "ssam_tiny_free_audio",  # of `list_models()`, a config, or the path of weights
        "random": False,  # start from random weights, in place of the encoder's own
        "frozen": False,  # train the head alone
    },
    "head": {
        "pooling": "mean",  # or "mean_std", of the features over time
        "start": "zeros",  # or "probe": logistic regression on frozen features of the training clips
        "loss": None,  # "single" or "multi" label; None: as the clips have it
    },
    "data": {
        "train_dirs": [],  # archives of data.prepare
        "val_dir": "",  # archive that chooses the checkpoint; "": clips of train_dirs, see `data.folds`
        "test_dir": "",
        "num_frames": None,  # of the encoder's input; None: as it was pretrained
        "crop_frames": None,  # of a training crop; None: one input of the encoder
        "balanced": False,  # sample clips by AudioSet's rule
    },
    "augment": {  # see `data.augment`
        "gain": 0.0,
        "filter": 0.0,
        "mixup": 0.0,
        "time_shift": 0,
        "freq_shift": 0,
        "time_mask": 0,
        "freq_mask": 0,
    },
    "opt": {
        "learning_rate": 4e-3,  # for a global batch of 256
        "weight_decay": 0.05,
        "warmup_epochs": 2.0,
        "layer_decay": 1.0,  # factor of the learning rate from each layer to the one before it
        "head_rate": 1.0,  # factor of the head's learning rate
        "label_smoothing": 0.0,
        "grad_accum_steps": 1,
        "clip_grad_value": None,  # of the total gradient norm
    },
    "metric": None,  # on the validation clips; None: accuracy for one label per clip, mAP for several
    "keep": "best",  # the weights of the epoch with the highest metric, or "last"
    "batch_size": 32,  # per process
    "num_epochs": 30,  # 0: the head that `start` "probe" fits is the result
    "precision": "float32",  # unless --precision is given
    "log_every_steps": 10,  # unless --print-freq is given
    "wandb": {"project": "audio-mamba-finetune"},
}
METRICS = ("accuracy", "balanced_accuracy", "mAP", "AUC", "d_prime")

WHOLE_NUMBERS = (
    "batch_size",
    "log_every_steps",
    "opt.grad_accum_steps",
    "data.num_frames",
    "data.crop_frames",
)
NUMBERS = (
    "opt.learning_rate",
    "opt.weight_decay",
    "opt.warmup_epochs",
    "opt.clip_grad_value",
    "opt.layer_decay",
    "opt.head_rate",
    "opt.label_smoothing",
)
STRINGS = ("encoder.name", "precision")
FOLDERS = ("data.val_dir", "data.test_dir")  # "" or None: there is none


def check_finetune_config(config: ConfigDict, source: str) -> ConfigDict:
    """A copy of a config with every missing key at its default.

    Args:
        config: complete or partial.
        source: where the config comes from, for the messages.

    Raises:
        ValueError: an unknown key (the message suggests the nearest valid name), or a value out of range.
    """
    checked = ConfigDict(DEFAULTS, convert_dict=True)
    merge(checked, config, prefix="", source=source)
    check_numbers(checked, WHOLE_NUMBERS, NUMBERS, DEFAULTS, source, whole_from_0=("num_epochs",))
    check_strings(checked, STRINGS, FOLDERS, source)
    for key, highest in (("layer_decay", 1), ("label_smoothing", 0.99)):
        if checked.opt[key] > highest:
            raise ValueError(f"{source}: opt.{key} must be at most {highest}, got {checked.opt[key]}")
    if checked.num_epochs == 0 and checked.head.start != "probe":
        raise ValueError(f"{source}: num_epochs 0 trains nothing; it needs head.start=probe")
    choices = {
        "head.loss": (checked.head.loss, (None, "single", "multi")),
        "head.pooling": (checked.head.pooling, tuple(POOLINGS)),
        "head.start": (checked.head.start, ("zeros", "probe")),
        "metric": (checked.metric, (None, *METRICS)),
        "keep": (checked.keep, ("best", "last")),
    }
    for name, (value, accepted) in choices.items():
        if value not in accepted:
            raise ValueError(f"{source}: {name} must be one of {', '.join(map(str, accepted))}, got {value!r}")
    return checked
