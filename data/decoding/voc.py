"""The blocks of Creative's voc files: whether all are there, and how many samples they hold."""

from typing import BinaryIO

from audio_mamba.data.decoding.parts import DamageError, Part, only_zeros, read_at

MAGIC = b"Creative Voice File\x1a"
END = 0  # kinds of blocks
HEADER_BYTES = {1: 2, 2: 0, 8: 4, 9: 12}  # sound, more of it, a format for it, sound with a format -> before samples
NOTES = (4, 5)  # a number, a text
WIDTHS = {0: 1, 4: 2, 6: 1, 7: 1}  # codec -> bytes of a sample: 8 and 16 bits, A-law, mu-law


def voc_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """A voc file; DamageError where its blocks do not fill the file, or are of kinds that FFmpeg passes over."""
    place = start + int.from_bytes(read_at(file, start + 20, 2), "little")
    headers: dict[int, bytes] = {}  # of the first block of each kind
    size = 0  # of all samples, in bytes
    while place < end:
        head = read_at(file, place, 16)
        kind, length = head[0], int.from_bytes(head[1:4], "little")
        if kind == END:
            break
        if kind not in HEADER_BYTES and kind not in NOTES:
            raise DamageError(f"the block at byte {place} is of kind {kind}, which is not read")
        if place + 4 + length > end:
            raise DamageError(f"cut off, its last block lacks {place + 4 + length - end} bytes")
        if kind in HEADER_BYTES:
            header = head[4 : 4 + HEADER_BYTES[kind]]
            if length < max(1, len(header)) or header != headers.setdefault(kind, header):
                raise DamageError(f"damaged, the block at byte {place} has another format")
            size += length - len(header)
        place += 4 + length
    if place + 8 < end and not only_zeros(file, place, end):
        raise DamageError(f"damaged, {end - place} bytes follow its last block")
    warning = None if place < end else "its end is not marked; some of it may be missing"
    return [Part(start, end, "av", "voc", samples=_samples(headers, size), warning=warning)]


def _samples(headers: dict[int, bytes], size: int) -> int | None:
    """The samples in so many bytes, per channel; None for codecs of which only the decoder can tell."""
    if 9 in headers:
        channels, codec = headers[9][5], int.from_bytes(headers[9][6:8], "little")
    else:
        channels = headers[8][3] + 1 if 8 in headers else 1
        codec = headers.get(1, b"\0\0")[1]
    width = WIDTHS.get(codec, 0) * channels
    return size // width if width else None
