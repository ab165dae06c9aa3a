"""The frames of FLAC files (RFC 9639), found by their headers: libFLAC says nothing of frames that are missing."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from audio_mamba.data.decoding.parts import DamageError, Part, audio_start, read_at

BEGINNING = b"fLaC\0\0\0\x22"  # and the header of STREAMINFO, which comes first
STREAMINFO_END = 42
BLOCK_SIZES = (
    {1: 192} | {code: 576 << code - 2 for code in range(2, 6)} | {code: 256 << code - 8 for code in range(8, 16)}
)
RATES = dict(enumerate((88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000), 1))
BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
HEADER_BYTES = 16  # at most
READ_BYTES = 1 << 20


class Frame(NamedTuple):
    number: int  # of the frame or, where block sizes vary, of its first sample
    samples: int
    varies: bool
    rate: int | None  # None where the frame refers to the header of the file
    channels: int
    bits: int | None


def flac_parts(file: BinaryIO, end: int) -> list[Part]:
    """The FLAC files in a file, one after another; DamageError where frames are missing or were not counted."""
    starts = [*_beginnings(file, end)]
    if not starts:
        raise DamageError("its header is cut off")
    return [_part(file, start, stop) for start, stop in zip(starts, [*starts[1:], end])]


def _beginnings(file: BinaryIO, end: int) -> Iterator[int]:
    place = audio_start(file)
    while place < end:
        data = read_at(file, place, READ_BYTES)
        found = data.find(BEGINNING)
        while found >= 0:
            yield place + found
            found = data.find(BEGINNING, found + 1)
        place += max(1, len(data) - len(BEGINNING) + 1)


def _part(file: BinaryIO, start: int, end: int) -> Part:
    info = read_at(file, start, STREAMINFO_END)[8:]
    if len(info) < 34:
        raise DamageError("its header is cut off")
    packed = int.from_bytes(info[10:18], "big")  # rate 20 bits, channels - 1 in 3, bits - 1 in 5, samples in 36
    rate, channels, bits, total = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1, packed & (1 << 36) - 1
    found = ahead = 0  # samples of the frames so far; the number of the first frame after a hole
    frames = 0
    for frame in _headers(file, _first_frame(file, start, end), end):
        if frame.number == (found if frame.varies else frames):
            if frame.rate not in (None, rate) or frame.channels != channels or frame.bits not in (None, bits):
                raise DamageError("its header contradicts itself: its frames name another rate or format")
            found, frames, ahead = found + frame.samples, frames + 1, 0
        elif frame.number > (found if frame.varies else frames):
            ahead = ahead or frame.number
    fault = None
    if found < total or (total == 0 and ahead):
        fault = f"cut off or damaged, frames are missing after second {found / max(rate, 1):.1f}"
        if not found:
            raise DamageError(fault)
    elif 0 < total < found:
        raise DamageError(f"its header counts {total} samples, but its frames hold {found}")
    # libFLAC reads as much as the header counts.
    patches = {} if found == total else {start + 18: (packed >> 36 << 36 | found).to_bytes(8, "big")}
    return Part(start, end, "soundfile", samples=found, patches=patches, fault=fault)


def _first_frame(file: BinaryIO, start: int, end: int) -> int:
    place, last = start + 4, False
    while not last and place + 4 <= end:
        header = read_at(file, place, 4)
        last = header[0] >= 128
        place += 4 + int.from_bytes(header[1:], "big")
    if not last or place > end:
        raise DamageError("its header is cut off")
    return place


def _headers(file: BinaryIO, place: int, end: int) -> Iterator[Frame]:
    """Everything that has the form and the checksum of a frame's header; a few by chance."""
    while place < end:
        data = read_at(file, place, min(READ_BYTES, end - place))
        data_end = len(data) if place + len(data) >= end else len(data) - HEADER_BYTES
        if data_end <= 0:
            return
        octets = np.frombuffer(data, np.uint8)
        for i in np.flatnonzero((octets[:-1] == 0xFF) & (octets[1:] & 0xFE == 0xF8)).tolist():
            if i < data_end and (frame := _frame(data[i : i + HEADER_BYTES])):
                yield frame
        place += data_end


def _frame(header: bytes) -> Frame | None:
    if len(header) < 6 or header[2] >> 4 == 0 or header[2] & 15 == 15 or header[3] >> 4 > 10 or header[3] & 1:
        return None
    lead = header[4]
    extra = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1  # bytes of the number, coded as in UTF-8
    if extra > 6 or 0x80 <= lead < 0xC0:
        return None
    number = lead if extra == 0 else lead & (1 << 6 - extra) - 1
    for byte in header[5 : 5 + extra]:
        number = number << 6 | byte & 63
    place = 5 + extra
    size_code, rate_code = header[2] >> 4, header[2] & 15
    samples = BLOCK_SIZES.get(size_code, 0)
    if size_code in (6, 7):
        samples = int.from_bytes(header[place : place + size_code - 5], "big") + 1
        place += size_code - 5
    rate = RATES.get(rate_code)
    if rate_code in (12, 13, 14):
        width, unit = {12: (1, 1000), 13: (2, 1), 14: (2, 10)}[rate_code]
        rate = int.from_bytes(header[place : place + width], "big") * unit
        place += width
    if place >= len(header) or _crc8(header[:place]) != header[place]:
        return None
    channels = (header[3] >> 4) + 1 if header[3] < 0x80 else 2  # from 8 on, two that are coded together
    return Frame(number, samples, bool(header[1] & 1), rate, channels, BITS.get(header[3] >> 1 & 7))


def _crc8_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value << 1 ^ 7 if value & 128 else value << 1) & 255
        table.append(value)
    return table


CRC8 = _crc8_table()  # polynomial x^8 + x^2 + x + 1


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = CRC8[value ^ byte]
    return value
