"""The precisions in which encoders can run, by the names that configs and commands use."""

import contextlib
import functools
import logging
import time

import torch

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TOO_SLOW = 3.0  # times the time of float32: with instructions for it a precision is faster, without them far beyond
# Of the product that is timed: large enough that calling it takes no part, and 0.1 s where it is slow.
_ROWS, _WIDTH, _ROUNDS, _PATIENCE = 256, 384, 5, 0.1

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
    share = _seconds(PRECISIONS[precision]) / _seconds(torch.float32)
    if share > TOO_SLOW:
        logger.warning(
            "float32 is used: this processor has no fast products in %s (%.0f times the time)", precision, share
        )
    return share > TOO_SLOW


@torch.no_grad()
def _seconds(dtype: torch.dtype) -> float:
    """For a product; the fastest of several, of which two are enough where they take long.

    In one thread, by its processor time, so that other work on the machine does not change the answer between starts.
    """
    x, weight = torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype)
    times: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while len(times) < 2 or len(times) < _ROUNDS and sum(times) < _PATIENCE:
            start = time.thread_time()
            torch.nn.functional.linear(x, weight)
            times.append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)
