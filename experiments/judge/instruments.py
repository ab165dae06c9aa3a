"""Sampled instruments as audio: sound fonts played by fluidsynth, and the samples of GUS patch files."""

import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr

from audio_mamba.data.audio import load_audio

SAMPLE_RATE = 16000
PLAYED_AT = 48000  # Hz; fluidsynth does not filter what a lower rate cannot hold
TICKS_PER_SECOND = 1000
SILENCE = 1e-3
PERCUSSION = 9  # the MIDI channel of drums


class Note(NamedTuple):
    """A note of a slot: General MIDI program, key, velocity, start and end in seconds from the start of the slot."""

    channel: int
    program: int
    key: int
    velocity: int
    start: float
    end: float


def play(font: Path, slots: Sequence[Sequence[Note]], seconds: float) -> list[np.ndarray]:
    """Play slots of notes, each `seconds` long after one as long that is silent, without reverberation or chorus.

    Returns:
        float32 [seconds * SAMPLE_RATE] for each slot.

    Raises:
        RuntimeError: fluidsynth failed, or nothing is heard.
    """
    events: list[tuple[float, int, bytes]] = []  # time, order among equals, message
    for number, notes in enumerate(slots):
        for note in notes:
            begin = 2 * seconds * number
            events += [
                (begin, 0, bytes([0xC0 | note.channel, note.program])),
                (begin + note.start, 2, bytes([0x90 | note.channel, note.key, note.velocity])),
                (begin + note.end, 1, bytes([0x80 | note.channel, note.key, 0])),
            ]
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "notes.mid", Path(folder) / "notes.wav"
        midi.write_bytes(midi_file(events, 2 * seconds * len(slots)))
        command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-g", "2", "-r", str(PLAYED_AT), "-O", "float"]
        done = subprocess.run([*command, "-F", wav, font, midi], capture_output=True, text=True)
        if done.returncode or not wav.exists():
            raise RuntimeError(f"fluidsynth, {font}: {done.stderr.strip() or 'wrote nothing'}")
        audio = load_audio(wav, SAMPLE_RATE)
    if np.abs(audio).max() < SILENCE:
        raise RuntimeError(f"{font} has none of these instruments: all is silent")
    length = round(seconds * SAMPLE_RATE)
    audio = np.pad(audio, (0, max(0, 2 * length * len(slots) - len(audio))))
    return [audio[2 * length * number :][:length] for number in range(len(slots))]


def midi_file(events: Sequence[tuple[float, int, bytes]], seconds: float) -> bytes:
    """A standard MIDI file of one track: events (time in seconds, order among equals, message), then silence."""
    track, now = bytearray(b"\x00\xff\x51\x03" + (1_000_000).to_bytes(3, "big")), 0  # a quarter note is a second
    for time, _, message in [*sorted(events), (seconds, 0, b"\xff\x2f\x00")]:
        ticks = round(time * TICKS_PER_SECOND)
        track += _variable_length(ticks - now) + message
        now = ticks
    return struct.pack(">4sIHHH4sI", b"MThd", 6, 0, 1, TICKS_PER_SECOND, b"MTrk", len(track)) + track


def _variable_length(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(0x80 | value & 0x7F)
    return bytes(reversed(parts))


def read_patch(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """The samples of a GUS patch file (.pat, the format of freepats): fundamental frequency in Hz, and float32 audio
    [n] at SAMPLE_RATE, once through, without its loop. ValueError for a file of another kind, or a damaged one."""
    content = path.read_bytes()
    if not content.startswith(b"GF1PATCH110\x00"):
        raise ValueError(f"{path} is not a GUS patch")
    place = 129 + 63 + 47  # headers of file, instrument and layer; the layer's number of samples is at its byte 6
    for _ in range(content[129 + 63 + 6]):
        (size,) = struct.unpack_from("<I", content, place + 8)
        (rate,) = struct.unpack_from("<H", content, place + 20)
        (root,) = struct.unpack_from("<I", content, place + 30)  # in thousandths of a Hz
        flags = content[place + 55]  # bit 0: 16 bits, bit 1: unsigned, bit 4: reversed
        place += 96
        if place + size > len(content) or not rate:
            raise ValueError(f"{path} is damaged")
        width = 2 if flags & 1 else 1
        values = np.frombuffer(content, f"<u{width}", size // width, place)
        place += size
        half = 1 << (8 * width - 1)
        audio = (values if flags & 2 else values ^ half).astype(np.float32) / half - 1
        audio = audio[::-1] if flags & 16 else audio
        yield root / 1000, soxr.resample(audio, rate, SAMPLE_RATE)
