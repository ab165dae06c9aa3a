"""Reads byte ranges of many files."""

import os
import resource
from collections import OrderedDict
from io import FileIO
from pathlib import Path


class ShardFiles:
    """Reads byte ranges of many shards, with at most `max_open` of them open at a time.

    Reads carry their own offset, so a forked process may share the open files; a pickled copy opens its own.
    """

    def __init__(self, max_open: int = 512):
        # At most half of the system's limit, which may be only 256, so that the rest of the process has files left.
        self.max_open = min(max_open, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._open: OrderedDict[Path, FileIO] = OrderedDict()  # least recently used first

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, fewer if the file ends before. OSError if it cannot be read."""
        return os.pread(self._descriptor(path), size, offset)

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> int:
        """Fill a buffer with the bytes from `offset`. Returns how many were read; otherwise as `read`."""
        return os.preadv(self._descriptor(path), [buffer], offset)

    def _descriptor(self, path: Path) -> int:
        if path not in self._open:
            self._open[path] = open(path, "rb", buffering=0)
            if len(self._open) > self.max_open:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path].fileno()

    def __reduce__(self) -> tuple:
        return ShardFiles, (self.max_open,)
