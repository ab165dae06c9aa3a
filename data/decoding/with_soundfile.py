"""wav, flac, aiff and Ogg (Vorbis, Opus), decoded by libsndfile."""

import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from audio_mamba.data.decoding.parts import DamageError, Part, Window, check_rate, file_size

READ_BYTES = 1 << 20


def blocks(file: BinaryIO, part: Part, seconds: float) -> Iterator[tuple[int, np.ndarray]]:
    """See `decoding.decoded`."""
    begun = False
    try:
        for block in _blocks(file, part, seconds):
            begun = True
            yield block
    except soundfile.SoundFileError as error:
        _check_storage(file)
        reason = (getattr(error, "error_string", None) or str(error)).strip(" .")
        if "lost sync" in reason or begun:
            raise DamageError(f"damaged or cut off ({reason})") from error
        raise DamageError(f"cannot be read as audio ({reason})") from error


def _blocks(file: BinaryIO, part: Part, seconds: float) -> Iterator[tuple[int, np.ndarray]]:
    window: Window | None = None
    source: Window | int
    if part.start or part.patches or part.end != file_size(file):
        source = window = Window(file, part)
    else:
        source = _number(file)
    with soundfile.SoundFile(source, **_raw(part)) as opened:
        check_rate(opened.samplerate)
        frames, place = opened.frames, 0
        if part.samples is not None and frames != part.samples:
            raise DamageError(f"its header counts {part.samples} samples, but the decoder finds {frames}")
        while place < frames:
            block = opened.read(max(1, int(seconds * opened.samplerate)), dtype="float32", always_2d=True)
            if window and window.error:
                raise window.error
            if len(block) == 0:
                _check_storage(file)
                raise DamageError(f"cut off, {place} of {frames} samples could be read")
            place += len(block)
            yield opened.samplerate, block


def _check_storage(file: BinaryIO) -> None:
    """OSError if the file cannot be read to its end, which libsndfile takes for damage."""
    file.seek(0)
    while file.read(READ_BYTES):
        pass


def _raw(part: Part) -> dict:
    if part.raw is None:
        return {}
    raw = part.raw
    return {
        "format": "RAW",
        "subtype": raw.subtype,
        "samplerate": raw.rate,
        "channels": raw.channels,
        "endian": raw.endian,
    }


def seconds_of(file: BinaryIO) -> float:
    """See `decoding.seconds_of`."""
    try:
        return soundfile.info(_number(file)).duration
    except soundfile.SoundFileError as error:
        raise DamageError(str(error)) from error


def _number(file: BinaryIO) -> int:
    """An open file by number: soundfile takes no name that is not UTF-8, and judges some files by their names."""
    number = os.dup(file.fileno())
    os.lseek(number, 0, os.SEEK_SET)
    return number
