"""The command-line options of train.py, and those that it shares with finetune.py."""

import argparse
import math
from collections.abc import Callable

from audio_mamba.models.precision import PRECISIONS
from audio_mamba.system.machine import usable_cores
from audio_mamba.system.terminal import hyphenated, not_empty

FAKE_SAMPLES = 1024


def parse_arguments(description: str, arguments: list[str] | None = None, prog: str = "train.py") -> argparse.Namespace:
    """The options; `arguments` defaults to those of the process. Exits on --help and on a mistake."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", required=True, metavar="MODULE", help="config module, such as configs.ssam_tiny_200_16x4")
    add(
        "--data",
        nargs="+",
        action="extend",
        metavar="DIR",
        type=not_empty,
        help="archive folders, or URLs of shards such as http://host/shard-{000000..000099}.tar together with "
        '--set "data.train_samples=[N]" (default: data.train_dirs of the config)',
    )
    add(
        "--val-data",
        metavar="DIR",
        type=not_empty,
        help="archive folder for the validation loss (default: data.val_dir of the config, unless --data is given)",
    )
    add("--fake-data", action="store_true", help=f"train on {FAKE_SAMPLES} random spectrograms instead of archives")
    add(
        "--init",
        metavar="PATH",
        type=not_empty,
        help="initial weights of a new run, such as published ones: a checkpoint, a work folder or a saved model. "
        "Optimizer and schedule start fresh. Once the workdir has checkpoints, training resumes from those",
    )
    add(
        "--bias-decay",
        action="store_true",
        help="apply weight decay to all parameters, in one group with betas (0.9, 0.999) instead of (0.9, 0.95)",
    )
    add("--compile", action="store_true", help="use torch.compile: a slow start, then faster steps")
    add_run_options(parser, "checkpoint, such as a published one,")
    return parser.parse_args(hyphenated(arguments))


def add_run_options(parser: argparse.ArgumentParser, resumable: str = "checkpoint") -> None:
    """The options of every training loop."""
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        metavar="DIR",
        type=not_empty,
        help="folder for everything the run writes; created if missing",
    )
    add(
        "--strict-data",
        action="store_true",
        help="stop at the first bad shard or sample (default: skip up to 1%% of the samples with warnings)",
    )
    add(
        "--data-changed",
        choices=["refuse", "restart-epoch"],
        default="refuse",
        help="what to do when the shards are not those of the checkpoint: refuse to resume, or start its epoch again "
        "with the data as they are now (default: %(default)s)",
    )
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override config entries, such as num_epochs=2 opt.warmup_epochs=0",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one")
    add(
        "--precision",
        choices=PRECISIONS,
        help="autocast precision; float16 also scales the loss (default: precision of the config, float32)",
    )
    add(
        "--resume",
        metavar="PATH",
        type=not_empty,
        help=f"{resumable} to start from if the workdir has none yet; or a checkpoint in the "
        "workdir to go back to, after you move newer ones away (default: the newest readable one in the workdir)",
    )
    add(
        "--checkpoint-minutes",
        type=at_least(0.0),
        default=15.0,
        metavar="MINUTES",
        help="time between two checkpoints within an epoch; 0: only when stopped (default: %(default)g)",
    )
    add(
        "--min-lr",
        type=at_least(0.0),
        default=0.0,
        help="learning rate at the end of the schedule (default: %(default)s)",
    )
    add(
        "--seed",
        type=at_least(0),
        default=0,
        help="seed for initialisation, sample order, crops and masks (default: %(default)s)",
    )
    add(
        "--num-workers",
        type=at_least(0),
        default=min(2, usable_cores()),
        help="data-loading processes per training process (default: %(default)s)",
    )
    add(
        "--tf32",
        action="store_true",
        help="multiply float32 matrices on a GPU in TF32: several times faster, with a 10-bit mantissa",
    )
    add(
        "--gradient-checkpointing",
        action="store_true",
        help="recompute activations in the backward pass: less memory, slower steps",
    )
    add("--detect-anomaly", action="store_true", help="report the operation that makes a gradient NaN; slow")
    add(
        "--print-freq",
        type=at_least(1),
        metavar="STEPS",
        help="steps per printed line (default: log_every_steps of the config)",
    )
    add("--no-wandb", action="store_true", help="do not log to wandb")
    add("--tensorboard", action="store_true", help="log to TensorBoard, in WORKDIR/tensorboard")


def at_least(least: int | float) -> Callable[[str], int | float]:
    """An argparse type: a finite number of the type of `least` that is at least `least`."""

    def parse(text: str) -> int | float:
        value = type(least)(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a finite number of at least {least}, got {text}")
        return value

    parse.__name__ = type(least).__name__  # argparse shows this name for a value that is not a number
    return parse
