"""Walks through the members of a tar file, past what tarfile takes for its end.

tarfile stops at a block of zeros and at a damaged header. Both may be a hole in the middle of the file; zeros may also
be the end of one tar file that another one was joined to. So the rest is searched for the next header.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

MAGIC, MAGIC_OFFSET = b"ustar", 257  # of every header but those of the 1970s
BLOCK = 1 << 20  # bytes read at a time


class Readable(Protocol):
    """What `tar_members` needs of a file; going back by up to BLOCK bytes is enough."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, /) -> object: ...

    def tell(self) -> int: ...


class ForwardFile:
    """A stream as a file that can skip forward, and back by up to BLOCK bytes."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._kept, self._start = b"", 0  # the last bytes read, and where they begin
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, /) -> None:
        if offset < self._start:
            raise OSError(f"a stream cannot go back to byte {offset}")
        self._position = offset

    def read(self, size: int, /) -> bytes:
        """`size` bytes, fewer only at the end of the stream."""
        while self._start + len(self._kept) < self._position + size:
            block = self._stream.read(BLOCK)
            if not block:
                break
            unneeded = min(max(0, self._position - BLOCK - self._start), len(self._kept))
            self._kept, self._start = self._kept[unneeded:] + block, self._start + unneeded
        begin = max(0, self._position - self._start)
        data = self._kept[begin : begin + size]
        self._position += len(data)
        return data


def tar_members(file: Readable, report: Callable[[str], None]) -> Iterator[tarfile.TarInfo]:
    """All members in order; the caller may read the file while it handles one of them.

    The last member may reach beyond the end of the file. Tar files joined by `cat` are read as one.

    Args:
        file: an uncompressed tar file.
        report: called with each problem: the file is cut off, or damaged between two bytes. What it raises passes
            through.
    """
    start, found = 0, 0
    while True:
        file.seek(found)
        problem, end = None, found
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:  # type: ignore[call-overload]
                for member in tar:
                    if tar.offset <= member.offset:
                        raise tarfile.ReadError("a member of negative size")
                    end = tar.offset
                    yield member
                end = tar.offset
        except (tarfile.TarError, ValueError, OverflowError) as error:  # ValueError: a header with absurd numbers
            problem = f"cannot be read as a tar file ({error})"
        # A header that tarfile cannot use is not to be found again.
        begin = end if problem is None else max(end, found + 1)
        next_header, zeros, file_end = _next_header(file, begin)
        if next_header is None:
            end_blocks, longest_end = 2 * tarfile.BLOCKSIZE, 2 * tarfile.BLOCKSIZE + tarfile.RECORDSIZE
            if problem or not zeros or not end_blocks <= file_end - end <= longest_end:
                report(problem or f"cut off or damaged at byte {end}")
            return
        if problem or not zeros or next_header != _padded_end(start, end):
            report(f"damaged between byte {end} and byte {next_header}")
        else:
            start = next_header
        found = next_header


def _padded_end(start: int, end: int) -> int:
    """Where a tar file that begins at `start` ends if its last member ends at `end`: zeros fill its last record."""
    size = end - start + 2 * tarfile.BLOCKSIZE
    return start + -(-size // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _next_header(file: Readable, begin: int) -> tuple[int | None, bool, int]:
    """Where the first header at or after `begin` is, whether there are only zeros before it, and how far was read.

    The place is None where the file ends without another header. Headers need not be aligned, since damage may have
    removed bytes.
    """
    position, zeros = begin, True
    while True:
        file.seek(position)
        window = file.read(BLOCK)
        for match in re.finditer(MAGIC, window[MAGIC_OFFSET:]):
            header = match.start()
            if _is_header(window[header : header + tarfile.BLOCKSIZE]):
                return position + header, zeros and _is_zeros(window[:header]), position + len(window)
        zeros = zeros and _is_zeros(window)
        if len(window) < BLOCK:
            return None, zeros, position + len(window)
        position += BLOCK - tarfile.BLOCKSIZE + 1  # the last header may have been cut by the window


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError, OverflowError):  # the checksum is wrong, mostly
        return False
    return True


def _is_zeros(data: bytes) -> bool:
    return data.count(0) == len(data)
