"""The experiment's recordings, out of Debian packages that are downloaded and unpacked but not installed.

    apt-get update
    python -m experiments.free_audio.fetch AUDIO

Audio files and the licence text of a package land in AUDIO/<package>/; a package that is there already is skipped, so
the same command goes on after an interruption.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from experiments.free_audio.packages import read_packages

SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".mp3"}  # those that the clips of the shipped weights were chosen among


def fetch(name: str, out: Path) -> None:
    """Download one package and keep its audio and its copyright file in out/name, which appears when it is complete.

    RuntimeError with the last line of what apt-get or dpkg-deb said.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as folder:
        temporary = Path(folder)
        _run(["apt-get", "download", name], temporary)
        _run(["dpkg-deb", "--extract", next(temporary.glob("*.deb")).name, "all"], temporary)
        for file in (temporary / "all").rglob("*"):
            if (
                file.is_file()
                and not file.is_symlink()
                and (file.suffix.lower() in SUFFIXES or file.name == "copyright")
            ):
                kept = temporary / "kept" / file.relative_to(temporary / "all")
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(file, kept)
        try:
            (temporary / "kept").rename(out / name)
        except OSError:
            if not (out / name).exists():
                raise
            # another fetch into the same folder was faster


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"{command[0]} failed").splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.free_audio.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("out", metavar="AUDIO", type=Path, help="folder to fill")
    parser.add_argument("packages", metavar="PACKAGE", nargs="*", help="only these; default: all of packages.csv")
    args = parser.parse_args(arguments)
    known = [package.name for package in read_packages()]
    if unknown := set(args.packages) - set(known):
        raise SystemExit(f"fetch: not in packages.csv: {', '.join(sorted(unknown))}")
    if shutil.which("apt-get") is None:
        raise SystemExit("fetch: apt-get is not here; the recordings are fetched on Debian or Ubuntu")
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in tqdm(args.packages or known, desc="fetching", unit="package"):
        if (args.out / name).exists():
            continue
        try:
            fetch(name, args.out)
        except RuntimeError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise SystemExit("\n".join(["fetch: not fetched:", *failed]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
