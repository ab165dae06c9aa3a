import os

import pytest


@pytest.fixture(autouse=True)
def one_preparation_per_module(monkeypatch):
    """Triton's interpreter exchanges the functions of its language for a kernel, and again at each call of a helper by
    the kernel, which takes half of its time; once for each module is enough."""
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
