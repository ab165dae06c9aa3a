"""The command line of train.py."""

import argparse
import math
from collections.abc import Callable

from audio_mamba.models.precision import PRECISIONS
from audio_mamba.published_names import hyphenated
from audio_mamba.system.machine import usable_cores

FAKE_SAMPLES = 1024


def parse_arguments(description: str, arguments: list[str] | None = None, prog: str = "train.py") -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, metavar="MODULE", help="config module, such as configs.ssam_tiny_200_16x4")
    add("--workdir", required=True, metavar="DIR", help="folder for everything the run writes; made where missing")
    add(
        "--data",
        nargs="+",
        action="extend",
        metavar="DIR",
        help="archive folders (default: data.train_dirs of the config), or addresses of shards such as "
        "http://host/shard-{000000..000099}.tar, with their samples in data.train_samples of the config",
    )
    add(
        "--val-data",
        metavar="DIR",
        help="archive folder for the validation loss (default: data.val_dir of the config, where --data is not given)",
    )
    add("--fake-data", action="store_true", help=f"train on {FAKE_SAMPLES} random spectrograms instead of archives")
    add(
        "--strict-data",
        action="store_true",
        help="stop at the first bad shard or sample (default: skip up to 1%% of them with warnings)",
    )
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change entries of the config, such as num_epochs=2 opt.warmup_epochs=0",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU where there is one")
    add(
        "--precision",
        choices=PRECISIONS,
        help="of the autocast region; float16 also scales the loss (default: precision of the config, float32)",
    )
    add(
        "--resume",
        metavar="PATH",
        help="checkpoint to begin with where the workdir has none, such as a published one; or one of the workdir, to "
        "go back to it (default: the newest of the workdir that can be read)",
    )
    add(
        "--init",
        metavar="PATH",
        help="weights to begin a new run with, such as published ones: a checkpoint, a work folder or a saved model. "
        "Optimizer and schedule begin anew; once the workdir has checkpoints of its own, they are gone on from",
    )
    add(
        "--checkpoint-minutes",
        type=at_least(0.0),
        default=15.0,
        metavar="MINUTES",
        help="time between two checkpoints in mid-epoch, in DIR/resume; 0: none but at a stop (default: %(default)g)",
    )
    add(
        "--min-lr",
        type=at_least(0.0),
        default=0.0,
        help="learning rate at the end of the schedule (default: %(default)s)",
    )
    add(
        "--bias-decay",
        action="store_true",
        help="decay all weights alike, in one group, with betas (0.9, 0.999) instead of (0.9, 0.95)",
    )
    add("--seed", type=at_least(0), default=0, help="of initialisation, order, crops and masks (default: %(default)s)")
    add(
        "--num-workers",
        type=at_least(0),
        default=min(2, usable_cores()),
        help="data-loading processes per process (default: %(default)s)",
    )
    add(
        "--tf32",
        action="store_true",
        help="multiply float32 matrices on a GPU in TF32: several times faster, with 10 bits of mantissa",
    )
    add("--compile", action="store_true", help="run the model through torch.compile: a slow start, then faster steps")
    add(
        "--gradient-checkpointing",
        action="store_true",
        help="keep no activations inside the blocks: less memory, a second forward pass",
    )
    add("--detect-anomaly", action="store_true", help="name the operation that makes a gradient NaN; slow")
    add(
        "--print-freq",
        type=at_least(1),
        metavar="STEPS",
        help="steps per line (default: log_every_steps of the config)",
    )
    add("--no-wandb", action="store_true", help="do not log to wandb")
    add("--tensorboard", action="store_true", help="log to TensorBoard, in the folder tensorboard of the workdir")
    return parser.parse_args(hyphenated(arguments))


def at_least(least: int | float) -> Callable[[str], int | float]:
    """For argparse: reads a finite number of the type of `least` that is not below it."""

    def parse(text: str) -> int | float:
        value = type(least)(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"a finite number of at least {least} is needed, got {text}")
        return value

    parse.__name__ = type(least).__name__  # which argparse shows for what is no number at all
    return parse
