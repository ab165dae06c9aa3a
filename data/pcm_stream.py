"""Sound that arrives on a pipe: raw samples, or wav files whose headers say what follows."""

import logging
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from audio_mamba.data.audio import one_channel, resampled
from audio_mamba.data.audio_files import AudioError
from audio_mamba.data.decoding.mpeg import frame_at
from audio_mamba.data.decoding.parts import HIGHEST_RATE
from audio_mamba.data.decoding.riff import FORMAT_BYTES, TRAILING_CHUNKS, WRAP, is_unknown, parse_format
from audio_mamba.front_end import PUBLISHED

JUDGED_AFTER = 5.0  # seconds of a stream, which may have no end: whether its channels cancel out
HEAD_BYTES = 12  # of a wav file before its first chunk
LONG_BYTES_UNKNOWN = 1 << 62  # 64-bit sizes from here on stand for a length that the program did not know
# How files begin that cannot be taken for samples.
OTHER_KINDS = {
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"ID3": "mp3",
    b"\x1a\x45\xdf\xa3": "Matroska or webm",
    b"#!AMR": "amr",
    b"caff": "caf",
    b"FORM": "aiff",
    b"RIFX": "big-endian wav",
    b"riff": "w64",
    b".snd": "Sun au",
    b"wvpk": "WavPack",
    b"MAC ": "Monkey's Audio",
    b"NIST_1A": "NIST sphere",
    b"\x30\x26\xb2\x75": "wma",
}
COMPRESSED_TAGS = {2: "ADPCM", 6: "A-law", 7: "mu-law", 0x11: "IMA ADPCM", 0x31: "GSM", 0x50: "mp2", 0x55: "mp3"}

logger = logging.getLogger(__name__)


class Decoder(NamedTuple):
    """Little-endian samples of one kind."""

    width: int  # bytes of a sample
    dtype: str
    silence: int
    full_scale: int

    def __call__(self, data: bytes, channels: int) -> np.ndarray:
        """Whole frames -> float32 [n, channels]."""
        if self.width == 3:  # numpy has no such integers: a zero in front makes them 32 bits
            wide = np.zeros((len(data) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            data = wide.tobytes()
        samples = np.frombuffer(data, self.dtype).reshape(-1, channels).astype(np.float32)
        return (samples - self.silence) / self.full_scale


DECODERS = {  # format tag, bits of a wav file
    (1, 8): Decoder(1, "u1", 128, 1 << 7),
    (1, 16): Decoder(2, "<i2", 0, 1 << 15),
    (1, 24): Decoder(3, "<i4", 0, 1 << 31),
    (1, 32): Decoder(4, "<i4", 0, 1 << 31),
    (3, 32): Decoder(4, "<f4", 0, 1),
    (3, 64): Decoder(8, "<f8", 0, 1),
}


class Format(NamedTuple):
    """What the samples on a pipe are."""

    rate: int  # Hz
    channels: int
    decoder: Decoder
    size: int | None  # bytes of samples; None: all that follows


def stream_pcm(
    stream: BinaryIO,
    name: str = "stdin",
    sample_rate: int = PUBLISHED.sample_rate,
    piece_seconds: float = 0.04,
    channel: str | int = "mix",
) -> Iterator[np.ndarray]:
    """The samples of a pipe as they arrive.

    Args:
        stream: raw 16-bit little-endian samples of one channel at `sample_rate` Hz; or a wav file, or several joined
            ones, whose headers are obeyed: rate (resampled), channels, 8, 16, 24 or 32 bits or float. Programs that
            write to a pipe do not know the length and write 0, or about 2 or 4 GiB: then all that follows is samples.
        name: of the stream in messages.
        piece_seconds: of what one read waits for.
        channel: of a wav file with several; see `data.audio.stream_audio`.

    Yields:
        float32 [n] at `sample_rate` Hz, n about `piece_seconds`; with resampling some pieces are longer or missing.

    Raises:
        AudioError: the stream is compressed, or a wav file of another kind; the message has `name`.
    """
    form, held = Format(sample_rate, 1, DECODERS[1, 16], None), stream.read(HEAD_BYTES)
    if _is_wav(held):
        form, held = _wav_format(stream, held[:4], name), b""
    else:
        held = _not_of_another_kind(held, stream, name)
    while True:
        frames = _frames(stream, form, held, piece_seconds, name)
        pieces = one_channel(((form.rate, samples) for samples in frames), name, channel, JUDGED_AFTER)
        yield from filter(len, resampled((samples for _, samples in pieces), form.rate, sample_rate))
        if form.size is None or not (held := _behind_samples(stream, form)):
            return
        if _is_wav(held):
            form, held = _wav_format(stream, held[:4], name), b""
        else:
            logger.warning("%s: its header counts %d bytes of samples, but more follow", name, form.size)
            form = form._replace(size=None)


def _frames(stream: BinaryIO, form: Format, held: bytes, piece_seconds: float, name: str) -> Iterator[np.ndarray]:
    """float32 [n, channels], until the stream or the counted bytes end. `held` has been read already."""
    frame_bytes = form.decoder.width * form.channels
    piece_bytes = max(1, round(piece_seconds * form.rate)) * frame_bytes
    left = form.size
    while True:
        wanted = piece_bytes - len(held) if len(held) < piece_bytes else piece_bytes
        block = stream.read(wanted if left is None else min(wanted, left))
        if left is not None:
            left -= len(block)
        held += block
        whole = len(held) // frame_bytes * frame_bytes
        if whole:
            yield form.decoder(held[:whole], form.channels)
            held = held[whole:]
        if left == 0:
            return
        if not block:
            if left:
                logger.warning("%s: ended early, its header counts %d more bytes of samples", name, left)
            return


def _is_wav(head: bytes) -> bool:
    return head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:] == b"WAVE"


def _not_of_another_kind(head: bytes, stream: BinaryIO, name: str) -> bytes:
    """The beginning of raw samples, of which more may have been read. AudioError for a file of another kind."""
    kind = next((kind for magic, kind in OTHER_KINDS.items() if head.startswith(magic)), None)
    if head[4:8] == b"ftyp":
        kind = "mp4 or m4a"
    elif head[:4] == b"RIFF" and head[8:] == b"AVI ":
        kind = "avi"
    elif size := _frame_size(head):  # so do samples begin once in thousands of streams; two frames in a row settle it
        head += stream.read(max(0, size + HEAD_BYTES - len(head)))
        if _frame_size(head[size:]):
            kind = "aac" if _is_aac(head) else "mp3"
    if kind:
        raise AudioError(f"{name}: this is {kind}, not samples; decode it first, such as with ffmpeg -i FILE -f wav -")
    return head


def _is_aac(head: bytes) -> bool:
    """Whether an ADTS frame may begin here: its sync word, layer 0 and a sample rate that exists."""
    return len(head) >= 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 and head[2] >> 2 & 15 < 13


def _frame_size(head: bytes) -> int | None:
    """Bytes of the mp3, mp2 or aac frame that begins here; None where none begins."""
    if _is_aac(head):
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    frame = frame_at(head[:4])
    return frame.size if frame else None


def _wav_format(stream: BinaryIO, magic: bytes, name: str) -> Format:
    """The format of a wav file whose first 12 bytes have been read and begin with `magic`; the stream is then where the
    samples begin."""
    found, kind, long_size = None, "a kind", WRAP - 1
    while True:
        header = stream.read(8)
        if len(header) < 8:
            raise AudioError(f"{name}: a wav header without samples")
        chunk, size = struct.unpack("<4sI", header)
        if chunk == b"data":
            break
        content = stream.read(min(size, FORMAT_BYTES))
        _skip(stream, size + size % 2 - len(content))
        if chunk == b"ds64" and magic in (b"RF64", b"BW64") and len(content) >= 16:
            long_size = int.from_bytes(content[8:16], "little")
        elif chunk == b"fmt " and (form := parse_format(content)):
            tag, channels, rate, _, bits = form
            decoder, kind = DECODERS.get((tag, bits)), COMPRESSED_TAGS.get(tag, kind)
            found = (rate, channels, decoder) if rate and channels and decoder else None
            if rate > HIGHEST_RATE:
                raise AudioError(f"{name}: its header names a sample rate of {rate} Hz")
    if found is None:
        raise AudioError(
            f"{name}: a wav header of {kind}, which cannot be read from a pipe (8, 16, 24 and 32 bits and float can)"
        )
    known = size > 0 and not is_unknown(size)
    if size == WRAP - 1 != long_size:  # some programs write that size to both places: they do not know the length
        size, known = long_size, 0 < long_size < LONG_BYTES_UNKNOWN
    return Format(*found, size if known else None)


def _behind_samples(stream: BinaryIO, form: Format) -> bytes:
    """What comes behind the counted samples of a wav file and the chunks that may follow them: 12 bytes, or the end."""
    assert form.size is not None
    head = _head(stream, form.size)
    while len(head) >= 8 and head[:4] in TRAILING_CHUNKS:
        size = int.from_bytes(head[4:8], "little")
        _skip(stream, size - len(head[8:]))
        head = _head(stream, size, head[8 + size :])
    return head


def _head(stream: BinaryIO, size: int, begun: bytes = b"") -> bytes:
    """The 12 bytes behind a chunk of `size` bytes, of which the first may have been read. A chunk of odd size is
    followed by a byte of padding, which some programs leave out."""
    head = begun + stream.read(HEAD_BYTES - len(begun))
    if size % 2 and head[:4] not in TRAILING_CHUNKS and not _is_wav(head):
        head = head[1:] + stream.read(1)
    return head


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0 and (block := stream.read(min(count, 1 << 16))):
        count -= len(block)
