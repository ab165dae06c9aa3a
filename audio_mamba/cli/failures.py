"""How train.py and finetune.py end when something fails: expected errors are one sentence, with status 1."""

import argparse
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from audio_mamba.data.samples import ArchiveError
from audio_mamba.training import distributed
from audio_mamba.training.guards import NonFiniteError
from audio_mamba.training.interruption import Interruption, LostWorkerError


@contextmanager
def setting_up(program: str) -> Iterator[None]:
    """Around everything before the first step."""
    try:
        with distributed.reporting_lost_processes():
            yield
    except (ValueError, OSError) as error:
        distributed.fail(f"{program}: {error}")


@contextmanager
def running(program: str, args: argparse.Namespace) -> Iterator[Interruption]:
    """Around training, which heeds the requests to stop that it gets.

    Args:
        program: the name that messages begin with.
        args: of its command line: `checkpoint_minutes`, `detect_anomaly` and `workdir`.
    """
    try:
        # Interruption comes first: when a process is lost, torchrun sends SIGTERM to the others, and they would end
        # before they could report which one it was.
        with (
            Interruption(args.checkpoint_minutes) as interruption,
            distributed.reporting_lost_processes(),
            torch.autograd.set_detect_anomaly(args.detect_anomaly),
        ):
            yield interruption
            interruption.ignore_further_signals()
    except ArchiveError as error:  # if a data worker raised it, its traceback comes before the sentence
        message = str(error).splitlines()[-1].removeprefix("audio_mamba.data.samples.ArchiveError: ")
        distributed.fail(f"{program}: {message}")
    except (NonFiniteError, LostWorkerError, OSError) as error:
        advice = f"run the same command to resume from the newest checkpoint in {args.workdir}"
        distributed.fail(f"{program}: {error}; {advice}")
    except Exception:
        if distributed.world_size() == 1:
            raise
        distributed.fail(traceback.format_exc())
