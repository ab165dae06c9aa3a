"""Which library multiplies the float32 matrices of linear layers on this machine's CPU: PyTorch's own choice or oneDNN.

The faster one is found by a measurement of some milliseconds, whose result is kept beside the compiled kernels. The
environment variable AUDIO_MAMBA_LINEAR=torch|onednn overrides it. The two round differently, so a training run keeps to
one: rank 0 decides, and checkpoints store what it decided.
"""

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from audio_mamba.models.ops.native.build import cache_directory, processor
from audio_mamba.models.ops.private_torch import has_onednn_linear, onednn_linear
from audio_mamba.system.atomic_files import atomic_text

logger = logging.getLogger(__name__)

CHOICES = ("torch", "onednn")
CANNOT_BE_KEPT = (OSError, RuntimeError)  # no home folder, or no writing there
WORTH = 0.95  # oneDNN must take less than this share of the time
# What is measured: the layers of a block of SSAM-tiny on two clips of 2 s.
_LAYERS = ((192, 1152), (576, 60), (12, 576), (576, 192))  # inputs and outputs
_ROWS = 502  # of the input: the tokens
_ROUNDS = 5  # after one to warm up

_choice: str | None = None
_choosing = threading.Lock()


def linear_choice() -> str:
    """The library in use, "torch" or "onednn"; the first call in a process settles it.

    Raises:
        ValueError: AUDIO_MAMBA_LINEAR is neither of the two.
    """
    global _choice
    if _choice is None:
        with _choosing:  # two measurements at once would disturb each other, and might not agree
            if _choice is None:
                _choice = _of_environment() or _of_machine()
    return _choice


def set_linear_choice(name: str) -> None:
    """Takes the library that another process or a checkpoint names.

    AUDIO_MAMBA_LINEAR overrides it, and a torch without oneDNN cannot follow it; a warning says so.

    Raises:
        ValueError: the name, or that in AUDIO_MAMBA_LINEAR, is neither of the two.
    """
    global _choice
    if name not in CHOICES:
        raise ValueError(f"unknown library for linear layers {name!r}; choose from {', '.join(CHOICES)}")
    if name == "onednn" and not has_onednn_linear():
        logger.warning("this PyTorch has no oneDNN; linear layers use PyTorch's own library, which rounds differently")
        name = "torch"
    chosen = _of_environment() or name
    if chosen != name:
        logger.warning("AUDIO_MAMBA_LINEAR=%s overrides %r, which rounds differently", chosen, name)
    _choice = chosen


def _of_environment() -> str | None:
    name = os.environ.get("AUDIO_MAMBA_LINEAR")
    if not name:
        return None
    if name not in CHOICES:
        raise ValueError(f"AUDIO_MAMBA_LINEAR must be {' or '.join(CHOICES)}, got {name!r}")
    if name == "onednn" and not has_onednn_linear():
        raise ValueError("AUDIO_MAMBA_LINEAR=onednn, but this PyTorch has no oneDNN")
    return name


def _of_machine() -> str:
    """The faster library as measured once; where it cannot be kept, each process measures for itself."""
    if not has_onednn_linear():
        return "torch"
    with contextlib.suppress(*CANNOT_BE_KEPT, UnicodeDecodeError):
        if (kept := _file().read_text().strip()) in CHOICES:
            return kept
    choice = _measure()
    logger.info("linear layers in float32 use %s, the faster library on this machine", choice)
    with contextlib.suppress(*CANNOT_BE_KEPT):
        path = _file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic_text(path) as file:
            file.write(choice + "\n")
    return choice


def _file() -> Path:
    """Where this machine's choice is kept. RuntimeError for a user without a home folder."""
    identity = hashlib.sha256(repr((processor(), torch.__version__)).encode()).hexdigest()[:20]
    return cache_directory() / f"linear-{identity}.txt"


@torch.no_grad()
def _measure() -> str:
    """Times the three products of each layer, forward and backward, by both libraries in turn."""
    layers = [
        (torch.ones(_ROWS, inputs), torch.ones(outputs, inputs), torch.ones(_ROWS, outputs))
        for inputs, outputs in _LAYERS
    ]

    def seconds(product: Callable) -> float:
        start = time.perf_counter()
        for x, weight, dy in layers:
            product(x, weight, None), product(dy, weight.t(), None)
            weight_gradient(dy, x, product)
        return time.perf_counter() - start

    fastest: dict[Callable, float] = {F.linear: float("inf"), onednn_linear: float("inf")}
    for number in range(1 + _ROUNDS):  # the first warms up
        for product, so_far in fastest.items():
            now = seconds(product)
            fastest[product] = min(so_far, now) if number else so_far
    return "onednn" if fastest[onednn_linear] < WORTH * fastest[F.linear] else "torch"


def weight_gradient(dy: Tensor, x: Tensor, product: Callable) -> Tensor:
    """dy [M, O], x [M, I] -> dy^T x [O, I]; oneDNN copies the first matrix of a product, so let it be the smaller."""
    if x.shape[1] < dy.shape[1]:
        return product(x.t(), dy.t(), None).t().contiguous()
    return product(dy.t(), x.t(), None)
