"""A lock on a folder, so that two processes do not write into it at the same time.

What it promises: while one process is inside `lock_folder(folder)`, every other process that asks for the same
folder waits, and gets a `FolderInUseError` once its patience has run out. The lock is an advisory flock on the folder
itself, so it creates no file, and the system releases it when the process ends, even by `kill -9`. It binds only those
who ask for it, and protects nothing on file systems without flock (some network ones).
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds; the children of a killed process inherit its lock and end a little later
POLL = 0.1  # seconds


class FolderInUseError(OSError):
    """Another process is using the folder. The message names the folder and says what to do."""


@contextmanager
def lock_folder(folder: str | Path, shared: bool = False, patience: float | None = None) -> Iterator[None]:
    """Hold the lock of an existing folder for the length of the block.

    Args:
        folder: the folder to lock.
        shared: lock out only those who ask for an exclusive lock; other shared locks are compatible with this one.
        patience: seconds to wait for the lock; None for PATIENCE. A warning says after PATIENCE seconds that a process
            waits longer.

    Raises:
        FolderInUseError: the folder is still locked after `patience` seconds.
        OSError: the folder does not exist or cannot be opened.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = _lock(
            descriptor, folder, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, PATIENCE if patience is None else patience
        )
        try:
            yield
        finally:
            if locked:  # closing is not enough: processes forked inside the block still have the folder open
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: str | Path, kind: int, patience: float) -> bool:
    """Whether the folder is locked now; False if its file system has no locks."""
    start, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if time.monotonic() > start + patience:
                raise FolderInUseError(
                    f"{folder}: another process is using this folder; wait until it has ended, or choose another folder"
                ) from error
            if not said and time.monotonic() > start + PATIENCE:
                logger.warning("%s: waiting for another process that is using this folder", folder)
                said = True
        except OSError as error:
            logger.info("%s: this file system does not support locks (%s)", folder, error.strerror)
            return False
        time.sleep(POLL)
