"""From the bytes of a recording to its samples, with a check that all that the file holds is there.

`parts_of` chooses by content which decoder reads a file, after a look at how the file is built; `decoded` decodes.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from audio_mamba.data.decoding import flac, mp4, mpeg, ogg, riff, voc, with_soundfile
from audio_mamba.data.decoding.parts import DamageError, Part, audio_start, file_size, read_at

__all__ = ["DamageError", "Part", "decoded", "parts_of", "seconds_of"]


def parts_of(file: BinaryIO) -> list[Part]:
    """The parts of a recording, in order. DamageError where something is missing; OSError where reading fails."""
    end, start = file_size(file), audio_start(file)
    head = read_at(file, start, 36)
    kind, form = head[:4], head[8:12]
    if kind in (b"RIFF", b"RIFX", b"RF64", b"BW64") and form == b"WAVE":
        return riff.wav_parts(file, start, end)
    if kind == b"RIFF" and form == b"AVI ":
        missing = start + 8 + int.from_bytes(head[4:8], "little") - end
        if missing > 1:
            raise DamageError(f"cut off, its last {missing} bytes are missing")
        return [Part(start, end, "av", "avi")]
    if kind == b"FORM" and form in (b"AIFF", b"AIFC"):
        return riff.aiff_parts(file, start, end)
    if kind == b"caff":
        return riff.caf_parts(file, start, end)
    if kind == b"fLaC":
        return flac.flac_parts(file, end)
    if kind == b"OggS":
        return ogg.ogg_parts(file, start, end)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return mp4.mp4_parts(file, start, end)
    if kind == b"\x1a\x45\xdf\xa3":
        return mp4.matroska_parts(file, start, end)
    if read_at(file, start, len(voc.MAGIC)) == voc.MAGIC:
        return voc.voc_parts(file, start, end)
    if (first := mpeg.first_frame(file, start)) is not None:
        return mpeg.mpeg_parts(file, start, first, end)
    return [Part(start, end, "av")]


def decoded(
    file: BinaryIO, part: Part, seconds: float, warn: Callable[[str], None]
) -> Iterator[tuple[int, np.ndarray]]:
    """The samples of a part.

    Args:
        seconds: about the length of the blocks.
        warn: is given what the user should know of a file that can be read all the same.

    Yields:
        rate in Hz, float32 [n, channels]. Raises DamageError for data that cannot be decoded, are fewer than the
        container holds, or out of order; where what follows a part is damaged, after its last block.
    """
    if part.warning:
        warn(part.warning)
    if part.decoder == "soundfile":
        yield from with_soundfile.blocks(file, part, seconds)
    else:
        from audio_mamba.data.decoding import with_av  # PyAV is loaded for the files that need it

        yield from with_av.blocks(file, part, seconds, warn)
    if part.fault:
        raise DamageError(part.fault)


def seconds_of(file: BinaryIO) -> float:
    """The length of a recording as its header has it, 0 where it has none; DamageError where it cannot be read."""
    try:
        return with_soundfile.seconds_of(file)
    except DamageError:
        from audio_mamba.data.decoding import with_av

        return with_av.seconds_of(file)
