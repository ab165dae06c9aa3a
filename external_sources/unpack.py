"""Unpacks the tar.gz files in which the HEAR tasks are released, one task each."""

import gzip
import json
import math
import os
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from audio_mamba.external_sources import layout
from audio_mamba.external_sources.task_files import VOCABULARY, TaskError, read_json
from audio_mamba.system.atomic_files import PARTIAL_SUFFIX, atomic_write, sha256
from audio_mamba.system.folder_lock import lock_folder

SUFFIXES = (".tar.gz", ".tgz", ".tar")
NOTE = ".unpacked.json"  # in the folder of a task: name, size, time and SHA-256 of its archive
COPY_BYTES = 1 << 20


def archives(directory: Path) -> list[Path]:
    """The archives in a folder, sorted."""
    return sorted(entry for entry in directory.iterdir() if entry.name.endswith(SUFFIXES) and entry.is_file())


def task_name(archive: Path) -> str | None:
    """The name of the task in an archive, of which only the beginning is read; None if it has no files of a task.

    Raises:
        TaskError: it is damaged.
    """
    with _opened(archive) as members:
        for member, _ in members:
            if place := _place(member):
                return place[0]
    return None


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack an archive into `directory/<task>`, unless that has been done already.

    Only the files of a task are written. Links, and names that lead out of the folder, are refused. The folder appears
    once the archive has been read to its end, and is replaced if the archive has changed.

    Args:
        archive: `.tar.gz`, `.tgz` or `.tar` file with one task, below folders of any name.
        directory: created if missing.

    Returns:
        The folder of the task.

    Raises:
        TaskError: the archive is damaged, or has no task or several; the folder was not unpacked by this function.
    """
    name = task_name(archive)
    if name is None:
        raise TaskError(f"{archive} has no HEAR task in it")
    task = directory / name
    directory.mkdir(parents=True, exist_ok=True)
    with lock_folder(directory, patience=math.inf):
        noted = _read_note(task)
        status = archive.stat()
        present = {"archive": archive.name, "size": status.st_size, "time": status.st_mtime_ns}
        if noted and noted | present == noted:
            return task
        present["sha256"] = sha256(archive)
        if noted and noted["sha256"] == present["sha256"]:
            _write_note(task, present)
            return task
        if task.exists() and not noted:
            raise TaskError(f"{task} was not unpacked from an archive; remove it, or choose another CACHE")
        for left in directory.glob(f".{task.name}.*{PARTIAL_SUFFIX}"):  # by killed processes
            shutil.rmtree(left)
        partial = directory / f".{task.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"
        try:
            _write_members(archive, task.name, partial)
            _write_note(partial, present)
            os.sync()  # all of it is on the disk before it appears
            if noted:
                shutil.rmtree(task)
            os.rename(partial, task)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return task


def _read_note(task: Path) -> dict:
    return read_json(task / NOTE, dict) if (task / NOTE).is_file() else {}


def _write_note(task: Path, present: dict) -> None:
    with atomic_write(task / NOTE) as file:
        file.write(json.dumps(present, indent=1).encode())


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]]:
    """The members of an archive one after the other. Damage, and a member that is neither a folder nor a plain file
    below the folder of the archive, becomes a TaskError."""

    def members(file: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        while (member := file.next()) is not None:
            parts = PurePosixPath(member.name).parts
            if ".." in parts or member.name.startswith("/") or not (member.isfile() or member.isdir()):
                raise TaskError(f"{archive}: {member.name!r} is not a plain file below the folder of the archive")
            yield member, file
        while file.fileobj is not None and file.fileobj.read(COPY_BYTES):  # to its end, for gzip's checksum
            pass

    try:
        with tarfile.open(archive, "r:*") as file:
            yield members(file)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TaskError(f"{archive} cannot be unpacked, it is damaged or cut off ({error})") from None


def _place(member: tarfile.TarInfo) -> tuple[str, PurePosixPath] | None:
    """Name of the task and path below its folder; None for folders and for files that are not part of a task.

    A task's files are <task>/task_metadata.json, <task>/labelvocabulary.csv, <task>/<split>.json and
    <task>/<rate>/<split>/<clip>, below folders of any name.
    """
    parts = PurePosixPath(member.name).parts
    if member.isdir() or not parts or any(part.startswith("._") for part in parts):  # as macOS adds them
        return None
    if len(parts) >= 4 and parts[-3].isdecimal():
        return parts[-4], PurePosixPath(*parts[-3:])
    if len(parts) >= 2 and (parts[-1] == VOCABULARY or parts[-1].endswith(".json")):
        return parts[-2], PurePosixPath(parts[-1])
    return None


def _write_members(archive: Path, task: str, folder: Path) -> None:
    """Write the files of an archive below a new folder."""
    with _opened(archive) as members:
        for member, file in members:
            if (place := _place(member)) is None:
                continue
            name, path = place
            if name != task:
                raise TaskError(f"{archive} has two tasks in it, {task} and {name}; one is accepted")
            source, target = file.extractfile(member), folder / path
            assert source is not None  # of a plain file
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                raise TaskError(f"{archive} has {member.name!r} twice")
            with open(target, "xb") as out:
                shutil.copyfileobj(source, out, COPY_BYTES)
    if not (folder / layout.METADATA).is_file():
        raise TaskError(f"{archive} has no {layout.METADATA} of {task}")
