"""The boxes of mp4, m4a, mov and 3gp (ISO 14496-12), the elements of Matroska and webm: whether all are there."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from audio_mamba.data.decoding.parts import DamageError, Part, all_parts, only_zeros, read_at

TOLERANCE = 0.15  # seconds by which the durations in a header may differ: the delay of a codec
FORMAT = "mov,mp4,m4a,3gp,3g2,mj2"


def mp4_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """The mp4 files between two places, one after another; DamageError where the boxes do not fill the file."""
    return all_parts(_mp4_part, file, start, end, least=8)


def _mp4_part(file: BinaryIO, start: int, end: int) -> Part:
    found: set[bytes] = set()
    place, moov = start, None
    while end - place >= 8:
        head = read_at(file, place, 16)
        size, name, header = int.from_bytes(head[:4], "big"), head[4:8], 8
        if size == 1:
            size, header = int.from_bytes(head[8:], "big"), 16
        elif size == 0:
            size = end - place  # the last box says so
        if name == b"ftyp" and {b"moov", b"mdat"} <= found:
            break
        if size < header or not all(32 <= byte < 127 or byte == 0xA9 for byte in name):
            if {b"moov", b"mdat"} <= found and only_zeros(file, place, end):
                place = end
                break
            raise DamageError(f"damaged or cut off, the bytes at {place} are not a box of an mp4 file")
        if place + size > end:
            raise DamageError(f"cut off, its box {name.decode('latin-1')} lacks {place + size - end} bytes")
        found.add(name)
        if name == b"moov":
            moov = slice(place + header, place + size)
        place += size
    if moov is None:
        raise DamageError("cut off, its index (the box moov) is missing")
    left_out = _check_tracks(read_at(file, moov.start, moov.stop - moov.start))
    warning = f"its edit list leaves {left_out:.2f} s of its sound out" if left_out else None
    return Part(start, place, "av", FORMAT, warning=warning)


def _check_tracks(moov: bytes) -> float:
    """Seconds that are stored but, by its edit list, not part of the first sound track.

    DamageError where the tables of a track count other samples, or other times, than its headers.
    """
    try:
        _, movie_scale = _timing(_only(moov, b"mvhd"))
        for name, track in _boxes(moov):
            if name == b"trak" and _only(track, b"mdia", b"hdlr")[8:12] == b"soun":
                return _check_track(track, movie_scale)
    except (LookupError, struct.error) as error:
        raise DamageError("damaged, its index (the box moov) is incomplete") from error
    return 0.0


def _check_track(track: bytes, movie_scale: int) -> float:
    duration, scale = _timing(_only(track, b"mdia", b"mdhd"))
    table = _only(track, b"mdia", b"minf", b"stbl")
    times = _only(table, b"stts")
    entries = list(struct.iter_unpack(">II", times[8 : 8 + 8 * struct.unpack(">I", times[4:8])[0]]))  # count, duration
    sizes = next((box for name, box in _boxes(table) if name in (b"stsz", b"stz2")), None)
    if sizes is None or not entries or not scale or not movie_scale:
        return 0.0  # in fragments, which count themselves
    counted = struct.unpack(">I", sizes[8:12])[0]
    if counted != sum(count for count, _ in entries):
        raise DamageError("its index contradicts itself: its tables are of different lengths")
    lasting = sum(count * each for count, each in entries) / scale
    if abs(lasting - duration / scale) > TOLERANCE:
        raise DamageError(
            f"its index contradicts itself: {lasting:.2f} s by its times, {duration / scale:.2f} s in all"
        )
    edits = next((box for name, box in _boxes(track) if name == b"edts"), None)
    if edits is None:
        return 0.0
    edited = kept = 0.0
    for length, start in _edits(_only(edits, b"elst")):
        edited += length / movie_scale
        kept += length / movie_scale if start >= 0 else 0
        if start >= 0 and start / scale + length / movie_scale > duration / scale + TOLERANCE:
            raise DamageError("its index contradicts itself: an edit reaches beyond the end")
    shown = _track_duration(_only(track, b"tkhd")) / movie_scale
    if abs(shown - edited) > TOLERANCE:
        raise DamageError(f"its index contradicts itself: its edits last {edited:.2f} s, the track {shown:.2f} s")
    left_out = lasting - kept
    return left_out if left_out > TOLERANCE and kept > 0 else 0.0


def _timing(header: bytes) -> tuple[int, int]:
    """Duration and units per second of a mvhd or mdhd box, whose fields are wider in version 1."""
    if header[0] == 1:
        scale, duration = struct.unpack(">IQ", header[20:32])
    else:
        scale, duration = struct.unpack(">II", header[12:20])
    return duration, scale


def _track_duration(header: bytes) -> int:
    return struct.unpack(">Q", header[28:36])[0] if header[0] == 1 else struct.unpack(">I", header[20:24])[0]


def _edits(box: bytes) -> Iterator[tuple[int, int]]:
    """Length in units of the movie and start in units of the track, -1 for a pause, of each edit."""
    count = struct.unpack(">I", box[4:8])[0]
    layout = ">QqI" if box[0] == 1 else ">IiI"
    for i in range(count):
        length, start, _ = struct.unpack_from(layout, box, 8 + i * struct.calcsize(layout))
        yield length, start


def _only(content: bytes, *path: bytes) -> bytes:
    """The content of the box at a path; LookupError where there is none."""
    for name in path:
        content = dict(reversed(list(_boxes(content))))[name]
    return content


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(content):
        size, name = struct.unpack(">I4s", content[place : place + 8])
        if size < 8:
            return
        yield name, content[place + 8 : place + size]
        place += size


def matroska_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """A Matroska or webm file; DamageError where its segment says that it is longer than the file."""
    place = start
    while place < end:
        head = read_at(file, place, 12)
        if len(head) < 12 or not head[0] or not head[4]:
            break
        width = 9 - head[4].bit_length()
        value = int.from_bytes(head[4 : 4 + width], "big") & (1 << 7 * width) - 1
        if value == (1 << 7 * width) - 1:
            break  # a live recording, which does not know its length
        place += 4 + width + value
        if place > end:
            raise DamageError(f"cut off, its last {place - end} bytes are missing")
    return [Part(start, end, "av", "matroska,webm")]
