"""The boxes of mp4, m4a, mov and 3gp (ISO 14496-12), the elements of Matroska and webm: whether all are there."""

from typing import BinaryIO

from audio_mamba.data.decoding.parts import DamageError, Part, only_zeros, read_at

FORMAT = "mov,mp4,m4a,3gp,3g2,mj2"


def mp4_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """The mp4 files, one behind the other, between two places; DamageError where the boxes do not fill the file."""
    place, found = start, set()
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
            raise DamageError(f"damaged or cut off, what is at byte {place} is no box of an mp4 file")
        if place + size > end:
            raise DamageError(f"cut off, its box {name.decode('latin-1')} lacks {place + size - end} bytes")
        found.add(name)
        place += size
    if b"moov" not in found:
        raise DamageError("cut off, its index (the box moov) is missing")
    return [Part(start, place, "av", FORMAT), *(mp4_parts(file, place, end) if end - place >= 8 else ())]


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
