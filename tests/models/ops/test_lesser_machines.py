"""The kernels as machines other than this one build and use them."""

import os
import platform
import shlex
import shutil
import subprocess
import sys

import pytest

from audio_mamba.models.ops import native
from tests.conftest import ROOT

COMPILER = shlex.split(os.environ.get("CC") or "cc")[0]
KEY_TESTS = (
    "tests/models/ops/test_mamba_block.py",
    "tests/models/ops/test_causal_conv1d.py",
    "tests/models/ops/test_scan_backends.py",
    "tests/models/ops/test_linear.py",
    "tests/models/ops/test_reverse.py",
)


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C compiler {COMPILER!r}")
def test_a_machine_with_a_compiler_has_the_kernels():
    """Else the tests of the kernels would be skipped there, and nobody would notice."""
    assert native.unsupported_reason() is None


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the flags are those of x86")
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C compiler {COMPILER!r}")
@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3"])  # vectors of 4 and 8 values
def test_key_operators_on_lesser_processors_and_with_pytorch_own_products(tmp_path, level):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not triton", *KEY_TESTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "AUDIO_MAMBA_CFLAGS": f"-march={level}",
            "AUDIO_MAMBA_LINEAR": "torch",
            "XDG_CACHE_HOME": str(tmp_path),
        },
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert len(list((tmp_path / "audio_mamba").glob("kernels-*.so"))) == 1
