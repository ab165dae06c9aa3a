"""Sound that arrives on a pipe: raw samples, or a wav file whose header says what follows."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soxr

from audio_mamba.data.audio_files import AudioError
from audio_mamba.data.decoding.mpeg import frame_at
from audio_mamba.front_end import PUBLISHED

# How files begin that cannot be taken for samples.
COMPRESSED = {
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"ID3": "mp3",
    b"\x1a\x45\xdf\xa3": "Matroska or webm",
    b"#!AMR": "amr",
    b"caff": "caf",
    b"FORM": "aiff",
    b"\x30\x26\xb2\x75": "wma",
}
DECODERS = {  # format tag, bits of a wav file -> numpy type, value of silence, full scale
    (1, 8): ("u1", 128, 1 << 7),
    (1, 16): ("<i2", 0, 1 << 15),
    (1, 32): ("<i4", 0, 1 << 31),
    (3, 32): ("<f4", 0, 1),
    (3, 64): ("<f8", 0, 1),
}


def stream_pcm(
    stream: BinaryIO, name: str = "stdin", sample_rate: int = PUBLISHED.sample_rate, piece_seconds: float = 0.04
) -> Iterator[np.ndarray]:
    """The samples of a pipe as they arrive.

    Args:
        stream: raw 16-bit little-endian samples of one channel at `sample_rate` Hz; or a wav file, whose header is
            obeyed: rate (resampled), channels (mixed), 8, 16 or 32 bits or float. Its length is ignored, since
            programs that write to a pipe do not know it.
        piece_seconds: of what one read waits for.

    Yields:
        float32 [n] at `sample_rate` Hz, n about `piece_seconds`; with resampling some pieces are longer or missing.

    Raises:
        AudioError: the stream is compressed, or a wav file of another kind; the message has `name`.
    """
    head = stream.read(12)
    if kind := _compressed(head):
        raise AudioError(f"{name}: this is {kind}, not samples; decode it first, such as with ffmpeg -i FILE -f wav -")
    rate, channels, decoder = sample_rate, 1, DECODERS[1, 16]
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        rate, channels, decoder = _wav_format(stream, name)
        head = b""
    dtype, silence, full_scale = decoder
    frame_bytes = np.dtype(dtype).itemsize * channels
    resampler = (
        soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ") if rate != sample_rate else None
    )
    piece_bytes = max(1, round(piece_seconds * rate)) * frame_bytes
    held = head
    while block := stream.read(piece_bytes - len(held) if len(held) < piece_bytes else piece_bytes):
        held += block
        whole = len(held) // frame_bytes * frame_bytes
        samples = np.frombuffer(held[:whole], dtype).reshape(-1, channels).astype(np.float32)  # [n, channels]
        held = held[whole:]
        mixed = ((samples - silence) / full_scale).mean(axis=1, dtype=np.float32)
        if len(piece := resampler.resample_chunk(mixed) if resampler else mixed):
            yield piece
    if resampler and len(rest := resampler.resample_chunk(np.zeros(0, np.float32), last=True)):
        yield rest


def _compressed(head: bytes) -> str | None:
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp":
        return "mp4 or m4a"
    # The first two samples of sound look like this about once in ten thousand streams, those of mp3 always do.
    frame = frame_at(head[:4])
    return "mp3" if frame and frame.kind[1] == 3 else None


def _wav_format(stream: BinaryIO, name: str) -> tuple[int, int, tuple[str, int, int]]:
    """Rate, channels and decoder; the stream is then where the samples begin."""
    found = None
    while True:
        header = stream.read(8)
        if len(header) < 8:
            raise AudioError(f"{name}: a wav header without samples")
        chunk, size = struct.unpack("<4sI", header)
        if chunk == b"data":
            break
        content = stream.read(size + size % 2)
        if chunk == b"fmt " and len(content) >= 16:
            tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", content[:16])
            if tag == 0xFFFE and len(content) >= 26:
                tag = struct.unpack("<H", content[24:26])[0]
            decoder = DECODERS.get((tag, bits))
            found = (rate, channels, decoder) if rate and channels and decoder else None
    if found is None:
        raise AudioError(f"{name}: a wav header of a kind that is not read from a pipe (8, 16, 32 bits and float are)")
    return found
