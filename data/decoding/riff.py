"""wav, aiff and caf files: whether their headers agree with themselves and with the bytes that follow."""

import dataclasses
import struct
from typing import BinaryIO, NamedTuple

from audio_mamba.data.decoding import mpeg
from audio_mamba.data.decoding.parts import DamageError, Part, RawSamples, all_parts, only_zeros, read_at, tag_size

WRAP = 1 << 32  # sizes of a header are 32 bits
# Programs that write to a pipe do not know the length and put about 2 or 4 GiB: SoX 0x7F000000 (aiff) and 0x7FFFF000
# (wav), arecord 0x80000000, FFmpeg 0xFFFFFFFF; some round it to whole samples or take the header off.
UNKNOWN_SIZES = (range(0x7EFFF000, 0x80001000), range(0xFFFFF000, 1 << 32))
WAV_SUBTYPES = {  # format tag, bits -> libsndfile's name, bytes of a sample
    (1, 8): ("PCM_U8", 1),
    (1, 16): ("PCM_16", 2),
    (1, 24): ("PCM_24", 3),
    (1, 32): ("PCM_32", 4),
    (3, 32): ("FLOAT", 4),
    (3, 64): ("DOUBLE", 8),
    (6, 8): ("ALAW", 1),
    (7, 8): ("ULAW", 1),
}
MPEG_TAGS = (0x50, 0x55)  # mp2 and mp3; libsndfile can only guess how many samples they hold
EXTENSIBLE = 0xFFFE  # the format tag where a longer header has the real one
FORMAT_BYTES = 40  # of a format chunk, at most
# Chunks that programs write behind the samples.
TRAILING_CHUNKS = {
    *(b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"cue ", b"smpl", b"fact", b"JUNK", b"PEAK", b"inst", b"_PMX"),
}
AIFC_PCM = {b"NONE", b"sowt", b"twos", b"raw ", b"in24", b"in32", b"fl32", b"FL32", b"fl64", b"FL64"}


class Chunk(NamedTuple):
    name: bytes
    start: int  # of its content
    size: int


class WavFormat(NamedTuple):
    """What the format chunk of a wav file says."""

    tag: int
    channels: int
    rate: int  # Hz
    byte_rate: int  # bytes a second
    bits: int  # of a sample


def wav_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """The wav files, one behind the other, between two places; DamageError where sizes or rates do not agree."""
    return all_parts(_wav_part, file, start, end)


def aiff_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """As `wav_parts`, for aiff and aifc."""
    return all_parts(_aiff_part, file, start, end)


def is_unknown(size: int) -> bool:
    """Whether a size in a header stands for a length that the program did not know."""
    return any(size in sizes for sizes in UNKNOWN_SIZES)


def parse_format(content: bytes, order: str = "<") -> WavFormat | None:
    """The format chunk of a wav file, of which FORMAT_BYTES are enough; None where it is cut off.

    order: of the bytes, "<" or ">".
    """
    if len(content) < 16:
        return None
    tag, channels, rate, byte_rate, _, bits = struct.unpack(order + "HHIIHH", content[:16])
    if tag == EXTENSIBLE and len(content) >= 26:
        tag = struct.unpack(order + "H", content[24:26])[0]
    return WavFormat(tag, channels, rate, byte_rate, bits)


def _wav_part(file: BinaryIO, start: int, end: int) -> Part:
    kind = read_at(file, start, 4)
    order = ">" if kind == b"RIFX" else "<"
    chunks = _chunks_until(file, start + 12, end, order, b"data")
    data = chunks.get(b"data")
    if data is None or b"fmt " not in chunks:
        raise DamageError("its header has no format or no samples")
    form = parse_format(read_at(file, chunks[b"fmt "].start, min(FORMAT_BYTES, chunks[b"fmt "].size)), order)
    if form is None:
        raise DamageError("its header is cut off")
    tag, channels, rate, byte_rate, bits = form
    subtype, width = WAV_SUBTYPES.get((tag, -(-bits // 8) * 8), (None, 0))
    if subtype and byte_rate not in (0, rate * channels * width):
        raise DamageError(
            f"its header contradicts itself: {rate} samples a second of {channels} channels and {width} bytes "
            f"are not {byte_rate} bytes a second"
        )
    promised, there = data.size, end - data.start
    if kind in (b"RF64", b"BW64") and b"ds64" in chunks and promised == WRAP - 1:
        promised = int.from_bytes(read_at(file, chunks[b"ds64"].start + 8, 8), "little")
    riff_end = start + 8 + int.from_bytes(read_at(file, start + 4, 4), "big" if order == ">" else "little")

    def raw(warning: str) -> Part:
        if subtype is None:
            raise DamageError(f"its header counts {promised} bytes of samples, but {there} follow")
        samples = there // (channels * width) if channels else 0
        endian = "BIG" if order == ">" else "LITTLE"
        layout = RawSamples(subtype, rate, channels, endian)
        return Part(data.start, end, "soundfile", samples=samples, raw=layout, warning=warning)

    def part(data_end: int, stop: int) -> Part:
        return _mpeg_part(file, data.start, data_end, stop) if tag in MPEG_TAGS else Part(start, stop, "soundfile")

    if promised > there:
        if not is_unknown(promised) or kind in (b"RF64", b"BW64"):
            raise DamageError(f"cut off, {there} of {promised} bytes of samples are there")
        return part(end, end)
    data_end = data.start + promised
    wraps = range(data_end + WRAP, end + 1, WRAP)
    if any(_end_of_file(file, place, promised, end, order, (b"WAVE",), place) is not None for place in wraps):
        return raw("its header cannot count more than 4 GiB; all that follows is read as samples")
    next_file = _end_of_file(file, data_end, promised, end, order, (b"WAVE",), riff_end)
    if promised == 0 and there > 8 and (next_file is None or only_zeros(file, data_end, end)):
        return raw("its header counts no samples, as when a recorder crashes; all that follows is read as samples")
    if next_file is None:
        raise DamageError(f"its header counts {promised} bytes of samples, but {there} follow")
    return part(data_end, next_file)


def _mpeg_part(file: BinaryIO, start: int, end: int, stop: int) -> Part:
    """The mp3 or mp2 frames between two places, of a wav file that ends at `stop`."""
    first = mpeg.first_frame(file, start)
    if first is None:
        raise DamageError("its header says mp3, but its data are not frames")
    parts = mpeg.mpeg_parts(file, start, first, end)
    if len(parts) > 1:
        raise DamageError("the mp3 in it changes its rate or its channels")
    return dataclasses.replace(parts[0], next_start=stop)


def _aiff_part(file: BinaryIO, start: int, end: int) -> Part:
    chunks = _chunks_until(file, start + 12, end, ">", b"SSND")
    samples = chunks.get(b"SSND")
    if samples is None or b"COMM" not in chunks:
        return Part(start, end, "soundfile")  # what libsndfile makes of it
    content = read_at(file, chunks[b"COMM"].start, min(22, chunks[b"COMM"].size))
    if len(content) < 18:
        raise DamageError("its header is cut off")
    channels, frames, bits = struct.unpack(">HIH", content[:8])
    there = end - samples.start
    if samples.size == 0 or (there < samples.size and is_unknown(samples.size)):
        return Part(start, end, "soundfile")
    if samples.size > there:
        raise DamageError(f"cut off, {max(0, there - 8)} of {samples.size - 8} bytes of samples are there")
    expected = frames * channels * -(-bits // 8)
    is_pcm = read_at(file, start + 8, 4) == b"AIFF" or content[18:] in AIFC_PCM
    if is_pcm and samples.size - 8 not in (expected, expected + expected % 2):  # libsndfile counts the padding, too
        raise DamageError(f"its header contradicts itself: {frames} samples are not {samples.size - 8} bytes")
    form_end = start + 8 + int.from_bytes(read_at(file, start + 4, 4), "big")
    samples_end = samples.start + samples.size
    next_file = _end_of_file(file, samples_end, samples.size, end, ">", (b"AIFF", b"AIFC"), form_end)
    if next_file is None:
        raise DamageError(f"its header counts {samples.size} bytes of samples, but {there} follow")
    return Part(start, next_file, "soundfile")


def caf_parts(file: BinaryIO, start: int, end: int) -> list[Part]:
    """A caf file. A recorder that does not know the length yet, or writes to a pipe, gives its data the size -1; FFmpeg
    takes such data for cut off, so it is given their true size."""
    place, patches = start + 8, {}
    while place + 12 <= end:
        name, size = struct.unpack(">4sq", read_at(file, place, 12))
        if size < 0:
            if name == b"data" and size == -1:
                patches[place + 4] = struct.pack(">q", end - place - 12)
            break
        place += 12 + size
    return [Part(start, end, "av", "caf", patches=patches)]


def _chunks_until(file: BinaryIO, place: int, end: int, order: str, last: bytes) -> dict[bytes, Chunk]:
    chunks: dict[bytes, Chunk] = {}
    while place + 8 <= end and last not in chunks:
        name, size = struct.unpack(order + "4sI", read_at(file, place, 8))
        chunks[name] = Chunk(name, place + 8, size)
        place = _behind(file, place + 8 + size, size)
    # Some programs write the format behind the samples.
    return chunks


def _behind(file: BinaryIO, place: int, size: int) -> int:
    """Where the chunk after one of odd size begins: after a byte of padding, which some programs leave out."""
    if size % 2 and not (_is_name(read_at(file, place, 4)) and not _is_name(read_at(file, place + 1, 4))):
        return place + 1
    return place


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _end_of_file(
    file: BinaryIO, place: int, size: int, end: int, order: str, forms: tuple[bytes, ...], outer_end: int
) -> int | None:
    """Where a wav or aiff file ends whose `size` bytes of samples end at `place`: at `end`, or where another begins.

    None where the bytes behind the samples are neither chunks nor tags nor padding: they may be more samples.
    """
    if size % 2 and read_at(file, place, 1) in (b"\0", b""):
        place += 1
    while end - place >= 8:
        name, size, form = struct.unpack(order + "4sI4s", read_at(file, place, 12).ljust(12, b"\0"))
        if name in (b"RIFF", b"RIFX", b"RF64", b"BW64", b"FORM") and form in forms:
            return place
        if tag := tag_size(file, place):
            place += tag
        elif _is_name(name) and place + 8 + size <= end:
            place = _behind(file, place + 8 + size, size)
        elif name in TRAILING_CHUNKS:
            return end  # the last chunk is cut off, the samples are whole
        elif outer_end <= place + 1 and only_zeros(file, place, end):
            return end
        else:
            return None
    return end
