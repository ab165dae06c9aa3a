"""The command-line options of finetune.py."""

import argparse

from audio_mamba.cli.train_arguments import add_run_options
from audio_mamba.system.terminal import hyphenated, not_empty

DEFAULT_CONFIG = "configs.finetune"
ALL_FOLDS = "all"


def parse_arguments(
    description: str, arguments: list[str] | None = None, prog: str = "finetune.py"
) -> argparse.Namespace:
    """The options; `arguments` defaults to those of the process. Exits on --help and on a mistake."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--config",
        default=DEFAULT_CONFIG,
        metavar="MODULE",
        help="config module, such as configs.finetune_esc50 (default: %(default)s)",
    )
    add(
        "--data",
        nargs="+",
        action="extend",
        metavar="DIR",
        type=not_empty,
        help="labelled archives of `audio-mamba prepare`, or one HEAR task, which is prepared in WORKDIR/data "
        "(default: data.train_dirs of the config)",
    )
    add(
        "--val-data",
        metavar="DIR",
        type=not_empty,
        help="archive of validation clips (default: data.val_dir of the config, unless --data is given; or else the "
        "folds or splits of the data)",
    )
    add(
        "--test-data",
        metavar="DIR",
        type=not_empty,
        help="archive of test clips (default: data.test_dir of the config, unless --data is given; or else the "
        "folds or splits of the data)",
    )
    add(
        "--model",
        metavar="NAME",
        type=not_empty,
        help="encoder: a name of audio_mamba.list_models(), a config, a work folder or another path of weights "
        "(default: encoder.name of the config)",
    )
    add("--init", choices=["pretrained", "random"], dest="start", help="weights of the encoder at the start")
    add("--freeze", action="store_true", help="train the head alone (linear probing)")
    add("--loss", choices=["single", "multi"], help="one label per clip, or several (default: the clips decide)")
    folds = parser.add_mutually_exclusive_group()
    folds.add_argument(
        "--fold", metavar="NAME", type=not_empty, help="fold that tests, such as 3; the next one validates"
    )
    folds.add_argument(
        "--folds", choices=[ALL_FOLDS], help="one run for each fold, in WORKDIR/fold-NAME, and their mean"
    )
    add_run_options(parser, "checkpoint of fine-tuning")
    return parser.parse_args(hyphenated(arguments))
