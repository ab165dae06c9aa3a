import subprocess
import sys

import torch

from models.ops.tracing import constant_when_traced
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


def test_the_models_load_neither_the_compiler_nor_triton():
    """So that no command waits for them that does not use them."""
    script = "import models, sys; print([name for name in ('torch._dynamo', 'triton') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
