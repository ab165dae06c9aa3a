"""Batches of segments through the encoder: one after another on a GPU, one for each core at a time on a CPU."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

Batch = TypeVar("Batch")


def run_batches(
    encode: Callable[[Batch], None],
    batches: Sequence[Batch],
    device: torch.device,
    precision: Callable[[], AbstractContextManager],
) -> None:
    """Call `encode` with each batch, without gradients.

    On a CPU, several batches are encoded side by side, each by one thread. That takes less time than all threads on one
    batch, which wait for each other after every operator, and each batch can be small enough for the caches.

    Args:
        encode: encodes a batch and keeps the result.
        batches: its inputs.
        device: of the encoder.
        precision: makes the context in which `encode` runs.
    """
    if not batches:
        return
    left = iter(batches)

    def work() -> None:
        try:
            with torch.no_grad(), precision():
                for batch in left:  # shared: each batch goes to one worker
                    encode(batch)
        finally:
            deque(left, maxlen=0)  # after an error or Ctrl-C, nobody takes another batch

    def work_alone() -> None:
        torch.set_num_threads(1)
        work()

    threads = torch.get_num_threads()
    workers = min(threads, len(batches)) if device.type == "cpu" else 1
    if workers == 1:
        work()
        return
    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(work_alone) for _ in range(workers)]:
                future.result()
        finally:
            deque(left, maxlen=0)
            torch.set_num_threads(threads)  # a worker sets it for all threads to come
