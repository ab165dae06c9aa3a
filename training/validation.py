"""The loss on held-out samples, always with the same crops and masks."""

from collections.abc import Callable, Iterable

import torch

from audio_mamba.training import distributed


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
