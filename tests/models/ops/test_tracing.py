import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

from audio_mamba.models.ops.tracing import constant_when_traced, unwatched
from tests.conftest import ROOT

asked = []


@constant_when_traced
def answer():
    asked.append(len(asked))  # which a graph cannot hold
    return "no" if asked else "yes"


def test_the_result_is_a_constant_of_the_graph():
    asked.clear()
    double = torch.compile(lambda x: 2 * x if answer() == "no" else x, fullgraph=True, backend="eager")
    assert double(torch.tensor(3.0)) == 6.0 and double(torch.tensor(4.0)) == 8.0
    assert len(asked) == 1


def test_inference_loads_neither_the_compiler_nor_triton():
    """So that no command waits for them that does not use them."""
    script = """
import sys, torch
from audio_mamba import models
with torch.no_grad():
    models.mamba_ssast_tiny(depth=1).eval().forward_blocks(torch.randn(1, 5, 192))
print([name for name in ('torch._dynamo', 'triton') if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_whoever_watches_sees_the_operator():
    x, weight = torch.zeros(2), torch.nn.Parameter(torch.zeros(2))
    seen = []

    def look(x):
        seen.append(unwatched(x))
        return x * 2

    assert unwatched(x, None) and not unwatched(x, weight)
    with torch.no_grad():
        assert unwatched(x, weight)
    with FakeTensorMode() as mode:
        assert not unwatched(mode.from_tensor(x))
        assert not unwatched(x)
    torch.func.vmap(look)(torch.zeros(3, 2))
    torch.func.jvp(look, (x,), (x,))
    torch.jit.trace(look, (x,), check_trace=False)
    with forward_ad.dual_level():
        look(forward_ad.make_dual(x, x))
    assert len(seen) >= 4 and not any(seen)
