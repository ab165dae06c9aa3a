"""All Triton kernels compile for GPUs; this needs no GPU."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytest.importorskip("triton")


@pytest.mark.parametrize(
    "arguments",
    [
        ["90"],
        *(
            pytest.param(arguments, marks=pytest.mark.slow)
            for arguments in (["80", "--published"], ["90", "--size", "1"], ["90", "--size", "i64"])
        ),
    ],
    ids=" ".join,
)
def test_every_kernel_compiles(tmp_path, arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.ops.compile_kernels", *arguments],
        cwd=ROOT,
        text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
