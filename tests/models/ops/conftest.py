import os

import pytest
import torch
from torch.utils import deterministic


@pytest.fixture(autouse=True)
def one_preparation_per_module(monkeypatch):
    """Halves the time of Triton's interpreter: it patches its language for a kernel, and again whenever the kernel
    calls a helper. Once per module is enough."""
    if not os.environ.get("TRITON_INTERPRET"):
        return
    try:
        from triton.runtime import interpreter
    except ImportError:
        return  # the tests of Triton kernels skip themselves
    language, exchange, done = interpreter.tl, interpreter._patch_lang, set()

    def exchange_once(function):
        if language.core.is_builtin(language.load):  # a new kernel
            done.clear()
        if function.__module__ not in done:
            done.add(function.__module__)
            return exchange(function)

    monkeypatch.setattr(interpreter, "_patch_lang", exchange_once)


@pytest.fixture
def poisoned():
    """Uninitialised memory holds NaN."""
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = True
    assert torch.ones(3).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    deterministic.fill_uninitialized_memory = before[1]
