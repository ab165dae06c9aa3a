"""One process at a time in a folder that two would spoil for each other."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds: the helpers of a killed process, which hold what it held, end a little after it
POLL = 0.1  # seconds


class FolderInUseError(OSError):
    """Another process works in the folder; the message names it and says what to do."""


@contextmanager
def sole_use(folder: str | Path, shared: bool = False, patience: float | None = None) -> Iterator[None]:
    """Keep processes that call this too out of an existing folder for the length of the block.

    shared: let in those that ask for shared use as well. The lock is one of the open folder (flock), so it writes no
    file and ends with the process, however that ends. Where a file system knows no such locks (some network ones),
    nothing is kept out. FolderInUseError if the folder is still taken after `patience` seconds (None: PATIENCE).
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        locked = _lock(
            descriptor, folder, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, PATIENCE if patience is None else patience
        )
        try:
            yield
        finally:
            if locked:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # for processes forked meanwhile, too, which hold it as well
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: str | Path, kind: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            if time.monotonic() > end:
                raise FolderInUseError(
                    f"{folder}: another process works in this folder; wait until it has ended, or choose another folder"
                ) from error
        except OSError as error:
            logger.info("%s: its file system cannot lock (%s)", folder, error.strerror)
            return False
        time.sleep(POLL)
