"""Compiling the C kernels of csrc/ with the system's compiler, once per machine.

The library is kept in `$XDG_CACHE_HOME/audio_mamba` (by default `~/.cache/audio_mamba`). Its name is derived from the
source, the compiler and the processor, so machines that share a home folder keep one library each. Set `$CC` to use a
compiler other than `cc`, and `$AUDIO_MAMBA_CFLAGS` to replace the flags that ask for the processor's own instructions,
as in `AUDIO_MAMBA_CFLAGS=-march=x86-64-v3`.
"""

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

from audio_mamba.system.atomic_files import atomic_write, remove_partials

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared")
# Tried in this order: compilers name the processor differently, and not all have OpenMP.
OPTIONAL_FLAGS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",))
PATIENCE = 600.0  # seconds to wait for another process that compiles


def machine_flags() -> tuple[tuple[str, ...], ...]:
    """Sets of flags, of which the first that compiles is used: AUDIO_MAMBA_CFLAGS or OPTIONAL_FLAGS."""
    if chosen := os.environ.get("AUDIO_MAMBA_CFLAGS"):
        flags = tuple(shlex.split(chosen))
        return (*flags, "-fopenmp"), flags
    return OPTIONAL_FLAGS


class BuildError(RuntimeError):
    """The kernels cannot be compiled on this machine; the message gives the reason in one line."""


def cache_directory() -> Path:
    """Where this user's compiled kernels are kept."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))  # the specification has relative paths ignored
    return (chosen if chosen.is_absolute() else Path.home() / ".cache") / "audio_mamba"


def build_library(directory: Path) -> Path:
    """Compiles the kernels into `directory`, unless they are there already, and returns the library's path.

    Several processes may call it at once: one compiles, the others wait.

    Raises:
        BuildError: the compiler is missing or failed.
        OSError: the folder cannot be made or written.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    path = directory / f"kernels-{_fingerprint(compiler)}.so"
    if path.exists():
        return path
    from audio_mamba.system.folder_lock import lock_folder  # imports fcntl, which Windows lacks, as it lacks `cc`

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_folder(directory, patience=PATIENCE):
        if not path.exists():
            remove_partials(path)
            logger.info("compiling the CPU kernels, once for this machine: %s", path)
            library = _compile(compiler)
            with atomic_write(path) as file:
                file.write(library)
    return path


def _fingerprint(compiler: list[str]) -> str:
    parts = [source.read_bytes() for source in sorted(SOURCES.iterdir())]
    parts += [repr((compiler, FLAGS, machine_flags(), processor())).encode(), _run([*compiler, "--version"]).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def processor() -> list[str]:
    """What distinguishes processors with different native instructions."""
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


def _compile(compiler: list[str]) -> bytes:
    """The shared library."""
    sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
    errors = []
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        for optional in machine_flags():
            try:
                _run([*compiler, *optional, *FLAGS, "-o", str(library), *sources])
                return library.read_bytes()
            except BuildError as error:
                errors.append(error)
    raise errors[0]
