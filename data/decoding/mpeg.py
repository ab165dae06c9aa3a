"""The frames of mp3 and mp2 files (ISO 11172-3, 13818-3), one after the other: decoders skip what is not a frame."""

import dataclasses
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from audio_mamba.data.decoding.parts import DamageError, Part, only_zeros, read_at, tag_size

KBIT_RATES = {  # whether MPEG 1, layer -> of each code
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
KBIT_RATES[False, 3] = KBIT_RATES[False, 2]
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by the code of the version
LARGEST_FRAME = 2881  # bytes
LEADING_BYTES = 1 << 16  # of padding that may come before the first frame, or the rest of another frame

Kind = tuple[int, int, int, bool]  # of a frame: version, layer, rate, mono; constant within a part


class Frame(NamedTuple):
    size: int  # in bytes
    samples: int
    kind: Kind
    count_place: int  # where a Xing or Info header would be in the first frame


class Count(NamedTuple):
    """What the first frame says about those that follow."""

    frames: int | None
    size: int | None  # in bytes, with the first frame
    trimmed: int  # samples at both ends that are the codec's delay


NOT_COUNTED = Count(None, None, 0)


def frame_at(header: bytes) -> Frame | None:
    """The frame that these 4 bytes begin; None where they begin none, or one of free format."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate_code, bits_code = header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or layer == 4 or rate_code == 3 or bits_code in (0, 15):
        return None
    mpeg1, mono = version == 3, header[3] >> 6 == 3
    rate, bits, padding = RATES[version][rate_code], 1000 * KBIT_RATES[mpeg1, layer][bits_code], header[2] >> 1 & 1
    if layer == 1:
        samples = 384
        size = (12 * bits // rate + padding) * 4
    else:
        samples = 1152 if layer == 2 or mpeg1 else 576
        size = samples // 8 * bits // rate + padding
    if mpeg1:
        side = 17 if mono else 32
    else:
        side = 9 if mono else 17
    return Frame(size, samples, (version, layer, rate, mono), 4 + side)


def first_frame(file: BinaryIO, start: int) -> int | None:
    """Where two frames follow each other for the first time, near `start` or after zeros; None where they do not."""
    data = read_at(file, start, LEADING_BYTES)
    i = data.find(b"\xff")
    while i >= 0:
        frame = frame_at(data[i : i + 4])
        if frame and (behind := data[i + frame.size : i + frame.size + 4]):
            following = frame_at(behind)
            if following and following.kind[:3] == frame.kind[:3]:
                near = i < LARGEST_FRAME or not data[:i].strip(b"\0")
                return start + i if near else None
        i = data.find(b"\xff", i + 1)
    return None


def mpeg_parts(file: BinaryIO, start: int, first: int, end: int) -> list[Part]:
    """The parts of an mp3 or mp2 file between two places, each of one rate and channel count and with one count.

    The first frame is at `first`; before it may be padding, or the rest of a frame of which a recorder missed the
    beginning. DamageError where frames are torn, are fewer than a header counts, or something else is between them.
    """
    frame = frame_at(read_at(file, first, 4))
    whole = first - start >= (frame.size - 1 if frame else 0) or frame_at(read_at(file, start, 4))
    if first > start and whole and not only_zeros(file, start, first):
        raise DamageError(f"damaged, its first {first - start} bytes are not frames")
    return _parts(file, first, end)


class _PartInProgress:
    """The frames of one part so far."""

    def __init__(self, start: int, count: "Count"):
        self.start = self.end = start
        self.count = count
        self.frames = self.samples = 0

    def add(self, place: int, frame: Frame) -> None:
        self.frames += 1
        self.samples += frame.samples
        self.end = place + frame.size

    def is_complete(self) -> bool:
        """Whether all frames are there that its first one counts, if it does. Some count themselves too."""
        if self.count.frames is None:
            return True
        lacking = self.count.frames - self.frames
        return lacking <= 0 or (lacking == 1 and (self.count.size or 0) <= self.end - self.start)

    def finished(self, fault: str | None = None) -> list[Part]:
        """The part, if it has frames. DamageError where frames are missing and `fault` does not say so."""
        if fault is None and not self.is_complete():
            raise DamageError(f"cut off or damaged, {self.frames} of {self.count.frames} frames are there")
        samples = max(0, self.samples - self.count.trimmed) if fault is None else None
        return [Part(self.start, self.end, "av", "mp3", samples=samples, fault=fault)] if self.frames else []


def _parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    parts: list[Part] = []
    kind, part = None, _PartInProgress(start, NOT_COUNTED)
    try:
        for place, frame, count in _walk(file, start, end):
            if count is not None or frame.kind != kind:
                parts += part.finished()
                kind, part = frame.kind, _PartInProgress(place, count or NOT_COUNTED)
            elif part.frames == part.count.frames:  # joined to a file that counts its own frames alone
                if part.count.size is not None and abs(part.count.size - (place - part.start)) > 3 * frame.size:
                    raise DamageError(f"its header contradicts itself: {part.frames} frames in {part.count.size} bytes")
                parts += part.finished()
                part = _PartInProgress(place, NOT_COUNTED)
            if count is None:
                part.add(place, frame)
    except _OddEnd as error:
        if part.count.frames is None or not part.is_complete():
            return _ending(parts, part, error)
    except _Break as error:
        return _ending(parts, part, error)
    parts += part.finished()
    if not parts:
        raise DamageError("it holds no frames")
    return parts


def _ending(parts: list[Part], part: _PartInProgress, error: DamageError) -> list[Part]:
    """The parts before a damage, of which the last one has the fault; the error itself where nothing is before it."""
    parts = [*parts, *part.finished(fault=str(error))]
    if not parts:
        raise error
    return [*parts[:-1], dataclasses.replace(parts[-1], fault=str(error))]


class _Break(DamageError):
    """What was read so far is whole; after it something is damaged or missing."""


class _OddEnd(DamageError):
    """The file ends with something other than a frame, a tag or padding."""


def _walk(file: BinaryIO, place: int, end: int) -> Iterator[tuple[int, Frame, Count | None]]:
    """Place, frame and what it counts, of one frame after the other."""
    last, seconds = None, 0.0
    while place < end:
        file.seek(place)
        head = file.read(200)
        frame = frame_at(head)
        if frame is None:
            if size := tag_size(file, place):
                place += size
                continue
            if end - place < 4 and head.startswith(b"\xff"):
                raise _Break("cut off, its last frame is torn")
            text = f"damaged or cut off, at second {seconds:.1f} the data are not a frame"
            if last is None or _next_chain(file, place + 1, end, last.kind) is not None:
                raise _Break(text)
            if not _is_rest(file, place, end, last.size):
                raise _OddEnd(text)
            return
        if place + frame.size > end:
            raise _Break("cut off, its last frame is torn")
        count = _count(head, frame)
        if last and frame.kind != last.kind and count is None:
            following = frame_at(read_at(file, place + frame.size, 4))
            if following is None or following.kind != frame.kind:
                raise _Break(f"damaged, a frame at second {seconds:.1f} is of another kind than those around it")
        yield place, frame, count
        seconds += frame.samples / frame.kind[2] if count is None else 0
        place, last = place + frame.size, frame


def _count(head: bytes, frame: Frame) -> Count | None:
    """What a frame says of those after it, if it is such a frame."""
    fields = head[frame.count_place :]
    if fields[:4] not in (b"Xing", b"Info"):
        return None
    flags, place, frames, size = fields[7], 8, None, None
    if flags & 1:
        frames, place = int.from_bytes(fields[8:12], "big"), 12
    if flags & 2:
        size, place = int.from_bytes(fields[place : place + 4], "big"), place + 4
    place += (100 if flags & 4 else 0) + (4 if flags & 8 else 0)
    encoder = fields[place : place + 24]
    if len(encoder) < 24 or not encoder.startswith((b"LAME", b"Lavf", b"Lavc")):
        return Count(frames, size, 0)
    delays = int.from_bytes(encoder[21:24], "big")
    # The decoder's own delay goes at the front, and so much less at the end.
    return Count(frames, size, (delays >> 12) + (delays & 0xFFF))


def _next_chain(file: BinaryIO, place: int, end: int, kind: Kind) -> int | None:
    """Where, after something else, two frames of this kind follow each other; None where they do not."""
    while place < end:
        data = read_at(file, place, 1 << 20)
        i = data.find(b"\xff")
        while i >= 0:
            frame = frame_at(data[i : i + 4])
            if frame and frame.kind == kind:
                following = frame_at(read_at(file, place + i + frame.size, 4))
                if following and following.kind == frame.kind:
                    return place + i
            i = data.find(b"\xff", i + 1)
        place += max(1, len(data) - 3)
    return None


def _is_rest(file: BinaryIO, place: int, end: int, frame_size: int) -> bool:
    """Whether what follows the last frame is padding or a tag, and no frames that have become unreadable."""
    tail = read_at(file, max(place, end - 160), 160)
    short = end - place < frame_size  # longer ones may be where frames were before a disk was full
    return (short and only_zeros(file, place, end)) or b"TAG" in tail or b"APETAGEX" in tail
