"""Batches copied to the device one step ahead, on a stream of their own, while the step before computes."""

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def prefetch(batches: Iterable[dict[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """The batches, dicts of tensors, on `device`, in their order; one batch is read ahead of the one in use.

    Copies overlap only from pinned memory. On a CPU the batches pass through as they are, none read ahead.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = _stream(device)

    def copy(batch):
        with torch.cuda.stream(stream):
            return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}

    def hand_over(batch):
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in batch.values():
            tensor.record_stream(current)  # its memory is not used again before the step is through
        return batch

    ahead = None
    for batch in batches:
        if ahead is not None:
            # Before the next copy is queued: the step must wait for its own batch alone.
            ready = hand_over(ahead)
            ahead = copy(batch)
            yield ready
        else:
            ahead = copy(batch)
    if ahead is not None:
        yield hand_over(ahead)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all epochs: memory that was given to a stream serves no other."""
    return torch.cuda.Stream(device)
