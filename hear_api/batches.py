"""Batches of segments through the encoder: one after another on a GPU, one for each core at a time on a CPU."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

Batch = TypeVar("Batch")

# Workers that no call uses now: pools of one thread, in which torch computes alone. They are kept, since
# torch.set_num_threads in a new one also changes the default of all other threads to come, for a moment.
_idle: list[ThreadPoolExecutor] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # a forked process has none of the threads


def run_batches(
    encode: Callable[[Batch], None],
    batches: Sequence[Batch],
    device: torch.device,
    precision: Callable[[], AbstractContextManager],
) -> None:
    """Call `encode` with each batch, without gradients, and in inference mode if the caller is in it.

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
    inference = torch.is_inference_mode_enabled()  # threads do not inherit it, and tensors made in it need it

    def work() -> None:
        try:
            with torch.inference_mode(inference), torch.no_grad(), precision():
                for batch in left:  # shared: each batch goes to one worker
                    encode(batch)
        finally:
            deque(left, maxlen=0)  # after an error or Ctrl-C, nobody takes another batch

    count = min(torch.get_num_threads(), len(batches)) if device.type == "cpu" else 1
    if count == 1:
        work()
        return
    workers = [_take_worker() for _ in range(count)]
    futures: list[Future] = []
    try:
        for worker in workers:
            futures.append(worker.submit(work))
        for future in futures:
            future.result()
    finally:
        deque(left, maxlen=0)
        wait(futures)
        _idle.extend(workers)


def _take_worker() -> ThreadPoolExecutor:
    """An idle worker, or a new one."""
    try:
        return _idle.pop()
    except IndexError:
        worker, threads = ThreadPoolExecutor(1), torch.get_num_threads()
        try:
            worker.submit(_compute_alone).result()
        finally:
            torch.set_num_threads(threads)
        return worker


def _compute_alone() -> None:
    torch.get_num_threads()  # takes the default, as the first operator would otherwise do later
    torch.set_num_threads(1)
