"""Stretches of a file that a decoder reads as files of their own: most files are one, joined recordings several."""

import io
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

HIGHEST_RATE = 10_000_000  # Hz; the fastest recorders stay below


class DamageError(ValueError):
    """A recording whose bytes contradict each other; the message says how, without the name of the file."""


@dataclass(frozen=True)
class RawSamples:
    """How the samples of a wav file without a usable header are stored, in libsndfile's terms."""

    subtype: str
    rate: int
    channels: int
    endian: str


@dataclass(frozen=True)
class Part:
    start: int  # in bytes
    end: int
    decoder: str  # "soundfile" or "av"
    format: str | None = None  # FFmpeg's name of the container; None lets it look
    samples: int | None = None  # per channel, that the container holds; None where only the decoder can tell
    raw: RawSamples | None = None
    patches: Mapping[int, bytes] = field(default_factory=dict)  # place in the file -> bytes that replace those there
    fault: str | None = None  # why nothing after this part can be read
    warning: str | None = None  # what the user should know about this part
    next_start: int | None = None  # where the next part begins, if not at the end


def all_parts(
    part_at: Callable[[BinaryIO, int, int], Part], file: BinaryIO, start: int, end: int, least: int = 1
) -> list[Part]:
    """The parts between two places, one behind the other, as `part_at(file, start, end)` finds the first of them; what
    is shorter than `least` bytes at the end is none."""
    parts: list[Part] = []
    while not parts or end - start >= least:
        part = part_at(file, start, end)
        parts.append(part)
        start = part.end if part.next_start is None else part.next_start
    return parts


class Window(io.RawIOBase):
    """The bytes of one part as a file of their own."""

    def __init__(self, file: BinaryIO, part: Part):
        self._file, self._part, self._place = file, part, 0
        self.error: OSError | None = None  # of a read, which libsndfile does not pass on

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._part.end - self._part.start}
        self._place = max(0, origin[whence] + offset)
        return self._place

    def readinto(self, buffer) -> int:
        start = self._part.start + self._place
        wanted = max(0, min(len(buffer), self._part.end - start))
        try:
            self._file.seek(start)
            data = bytearray(self._file.read(wanted))
        except OSError as error:
            self.error = error
            raise
        for place, patch in self._part.patches.items():
            for i, byte in enumerate(patch, place - start):
                if 0 <= i < len(data):
                    data[i] = byte
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def check_rate(rate: int) -> None:
    """DamageError for a sample rate that nothing records at: a block of some seconds would fill the memory."""
    if not 0 < rate <= HIGHEST_RATE:
        raise DamageError(f"its header names a sample rate of {rate} Hz")


def read_at(file: BinaryIO, place: int, count: int) -> bytes:
    """Up to `count` bytes from a place on; fewer at the end of the file."""
    file.seek(place)
    return file.read(count)


def file_size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def only_zeros(file: BinaryIO, start: int, end: int) -> bool:
    """Whether a stretch of a file is padding."""
    file.seek(start)
    while start < end:
        data = file.read(min(1 << 20, end - start))
        if not data or data.strip(b"\0"):
            return not data
        start += len(data)
    return True


def id3_size(header: bytes) -> int:
    """The bytes of an ID3v2 tag that begins with these 10 bytes; 0 where they begin none."""
    if len(header) < 10 or not header.startswith(b"ID3") or max(header[6:10]) > 127:
        return 0
    footer = 10 if header[5] & 0x10 else 0
    return 10 + footer + sum(byte << shift for byte, shift in zip(header[6:], (21, 14, 7, 0)))  # 7 bits in each byte


def tag_size(file: BinaryIO, place: int) -> int:
    """The bytes of a tag (ID3v1, ID3v2, APE, Lyrics3) at a place between or after audio; 0 where there is none."""
    head = read_at(file, place, 32)
    if head.startswith(b"TAG+"):
        return 227
    if head.startswith(b"TAG"):
        return 128
    if head.startswith(b"APETAGEX"):
        # The size counts items and footer. A tag without a header begins with its items and is not recognised here.
        return 32 + int.from_bytes(head[12:16], "little")
    if head.startswith(b"LYRICSBEGIN"):
        end = read_at(file, place, 1 << 20).find(b"LYRICS200")
        return end + 9 if end > 0 else 0
    return id3_size(head[:10])


def audio_start(file: BinaryIO) -> int:
    """Where the ID3v2 tags at the front of a file end."""
    start = 0
    while size := id3_size(read_at(file, start, 10)):
        start += size
    return start
