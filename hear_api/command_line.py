"""Options and error handling that the commands share."""

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch
from tqdm import tqdm

from audio_mamba.data.audio import CHANNELS, CHANNELS_OR_EACH
from audio_mamba.hear_api.resolve import DEFAULT_MODEL
from audio_mamba.models.precision import PRECISIONS
from audio_mamba.schema import LAYOUTS, POOLINGS
from audio_mamba.system.terminal import not_empty


def add_inputs_argument(parser: argparse.ArgumentParser) -> None:
    """Add INPUT..., for `sources.list_audio`."""
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        type=not_empty,
        help="file, folder, glob in quotes, or .csv list with a column path",
    )


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config and --weights."""
    add = parser.add_argument
    add(
        "--config",
        metavar="NAME",
        type=not_empty,
        help="experiment, e.g. ssam_tiny_200_16x4, or a module with get_config() (default: the one that "
        f"the weights were trained with; without --weights, {DEFAULT_MODEL})",
    )
    add(
        "--weights",
        metavar="PATH",
        type=not_empty,
        help="checkpoint file, work folder of train.py, folder of a saved model, name of a model that comes with the "
        'project, or "untrained" (default: the published ones in $PT_MAMBA_MODEL_DIR, or in $PT_AXLSTM_MODEL_DIR for '
        "AxLSTM, or else those that come with the project)",
    )


def add_channel_argument(parser: argparse.ArgumentParser, each: str = "") -> None:
    """Add --channel; `each` says what is made of every channel, for commands that can take all of them."""
    parser.add_argument(
        "--channel",
        choices=CHANNELS_OR_EACH if each else CHANNELS,
        default="mix",
        help="mix: the mean of all channels (default); left, right: the first and the second one, or the only one"
        + (f"; each: {each}, with its number, counted from 0" if each else ""),
    )


def add_file_run_arguments(parser: argparse.ArgumentParser, done: str) -> None:
    """Add --hidden, --workers (None if it is not given), --resume and --strict; `done` is what is done to a file, such
    as "embedded"."""
    add = parser.add_argument
    add_hidden_argument(parser)
    add("--workers", type=int, help="processes that decode files (default: as many as cores)")
    add("--resume", action="store_true", help=f"continue an interrupted run; files that have changed are {done} again")
    add("--strict", action="store_true", help="stop at the first file that fails")


def add_precision_argument(parser: argparse.ArgumentParser) -> None:
    """Add --precision, for models that compute embeddings."""
    parser.add_argument(
        "--precision",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="default: auto, float16 on CUDA and float32 elsewhere",
    )


def add_hidden_argument(parser: argparse.ArgumentParser) -> None:
    """Add --hidden."""
    parser.add_argument(
        "--hidden", action="store_true", help="also take hidden, trash and system files and folders inside a folder"
    )


def add_feature_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --layout, --pooling and --overlap."""
    add = parser.add_argument
    add("--layout", choices=LAYOUTS, help="token layout of scene embeddings (default: the config's)")
    add(
        "--pooling",
        choices=list(POOLINGS),
        help="how scene embeddings are pooled over time: mean, or mean and standard deviation (default: the config's)",
    )
    add(
        "--overlap",
        type=float,
        metavar="PART",
        help="share of each segment that is only read as context: 0.25 or 0.5 reduce seams; layout bands only "
        "(default: the config's)",
    )


def feature_choices(args: argparse.Namespace) -> dict[str, str | float | None]:
    """The choices of `add_feature_arguments`, for `resolve`."""
    return {"scene_layout": args.layout, "scene_pooling": args.pooling, "overlap": args.overlap}


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device (default: %(default)s)"
    )


@contextmanager
def ending_in_one_line(command: str) -> Iterator[None]:
    """Around the work of a command that keeps a journal: what ends it is one line on stderr, Ctrl-C with status 130."""
    try:
        yield
    except KeyboardInterrupt:
        tqdm.write(f"{command}: interrupted; run the same command with --resume to continue", file=sys.stderr)
        sys.exit(130)
    except BrokenProcessPool:
        raise SystemExit(
            f"{command}: a decoding process was killed, possibly for lack of memory; continue with --resume and fewer "
            "--workers"
        )
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"{command}: {error}")
