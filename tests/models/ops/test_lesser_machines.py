"""The kernels as machines other than this one build and use them."""

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from audio_mamba.models.ops import native
from audio_mamba.models.ops.native import build
from tests.conftest import ROOT

ON_X86 = platform.machine() in ("x86_64", "AMD64")
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


HALVES = """
#include "vec.h"
void to_floats(const void *halves, float *floats, long n) {
    for (long i = 0; i < n; i += W)
        store(floats + i, from_float16(load_halves((const char *)halves + 2 * i, W)), W);
}
void to_halves(const float *floats, void *halves, long n) {
    for (long i = 0; i < n; i += W)
        store_halves((char *)halves + 2 * i, to_float16(load(floats + i, W)), W);
}
"""


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C compiler {COMPILER!r}")
@pytest.mark.parametrize("flags", ["-march=x86-64 -D_Float16=unknown", "-march=haswell -mno-f16c"] if ON_X86 else [""])
def test_float16_where_neither_processor_nor_compiler_knows_it(tmp_path, monkeypatch, flags):
    """As GCC before version 12 on x86, without the instructions: all halves, and the floats around each of them and
    around the middle of each two."""
    csrc = build.SOURCES
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    monkeypatch.setenv("AUDIO_MAMBA_CFLAGS", f"{flags} -I{shlex.quote(str(csrc))}")
    (tmp_path / "halves.c").write_text(HALVES)
    library = ctypes.CDLL(str(build.build_library(tmp_path / "cache")))

    def convert(function, values, dtype):
        result = np.empty(len(values), dtype)
        function(ctypes.c_void_p(values.ctypes.data), ctypes.c_void_p(result.ctypes.data), ctypes.c_long(len(values)))
        return result

    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    floats = convert(library.to_floats, halves, np.float32)
    np.testing.assert_array_equal(floats, halves.astype(np.float32))
    assert (np.signbit(floats) == np.signbit(halves)).all()

    finite = np.append(np.sort(halves[np.isfinite(halves)].astype(np.float32)), np.float32(2**16))
    middles = (finite[1:] + finite[:-1]) / 2
    near = np.concatenate([finite, middles])
    rng = np.random.default_rng(0)
    floats = np.concatenate(
        [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf)), floats]
        + [rng.integers(2**32, size=2**18, dtype=np.uint32).view(np.float32)]
    )
    floats = floats[: len(floats) // 16 * 16]
    with np.errstate(over="ignore", invalid="ignore"):
        true = floats.astype(np.float16)
    halves = convert(library.to_halves, floats, np.float16)
    np.testing.assert_array_equal(halves, true)
    assert (np.signbit(halves) == np.signbit(true)).all()


@pytest.mark.slow
@pytest.mark.skipif(not ON_X86, reason="the flags are those of x86")
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
