"""The precisions in which encoders can run, by the names that configs and commands use."""

import contextlib
import functools
import logging
import time
from collections.abc import Sequence

import torch

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOO_SLOW = 3.0  # times as long as float32. A processor made for a precision is faster in it; others are far slower.
# The product that is timed is large enough for the overhead of a call not to matter.
_ROWS = 256  # of the input
_WIDTH = 384  # of the input, and of the output
_LEAST, _ROUNDS = 3, 10  # rounds, at least and at most
_PATIENCE = 0.2  # seconds in all, after which no rounds are added to the least number

logger = logging.getLogger(__name__)


def check_precision(precision: str, *others: str) -> None:
    """ValueError for anything but a key of PRECISIONS or one of the `others`."""
    if precision not in (*others, *PRECISIONS):
        raise ValueError(f"unknown precision {precision!r}; choose from {', '.join((*others, *PRECISIONS))}")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """A context in which an encoder on `device` runs in `precision`, one of PRECISIONS, whatever the caller's autocast;
    its weights stay float32."""
    if precision == "float32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, PRECISIONS[precision])


def usable_precision(device: torch.device, precision: str) -> str:
    """The precision itself, or float32 on a CPU that is many times slower in it; a warning says so, once."""
    if device.type == "cpu" and precision != "float32" and _is_too_slow(precision):
        return "float32"
    return precision


@functools.cache
def _is_too_slow(precision: str) -> bool:
    lower, float32 = _seconds([PRECISIONS[precision], torch.float32])
    ratio = lower / float32
    if ratio > TOO_SLOW:
        logger.warning(
            "float32 is used: this processor has no fast products in %s (they take %.0f times as long)",
            precision,
            ratio,
        )
    return ratio > TOO_SLOW


@torch.no_grad()
def _seconds(dtypes: Sequence[torch.dtype]) -> list[float]:
    """Of each dtype, for a product: the fastest of several, which are taken in turns.

    In one thread, by its processor time, so that other work on the machine hardly changes the answer between starts.
    """
    factors = [(torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)) for dtype in dtypes]
    times: list[list[float]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while len(times) < _LEAST or (len(times) < _ROUNDS and sum(map(sum, times)) < _PATIENCE):
            times.append([])
            for x, weight in factors:
                start = time.thread_time()
                torch.nn.functional.linear(x, weight)
                times[-1].append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return [min(column) for column in zip(*times)]
