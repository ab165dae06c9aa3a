"""Files that are complete or absent, never half-written, and their checksums.

What `atomic_write` promises: a reader sees the old content or the new one, whatever happens to the writer. An error in
the block leaves the old file as it was. Once the block has ended without an error, the new content is on the disk and
survives a power failure. Concurrent writers, also on several machines, do not mix: the last one to finish wins.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

PARTIAL_SUFFIX = ".partial"
PARTIAL_ENDING = re.compile(r"\.[0-9a-f]{8}\.partial\Z")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of writing alone, without the name of a file


@contextlib.contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """Around writing `path`: the OSError of a full disk names it."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` when the block ends without an error.

    The bytes go to `<name>.<random>.partial` in the same folder. Only a killed process leaves that file behind; see
    `remove_partials`.

    Raises:
        OSError: the folder does not exist or is not writable, or the disk is full; it names a file.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with naming_full_disk(path), open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    # The rename reaches the disk only when the folder is flushed as well.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def atomic_text(path: str | Path) -> Iterator[TextIO]:
    """`atomic_write` of UTF-8 text, whose line ends stay as they are written."""
    with atomic_write(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        yield text
        text.detach()


def remove_partials(*paths: str | Path) -> None:
    """Remove the partial files that killed writers of `paths` left, listing each folder once. No other process may be
    writing them now."""
    written = set(map(Path, paths))
    for folder in {path.parent for path in written}:
        for partial in _partials(folder):
            if folder / PARTIAL_ENDING.sub("", partial.name) in written:
                partial.unlink(missing_ok=True)


def remove_all_partials(folder: str | Path) -> None:
    """Remove the partial files that killed writers left in a folder. No other process may be writing there now."""
    for partial in _partials(Path(folder)):
        partial.unlink(missing_ok=True)


def _partials(folder: Path) -> list[Path]:
    found = folder.glob(f"*{PARTIAL_SUFFIX}")
    return [path for path in found if PARTIAL_ENDING.search(path.name) and not path.is_dir()]


def sha256(path: str | Path) -> str:
    """The SHA-256 checksum of a file in hex digits. Raises OSError if it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
