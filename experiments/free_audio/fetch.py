"""Fetch the recordings of the experiment from Debian packages, which are downloaded and unpacked but not installed.

    apt-get update
    python -m experiments.free_audio.fetch AUDIO

The audio files and licence of each package are written to AUDIO/<package>/. Existing packages are skipped, so run the
same command again to resume after an interruption. --packages CSV fetches the packages of another table; recordings
in more formats and in zip archives are kept then.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Set
from pathlib import Path

from tqdm import tqdm

from experiments.free_audio.packages import TABLE, add_tables_option, read_packages

SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".mp3"}  # of the files that the shipped weights were trained on
MORE_SUFFIXES = {  # of other tables: of the files that the weights of eighteen hours were trained on
    *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aiff", ".aif", ".aifc"),
    *(".m4a", ".m4b", ".aac", ".mp4", ".mov", ".3gp", ".webm", ".mka", ".mkv", ".wma", ".wmv", ".avi", ".amr", ".caf"),
    *(".au", ".snd", ".w64", ".ape", ".wv", ".ac3", ".sph"),
}
ARCHIVES = {".love", ".pk3", ".wz", ".zip"}  # zip archives in which games keep their recordings


def fetch(
    name: str,
    out: Path,
    version: str | None = None,
    suffixes: Set[str] = SUFFIXES,
    archives: Set[str] = frozenset(),
) -> None:
    """Download one package and keep its audio and copyright file in out/name, which appears only when complete.

    Args:
        version: of the package; None for the newest.
        suffixes: of the files to keep.
        archives: suffixes of zip archives to take files from as well; those of data.zip go to data.zip.unpacked.

    Raises:
        RuntimeError: apt-get or dpkg-deb failed; the message is their last line.
    """
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as folder:
        temporary = Path(folder)
        _run(["apt-get", "download", f"{name}={version}" if version else name], temporary)
        _run(["dpkg-deb", "--extract", next(temporary.glob("*.deb")).name, "all"], temporary)
        for archive in [file for file in (temporary / "all").rglob("*") if file.suffix.lower() in archives]:
            _unpack(archive, suffixes)
        for file in (temporary / "all").rglob("*"):
            if (
                file.is_file()
                and not file.is_symlink()
                and (file.suffix.lower() in suffixes or file.name == "copyright")
            ):
                kept = temporary / "kept" / file.relative_to(temporary / "all")
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(file, kept)
        try:
            (temporary / "kept").rename(out / name)
        except OSError:
            if not (out / name).exists():
                raise
            # another process has fetched the same package


def _unpack(archive: Path, suffixes: Set[str]) -> None:
    if archive.is_file() and zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for member in file.namelist():
                if Path(member).suffix.lower() in suffixes:
                    file.extract(member, archive.with_name(archive.name + ".unpacked"))


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"{command[0]} failed").splitlines()[-1])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.free_audio.fetch", description=__doc__.splitlines()[0])
    parser.add_argument("out", metavar="AUDIO", type=Path, help="folder for the recordings")
    parser.add_argument("names", metavar="PACKAGE", nargs="*", help="fetch only these (default: all of the table)")
    add_tables_option(parser)
    args = parser.parse_args(arguments)
    try:
        known = [package.name for package in read_packages(args.tables or [TABLE])]
    except (ValueError, OSError) as error:
        raise SystemExit(f"fetch: {error}") from None
    if unknown := set(args.names) - set(known):
        raise SystemExit(f"fetch: not in the table of packages: {', '.join(sorted(unknown))}")
    if shutil.which("apt-get") is None:
        raise SystemExit("fetch: apt-get not found; this command needs Debian or Ubuntu")
    args.out.mkdir(parents=True, exist_ok=True)
    own = {package.name for package in read_packages()}  # the shipped weights were trained on these: keep their files
    failed = []
    for name in tqdm(args.names or known, desc="fetching", unit="package"):
        if (args.out / name).exists():
            continue
        try:
            if name in own:
                fetch(name, args.out)
            else:
                fetch(name, args.out, suffixes=MORE_SUFFIXES, archives=ARCHIVES)
        except RuntimeError as error:
            failed.append(f"{name}: {error}")
    if failed:
        raise SystemExit("\n".join(["fetch: could not fetch:", *failed]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
