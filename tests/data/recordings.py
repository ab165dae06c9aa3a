"""Recordings made for tests: encoded by libsndfile or PyAV from known samples, and damaged by hand."""

import functools
import io
import random
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile

SECONDS = 6.0
RATE = 16000
CODECS = {  # suffix -> FFmpeg's container, codec, rate of what PyAV encodes
    "m4a": ("ipod", "aac", 44100),
    "mp4": ("mp4", "aac", 48000),
    "mov": ("mov", "pcm_s16le", 44100),
    "3gp": ("3gp", "aac", 16000),
    "aac": ("adts", "aac", 44100),
    "webm": ("webm", "libopus", 48000),
    "mkv": ("matroska", "aac", 44100),
    "mka": ("matroska", "libmp3lame", 44100),
    "wma": ("asf", "wmav2", 44100),
    "amr": ("amr", "libopencore_amrnb", 8000),
    "caf": ("caf", "alac", 44100),
    "ac3": ("ac3", "ac3", 48000),
    "eac3": ("eac3", "eac3", 48000),
    "au": ("au", "pcm_s16be", 22050),
    "w64": ("w64", "pcm_s16le", 22050),
    "mp2": ("mp2", "mp2", 44100),
    "avi": ("avi", "libmp3lame", 44100),
    "wv": ("wv", "wavpack", 44100),
    "tta": ("tta", "tta", 44100),
    "oga": ("ogg", "flac", 44100),
    "mp3.wav": ("wav", "libmp3lame", 44100),
    "mp2.wav": ("wav", "mp2", 44100),
    "voc": ("voc", "pcm_s16le", 22050),
}


@functools.cache
def sound(rate: int = RATE, seconds: float = SECONDS, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Noise below 2 kHz that is like itself at no other time, the same at every rate; float32 [n, channels]."""
    generator = np.random.default_rng(seed)
    t = np.arange(int(rate * seconds)) / rate
    tones = [
        np.sin(2 * np.pi * (f * t + generator.uniform()) + 3 * np.sin(2 * np.pi * generator.uniform(0.5, 3) * t))
        for f in generator.uniform(200, 2000, 40)
    ]
    mono = 0.05 * np.sum(tones, axis=0)
    samples = np.repeat(mono[:, None], channels, 1).astype(np.float32)
    samples.flags.writeable = False  # every caller gets the same
    return samples


def encode(suffix: str, samples: np.ndarray, rate: int | None = None, title: str = "", **options: str) -> bytes:
    """The bytes of samples [n, channels] at `rate` (or the usual one of `CODECS`) in a container, by PyAV."""
    container_name, codec, usual_rate = CODECS[suffix]
    rate = rate or usual_rate
    file = Path(tempfile.mkdtemp()) / "file"
    with av.open(file, "w", format=container_name, options=options) as container:
        layout = "mono" if samples.shape[1] == 1 else "stereo"
        container.metadata.update({"title": title} if title else {})
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        stream.bit_rate = {"amr": 12200, "3gp": 32000}.get(suffix, 96000)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    content = file.read_bytes()
    shutil.rmtree(file.parent)
    return content


def written(suffix: str, samples: np.ndarray, rate: int, **options) -> bytes:
    """The bytes of samples [n, channels] as libsndfile writes them."""
    file = io.BytesIO()
    formats = {"opus": {"format": "OGG", "subtype": "OPUS"}, "ogg": {"format": "OGG", "subtype": "VORBIS"}}
    options = {"format": suffix.upper()} | formats.get(suffix, {}) | options
    with soundfile.SoundFile(file, "w", rate, samples.shape[1], **options) as opened:
        for start in range(0, len(samples), rate):  # libsndfile crashes on minutes of Vorbis at once
            opened.write(samples[start : start + rate])
    return file.getvalue()


def without_count(mp3: bytes) -> bytes:
    """An mp3 without the first frame, which counts the others."""
    start = mp3.index(b"\xff\xfb") if b"\xff\xfb" in mp3 else mp3.index(b"\xff\xf3")
    return mp3[mp3.index(mp3[start : start + 2], start + 40) :]


def ogg_pages(content: bytes) -> list[bytes]:
    starts = [0]
    while (place := content.find(b"OggS\0", starts[-1] + 1)) >= 0:
        starts.append(place)
    return [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)])]


def ogg_checked(page: bytes) -> bytes:
    """A page with the checksum that belongs to it: bit by bit, unlike the code under test."""
    page = page[:22] + bytes(4) + page[26:]
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ (0x04C11DB7 if register & 0x80000000 else 0)) & 0xFFFFFFFF
    return page[:22] + register.to_bytes(4, "little") + page[26:]


DAMAGED_KINDS = ("wav", "flac", "mp3", "uncounted.mp3", "ogg", "opus", "m4a")


@functools.cache
def undamaged(suffix: str, seed: int) -> bytes:
    """Six seconds in one of `DAMAGED_KINDS`; an odd seed gives two channels."""
    rate = {"wav": 16000, "opus": 48000}.get(suffix, 44100)
    samples = sound(rate, SECONDS, seed, 1 + seed % 2)
    if suffix == "m4a":
        return encode(suffix, samples, **({"movflags": "faststart"} if seed >= 2 else {}))
    content = written(suffix.removeprefix("uncounted."), samples, rate)
    return without_count(content) if suffix == "uncounted.mp3" else content


def is_in_time(
    found: np.ndarray, expected: np.ndarray, start: float = 0.0, end: float = 0.0, likeness: float = 0.9
) -> bool:
    """Whether two sounds at RATE Hz are equally long and alike at every time, except from `start` to `end` (shares).

    Alike: tenths of a second correlate by `likeness`. Where there is damage, a second on each side is left out too,
    since bytes are not evenly spread over time.
    """
    if abs(len(found) - len(expected)) > 0.05 * RATE:
        return False
    window = RATE // 10
    count = min(len(found), len(expected)) // window
    a, b = (samples[: count * window].reshape(count, window) for samples in (found, expected))
    alike = (a * b).sum(1) > likeness * np.sqrt((a * a).sum(1) * (b * b).sum(1))
    times = np.arange(count) / 10
    seconds = len(expected) / RATE
    left_out = (times >= start * seconds - 1) & (times <= end * seconds + 1) if end > 0 else np.zeros(count, bool)
    return bool((alike | left_out).all())


@dataclass(frozen=True)
class Damaged:
    content: bytes
    start: float  # of the damaged stretch, as a share of the duration
    end: float
    kind: str
    undetectable: str | None = None  # why nobody can tell


def damage(content: bytes, suffix: str, generator: random.Random) -> Damaged:
    """One damage of a random kind and place."""
    kind = generator.choice(["cut", "hole", "zeros", "flip", "join", "lie"])
    size = len(content)
    if kind == "cut":
        end = generator.randrange(1, size)
        return Damaged(content[:end], end / size, 1, kind, _cut_between_units(content, suffix, end))
    if kind in ("hole", "zeros"):
        start = generator.randrange(0, size - 1)
        end = min(size, start + generator.choice([1, 16, 417, 5000, size // 5]))
        filling = bytes(end - start) if kind == "zeros" else b""
        return Damaged(content[:start] + filling + content[end:], start / size, end / size, kind)
    if kind == "flip":
        place = generator.randrange(size)
        flipped = bytes([content[place] ^ 1 << generator.randrange(8)])
        reason = _of_the_edit_list(content, place) if suffix == "m4a" else None
        return Damaged(content[:place] + flipped + content[place + 1 :], place / size, place / size, kind, reason)
    if kind == "join":
        return Damaged(content + content, 1, 1, kind)
    return _lie(content, suffix, generator)


def _cut_between_units(content: bytes, suffix: str, end: int) -> str | None:
    if suffix in ("ogg", "opus") and content[end : end + 4] == b"OggS":
        return "cut between pages"
    if suffix == "uncounted.mp3" and content[end : end + 2] == content[:2]:
        return "cut between frames that nothing counts"
    return None


def _of_the_edit_list(content: bytes, place: int) -> str | None:
    for name, size in ((b"mvhd", 108), (b"elst", 36)):
        start = content.index(name, content.index(b"moov"))
        if start <= place < start + size:
            return "an edit list that leaves out more or less of the sound"
    return None


def _lie(content: bytes, suffix: str, generator: random.Random) -> Damaged:
    """A header field with another value; where it has a checksum, with the right one."""
    changed = bytearray(content)

    def put(place: int, size: int, order: str = "little") -> None:
        old = int.from_bytes(content[place : place + size], order)
        bits = 8 * size
        new = generator.choice([old * 2, old // 2, old + 1, old + 100, old ^ 1 << generator.randrange(bits), 0])
        changed[place : place + size] = (new % (1 << bits)).to_bytes(size, order)

    undetectable = None
    if suffix == "wav":
        place, width = generator.choice([(4, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (40, 4)])
        put(place, width)
    elif suffix == "flac":
        place, width = generator.choice([(8, 2), (10, 2), (12, 3), (18, 3), (22, 4)])
        put(place, width, "big")
    elif suffix == "mp3":
        info = content.index(b"Info") if b"Info" in content[:300] else content.index(b"Xing")
        place, width = generator.choice([(info + 4, 4), (info + 8, 4), (info + 12, 4), (info + 141, 3)])
        put(place, width, "big")
        if place in (info + 4, info + 141):
            undetectable = "a header that names another delay of the codec"
    elif suffix == "uncounted.mp3":
        place = generator.choice([0, 1, 2, 3])
        put(place, 1)
        undetectable = "a frame that says it is as long as two" if place == 2 else None
    elif suffix in ("ogg", "opus"):
        pages = ogg_pages(content)
        number = generator.choice([0, len(pages) - 1, generator.randrange(len(pages))])
        page = bytearray(pages[number])
        place, width = generator.choice([(6, 8), (18, 4), (28 + 11, 2), (28 + 12, 4)]) if number == 0 else (6, 8)
        old = int.from_bytes(page[place : place + width], "little")
        page[place : place + width] = (old + generator.choice([-5000, -1, 1, 5000, 1 << 20])).to_bytes(
            width + 8, "little", signed=True
        )[:width]
        pages[number] = ogg_checked(bytes(page))
        changed[:] = b"".join(pages)
        undetectable = "a page with a valid checksum that names another rate or time"
    elif suffix == "m4a":
        moov = content.index(b"moov")
        fields = [b"mvhd", b"tkhd", b"mdhd", b"elst", b"stts", b"stsc", b"stsz", b"stco", b"esds", b"mp4a"]
        place = content.index(generator.choice([name for name in fields if name in content[moov:]]), moov)
        place += 8 + 4 * generator.randrange(6)
        put(place, 4, "big")
        undetectable = _of_the_edit_list(content, place)
    return Damaged(bytes(changed), 0, 0, "lie", undetectable)
