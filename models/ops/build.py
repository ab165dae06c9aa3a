"""Compiling the C kernels of this package with the system's compiler, once per machine.

The library is kept in `$XDG_CACHE_HOME/audio_mamba` (by default `~/.cache/audio_mamba`) under a name derived from
the source, the compiler and the processor, so that a home shared by different machines holds one for each. `$CC` names
another compiler than `cc`; `$AUDIO_MAMBA_CFLAGS` replaces the flags that ask for the machine's own instructions, as in
`AUDIO_MAMBA_CFLAGS=-march=x86-64-v3`.
"""

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "selective_scan" / "csrc"
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared")
# Tried in this order: compilers name the processor differently, and not all have OpenMP.
OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",))


def machine_flags() -> tuple[tuple[str, ...], ...]:
    """The sets of flags to try, the first that compiles is taken: those of AUDIO_MAMBA_CFLAGS, or OPTIONAL_FLAGS."""
    if chosen := os.environ.get("AUDIO_MAMBA_CFLAGS"):
        flags = tuple(shlex.split(chosen))
        return (*flags, "-fopenmp"), flags
    return OPTIONAL_FLAGS


class BuildError(RuntimeError):
    """The kernels cannot be compiled or kept on this machine; the message says why in one line."""


def cache_directory() -> Path:
    """Where this user's compiled kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "audio_mamba"


def build(directory: Path) -> Path:
    """Compile the kernels into `directory`, unless they are there already, and return the library's path.

    Safe in several processes at once: one compiles, the others wait for it. BuildError, or OSError of the folder.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    path = directory / f"kernels-{_fingerprint(compiler)}.so"
    if path.exists():
        return path
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        if not path.exists():
            _compile(compiler, path)
    return path


def _fingerprint(compiler: list[str]) -> str:
    parts = [source.read_bytes() for source in sorted(SOURCES.iterdir())]
    parts += [repr((compiler, FLAGS, machine_flags(), processor())).encode(), _run([*compiler, "--version"]).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def processor() -> list[str]:
    """What tells processors apart whose native instructions differ."""
    identity = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        names = ("model name", "flags", "Features", "CPU part")
        first = info.read().split("\n\n")[0]
        identity += [line for line in first.splitlines() if line.startswith(names)]
    return identity


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    except FileNotFoundError:
        raise BuildError(f"no C compiler {command[0]!r} (set CC to another one)") from None
    except subprocess.SubprocessError as error:
        complaint = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise BuildError(f"{' '.join(command[:4])} ... failed: {complaint[0] if complaint else error}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl  # absent on Windows, where `cc` is too

    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(compiler: list[str], path: Path) -> None:
    logger.info("compiling the CPU kernels, once for this machine: %s", path)
    sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
    errors = []
    for optional in machine_flags():
        descriptor, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(descriptor)
        try:
            _run([*compiler, *optional, *FLAGS, "-o", unfinished, *sources])
            os.replace(unfinished, path)
            return
        except BuildError as error:
            errors.append(error)
        finally:
            Path(unfinished).unlink(missing_ok=True)
    raise errors[0]
