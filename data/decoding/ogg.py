"""The pages of Ogg files (RFC 3533), each checked by its sum and its number: decoders pass over damage in silence."""

import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from audio_mamba.data.decoding.parts import DamageError, Part, read_at

HEADER_BYTES = 27
FIRST, LAST = 2, 4  # flags of a page
NO_GRANULE = (1 << 64) - 1
OF_SOUNDFILE = (b"\x01vorbis", b"OpusHead")  # how streams begin that libsndfile decodes; it fails on the FLAC of FFmpeg
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    start: int
    end: int
    flags: int
    granule: int
    stream: int  # the serial number
    number: int
    head: bytes  # the first bytes of its content


class _Link:
    """One of the chained files of an Ogg file: one stream, or several at once."""

    def __init__(self, start: int):
        self.start = self.end = start
        self.heads: list[bytes] = []
        self.last: dict[int, Page] = {}  # of each stream
        self.granules: dict[int, int] = {}
        self.has_content = False

    def add(self, page: Page) -> None:
        """DamageError for a page that does not follow the last one of its stream."""
        if page.flags & FIRST:
            self.heads.append(page.head)
        else:
            before = self.last.get(page.stream)
            if before is None:
                raise DamageError(f"damaged, its stream {page.stream} has no first page")
            if page.number != before.number + 1:
                raise DamageError(
                    f"damaged, page {before.number + 1} is missing near byte {page.start}; page {page.number} follows"
                )
            if page.granule != NO_GRANULE:
                if page.granule < self.granules.get(page.stream, 0):
                    raise DamageError(f"damaged, its page {page.number} goes back in time")
                self.granules[page.stream] = page.granule
            self.has_content = True
        self.last[page.stream] = page
        self.end = page.end

    def part(self, fault: str | None = None) -> Part:
        unmarked = any(not page.flags & LAST for page in self.last.values())
        warning = "its last page is not marked as such; the end may be missing" if unmarked and not fault else None
        if len(self.heads) == 1 and self.heads[0].startswith(OF_SOUNDFILE):
            return Part(self.start, self.end, "soundfile", fault=fault, warning=warning)
        return Part(self.start, self.end, "av", "ogg", fault=fault, warning=warning)


def ogg_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """The chained files in an Ogg file, one after another.

    DamageError, or a part with a fault, where a page is torn, lost or changed.
    """
    parts: list[Part] = []
    link = _Link(start)
    try:
        for page in _pages(file, start, end):
            if page.flags & FIRST and link.has_content:
                parts.append(link.part())
                link = _Link(page.start)
            link.add(page)
    except DamageError as error:
        if not any(link.granules.values()):
            raise
        return [*parts, link.part(fault=str(error))]
    if not link.has_content:
        raise DamageError("it holds no sound")
    return [*parts, link.part()]


def _pages(file: BinaryIO, place: int, end: int) -> Iterator[Page]:
    while place < end:
        data = read_at(file, place, HEADER_BYTES + 255)
        if not data.startswith(b"OggS\0"):
            found = _next_page(file, place, end)
            if found is None:
                if data and (b"OggS".startswith(data[:4]) or data[:4] == b"OggS"):
                    raise DamageError("cut off, its last page is torn")
                return  # tags or padding
            place = found
            continue
        segments = data[26] if len(data) >= HEADER_BYTES else 255
        content = HEADER_BYTES + segments
        length = content + sum(data[HEADER_BYTES:content])
        data = read_at(file, place, length)
        if len(data) < length or place + length > end:
            if _next_page(file, place + 1, end) is None:
                raise DamageError("cut off, its last page is torn")
            raise DamageError(f"damaged, the page at byte {place} is torn")
        number = int.from_bytes(data[18:22], "little")
        if _checksum(data[:22] + bytes(4) + data[26:length]) != int.from_bytes(data[22:26], "little"):
            torn = place + length >= end
            raise DamageError(f"{'cut off or ' if torn else ''}damaged, the checksum of page {number} is wrong")
        yield Page(
            place,
            place + length,
            data[5],
            int.from_bytes(data[6:14], "little"),
            int.from_bytes(data[14:18], "little"),
            number,
            data[content : min(length, content + 8)],
        )
        place += length


def _next_page(file: BinaryIO, place: int, end: int) -> int | None:
    while place < end:
        data = read_at(file, place, 1 << 20)
        if (found := data.find(b"OggS\0")) >= 0:
            return place + found
        place += max(1, len(data) - 4)
    return None


def _checksum(page: bytes) -> int:
    """CRC-32 of Ogg: zlib's polynomial, with the bits of bytes and result in the other order, from 0, not inverted."""
    value = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)
