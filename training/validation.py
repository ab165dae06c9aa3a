"""The loss on samples that training does not see, always with the same crops and masks."""

from collections.abc import Callable, Iterator

import torch

from audio_mamba.training import distributed


@torch.no_grad()
def mean_loss(
    batches: Iterator[dict[str, torch.Tensor]],
    loss_of: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """The mean over the samples of all processes of `loss_of(batch)`, a batch's mean; None if `stop` said so before.

    `stop` must depend on this process alone: the others are told by the sum at the end.
    """
    total = torch.zeros(3, dtype=torch.float64, device=device)  # losses, samples, whether a process stopped
    for batch in batches:
        if stop():
            total[2] = 1
            break
        size = len(batch["index"])
        total[0] += size * loss_of(batch).double()
        total[1] += size
    losses, samples, stopped = distributed.total(total).tolist()
    return None if stopped else losses / samples
