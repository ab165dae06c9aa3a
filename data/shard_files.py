"""Byte ranges of many files."""

import os
import resource
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO


class ShardFiles:
    """Reads byte ranges of many shards, with at most `max_open` of them open at a time.

    Reads carry their own offset, so a forked process may share the open files; a pickled copy opens its own.
    """

    def __init__(self, max_open: int = 512):
        # Half of what the system allows, which is 256 on some, is left to everybody else.
        self.max_open = min(max_open, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open: OrderedDict[Path, BinaryIO] = OrderedDict()  # least recently used first

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; fewer where the file ends before. Raises OSError where it cannot be read."""
        return os.pread(self._descriptor(path), size, offset)

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> int:
        """Fill a buffer from `offset` on and return the number of bytes read, as `read`."""
        return os.preadv(self._descriptor(path), [buffer], offset)

    def _descriptor(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = open(path, "rb", buffering=0)
            if len(self._open) > self.max_open:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path].fileno()

    def __getstate__(self) -> dict:
        return {"max_open": self.max_open}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)
