"""What libsndfile does not read, or not to its end, decoded by PyAV (FFmpeg): mp3, m4a, webm, wma, amr, caf, ..."""

import contextlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

import av
import av.codec.context
import numpy as np

from audio_mamba.data.decoding.parts import DamageError, Part, Window, check_rate, file_size, only_zeros, tag_size

# Containers of sound. FFmpeg also reads lists of other files, pictures and text, which are not for here.
FORMATS = (
    "aac,ac3,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,eac3,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpc,mpc8,mpeg,"
    "mpegts,nistsphere,ogg,tta,voc,w64,wv"
)
# Frame follows frame in these, without a clock or a count. The times of their packets are made up.
UNTIMED = {"aac", "ac3", "amr", "amrnb", "amrwb", "dts", "eac3", "mp3", "voc"}
STEP_SECONDS = 0.05  # by which a packet may be early or late: rounding, and the clocks of recorders
DRIFT = 0.005  # of the time so far, for the same reason
END_SECONDS = 0.15  # by which a container may count more than there is: the delay of a codec
COUNTS_SAMPLES = {"au", "nistsphere"}  # containers that count without a delay, so that nothing may be missing
LONGEST_HOLE_SECONDS = 10.0  # that is filled with silence
FULL_SCALE = {"u8": 1 << 7, "s16": 1 << 15, "s32": 1 << 31}
# FFmpeg takes the padding off the last frame of these although the frame itself is already short.
UNPADDED = {"alac"}

Frames = Iterator[tuple[int, np.ndarray]]


def blocks(file: BinaryIO, part: Part, seconds: float, warn: Callable[[str], None]) -> Frames:
    """See `decoding.decoded`. A hole in the times of the packets is reported and filled with silence."""
    held: list[np.ndarray] = []
    held_rate = count = 0
    for rate, samples in _frames(file, part, warn):
        check_rate(rate)
        if held and (rate != held_rate or samples.shape[1] != held[0].shape[1]):
            yield held_rate, np.concatenate(held)
            held, count = [], 0
        held_rate = rate
        held.append(samples)
        count += len(samples)
        if count >= seconds * rate:
            yield rate, np.concatenate(held)
            held, count = [], 0
    if held:
        yield held_rate, np.concatenate(held)


def _frames(file: BinaryIO, part: Part, warn: Callable[[str], None]) -> Frames:
    """One decoded frame after the other: rate, float32 [n, channels]."""
    clock = _Clock()
    try:
        with contextlib.closing(_opened(Window(file, part), part.format)) as container:
            stream, packet_end = _first_track(container, warn), None
            timed = container.format.name not in UNTIMED
            in_a_row = not timed and container.format.name != "voc"  # whose blocks have headers, see `voc`
            if timed and stream.time_base:
                clock.unit = float(stream.time_base)
            for packet in container.demux(stream):
                if packet.is_corrupt:
                    raise DamageError(f"damaged or cut off at second {clock.seconds:.1f}")
                if in_a_row:
                    packet_end = _end_in_a_row(packet, packet_end, clock)
                for frame in packet.decode():
                    yield from _after_silence(frame, clock, warn)
            if timed and not container.format.name.startswith("matroska"):  # whose length FFmpeg may have guessed
                _check_end(stream, clock, 0.5 / clock.rate if container.format.name in COUNTS_SAMPLES else END_SECONDS)
            elif in_a_row:
                _check_rest(file, part, packet_end)
            if part.samples is not None and clock.samples < part.samples:
                raise DamageError(f"damaged, {clock.samples} of {part.samples} samples could be decoded")
    except av.FFmpegError as error:
        what = f"damaged or cut off at second {clock.seconds:.1f}" if clock.samples else "cannot be read as audio"
        raise DamageError(f"{what} ({error.strerror})") from error


def _opened(window: Window, container_format: str | None, formats: str = FORMATS) -> av.container.InputContainer:
    options = {"format_whitelist": container_format or formats}
    # Titles and names in another encoding than UTF-8 say nothing about the sound.
    return av.open(window, "r", container_format, container_options=options, metadata_errors="replace")


def _first_track(container: av.container.InputContainer, warn: Callable[[str], None]) -> av.AudioStream:
    """The sound that is taken; DamageError where there is none to decode."""
    tracks = container.streams.audio
    if not tracks:
        raise DamageError("it holds no sound")
    if len(tracks) > 1:
        warn(f"the first of its {len(tracks)} sound tracks is taken")
    if tracks[0].codec_context is None:
        raise DamageError("its codec is not one that FFmpeg decodes")
    if tracks[0].codec_context.name in UNPADDED:
        tracks[0].codec_context.flags2 |= av.codec.context.Flags2.skip_manual
    return tracks[0]


def _end_in_a_row(packet: av.Packet, before: int | None, clock: "_Clock") -> int | None:
    """Where a packet ends; DamageError where it does not begin at the end of the one `before`."""
    if not packet.size or packet.pos is None:
        return before
    if before is not None and packet.pos != before:
        raise DamageError(f"damaged, at second {clock.seconds:.1f} the data are not a frame")
    return packet.pos + packet.size


def _after_silence(frame: av.AudioFrame, clock: "_Clock", warn: Callable[[str], None]) -> Frames:
    """The samples of a frame, after silence where there is a hole before it."""
    if hole := clock.hole_before(frame):
        warn(f"{hole:.2f} s are missing at second {clock.seconds:.1f}; silence is put there")
        clock.seconds += hole
        yield frame.sample_rate, np.zeros((round(hole * frame.sample_rate), frame.layout.nb_channels), np.float32)
    clock.tick(frame)
    yield frame.sample_rate, _samples(frame)


class _Clock:
    """The times that packets name, compared with the samples that came out of them."""

    def __init__(self) -> None:
        self.unit: float | None = None  # of the times, in seconds; None where there are none
        self.seconds = 0.0  # of what was decoded and filled in
        self.samples = 0
        self.rate = 1
        self._first: float | None = None  # time of the first frame
        self._next: float | None = None  # time at which the next frame is due

    def hole_before(self, frame: av.AudioFrame) -> float:
        """Seconds of silence that belong before a frame; DamageError where its time cannot be."""
        if frame.pts is None or self.unit is None:
            return 0.0
        time = frame.pts * self.unit
        if self._next is None or self._first is None:
            self._first = self._next = time
        late = time - self._next
        if late < -STEP_SECONDS or late > LONGEST_HOLE_SECONDS:
            raise DamageError(f"damaged, after second {self.seconds:.1f} comes second {time - self._first:.1f}")
        hole = late if late > STEP_SECONDS else 0.0
        drift = abs(time - self._first - self.seconds - hole)
        if drift > 2 * STEP_SECONDS + DRIFT * self.seconds:
            raise DamageError(
                f"its header contradicts itself: {self.seconds + hole:.2f} s of samples last "
                f"{time - self._first:.2f} s by its times"
            )
        return hole

    def tick(self, frame: av.AudioFrame) -> None:
        duration = frame.samples / frame.sample_rate
        self.seconds += duration
        self.samples += frame.samples
        self.rate = frame.sample_rate
        if frame.pts is not None and self.unit is not None:
            self._next = frame.pts * self.unit + duration
        elif self._next is not None:
            self._next += duration


def _samples(frame: av.AudioFrame) -> np.ndarray:
    """float32 [n, channels], in [-1, 1] where the frame holds integers."""
    samples = frame.to_ndarray()  # [channels, n], or [1, n * channels] where channels alternate
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    middle = 128 if samples.dtype == np.uint8 else 0
    return (samples.astype(np.float32) - middle) / FULL_SCALE[frame.format.name.removesuffix("p")]


def _check_end(stream: av.AudioStream, clock: _Clock, tolerance: float) -> None:
    if stream.duration is None or stream.time_base is None:
        return
    counted = float(stream.duration * stream.time_base)
    if clock.seconds < counted - tolerance:
        raise DamageError(f"cut off or damaged, {counted - clock.seconds:.3g} of {counted:.2f} s are missing")


def _check_rest(file: BinaryIO, part: Part, packet_end: int | None) -> None:
    place = part.start + (packet_end or 0)
    while place < part.end and (size := tag_size(file, place)):
        place += size
    if part.end - place > 8 and not only_zeros(file, place, part.end):
        raise DamageError(f"damaged or cut off, its last {part.end - place} bytes are not frames")


def seconds_of(file: BinaryIO) -> float:
    """See `decoding.seconds_of`."""
    try:
        with contextlib.closing(
            _opened(Window(file, Part(0, file_size(file), "av")), None, FORMATS + ",mp3,wav")
        ) as container:
            stream = container.streams.audio[0] if container.streams.audio else None
            if stream is not None and stream.duration is not None and stream.time_base is not None:
                return float(stream.duration * stream.time_base)
            return (container.duration or 0) / av.time_base
    except av.FFmpegError as error:
        raise DamageError(str(error)) from error
