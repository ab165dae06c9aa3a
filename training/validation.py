"""The loss and the outputs on held-out samples, always with the same crops and masks."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from audio_mamba.training import distributed
from audio_mamba.training.interruption import Shielded
from audio_mamba.training.prefetch import prefetch


def read_through(loader: DataLoader, device: torch.device, description: str) -> Iterable[dict[str, torch.Tensor]]:
    """The batches of a loader on `device`; the main process shows on a terminal how far they are, after two seconds."""
    return tqdm(
        prefetch(Shielded(loader), device),
        desc=description,
        total=len(loader),
        unit="batch",
        delay=2,
        leave=False,
        dynamic_ncols=True,
        disable=None if distributed.is_main() else True,
    )


@torch.no_grad()
def mean_loss(
    batches: Iterable[dict[str, torch.Tensor]],
    loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """The mean loss over the samples of all processes. Every process must call this.

    Args:
        batches: of this process; "index" has one entry per sample.
        loss_of: returns the mean loss of a batch.
        device: where the losses are.
        stop: asked before each batch of this process; if any process stops, all return None.
    """
    total = torch.zeros(3, dtype=torch.float64, device=device)  # sum of losses, samples, processes that stopped
    for batch in batches:
        if stop():
            total[2] = 1
            break
        size = len(batch["index"])
        total[0] += size * loss_of(batch).double()
        total[1] += size
    losses, samples, stopped = distributed.total(total).tolist()
    return None if stopped else losses / samples


class Outputs(NamedTuple):
    """What a classifier gives for clips, on the CPU, in the order of the clips."""

    clips: np.ndarray  # their index, ascending, int64 [n]
    logits: torch.Tensor  # [n, classes]
    target: torch.Tensor  # [n, classes]


@torch.no_grad()
def gather_outputs(
    batches: Iterable[dict[str, torch.Tensor]],
    logits_of: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    stop: Callable[[], bool] = lambda: False,
) -> Outputs | None:
    """The outputs for the clips of all processes. Every process must call this, and gets the same.

    Args:
        batches: of this process; "index" has one entry per clip, "target" is [B, classes].
        logits_of: returns [B, classes] of a batch.
        stop: asked before each batch of this process; if any process stops, all return None.
    """
    found: list[tuple[torch.Tensor, ...]] = []
    stopped = False
    for batch in batches:
        if stopped := stop():
            break
        found.append((batch["index"].cpu(), logits_of(batch).cpu(), batch["target"].cpu()))
    joined = None if stopped else [torch.cat(parts) for parts in zip(*found)]
    gathered = distributed.gather(joined)
    if None in gathered:
        return None
    index, logits, target = (torch.cat(parts) for parts in zip(*filter(None, gathered)))
    order = index.argsort()
    return Outputs(index[order].numpy(), logits[order], target[order])
