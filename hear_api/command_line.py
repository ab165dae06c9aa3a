"""Shared options for choosing a model and a device."""

import argparse

import torch

from audio_mamba.hear_api.resolve import DEFAULT_MODEL


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config and --weights."""
    add = parser.add_argument
    add(
        "--config",
        metavar="NAME",
        help="experiment, e.g. ssam_tiny_200_16x4, or a module with get_config() (default: the config.json in "
        f"the folder of the weights; without --weights, {DEFAULT_MODEL})",
    )
    add(
        "--weights",
        metavar="PATH",
        help='checkpoint file, work folder of train.py, folder of a saved model, or "untrained" (default: the '
        "published ones in $PT_MAMBA_MODEL_DIR, or else those that come with the project)",
    )


def add_hidden_argument(parser: argparse.ArgumentParser) -> None:
    """Add --hidden."""
    parser.add_argument(
        "--hidden", action="store_true", help="take hidden, trash and system files and folders below a folder too"
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device (default: %(default)s)"
    )
