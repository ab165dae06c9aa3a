"""Copy the next batch to the device on a separate stream while the current step computes."""

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def prefetch(batches: Iterable[dict[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Yield the batches, dicts of tensors, on `device` and in order, copying one batch ahead of the one in use.

    Copies overlap with computation only if the batches are in pinned memory. On a CPU the batches are passed through
    unchanged and nothing is read ahead.
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
            tensor.record_stream(current)  # its memory is not reused before the step has finished
        return batch

    ahead = None
    for batch in batches:
        if ahead is not None:
            # Hand over before queueing the next copy, so that the step waits only for its own batch.
            ready = hand_over(ahead)
            ahead = copy(batch)
            yield ready
        else:
            ahead = copy(batch)
    if ahead is not None:
        yield hand_over(ahead)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all epochs, because memory allocated on a stream is only reused on that stream."""
    return torch.cuda.Stream(device)
