"""Sound on a pipe: raw samples, wav with a header, and what is neither."""

import io

import numpy as np
import pytest
import soundfile
import soxr

from audio_mamba.data.audio_files import AudioError
from audio_mamba.data.pcm_stream import stream_pcm
from tests.data.recordings import encode, sound, written

SOUND = sound(16000, 2.0)[:, 0]
WAV = written("wav", SOUND[:, None], 16000)


class Pipe(io.RawIOBase):
    """Gives few bytes at a time and cannot seek."""

    def __init__(self, content: bytes):
        self.content = io.BytesIO(content)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.content.readinto(memoryview(buffer)[:777])


def read(content: bytes) -> np.ndarray:
    pieces = list(stream_pcm(io.BufferedReader(Pipe(content))))
    assert all(piece.dtype == np.float32 and piece.ndim == 1 for piece in pieces)
    return np.concatenate(pieces)


def test_samples_without_a_header_are_16_bits_at_16_khz():
    samples = (SOUND * 32767).astype("<i2")
    np.testing.assert_array_equal(read(samples.tobytes()), samples.astype(np.float32) / 32768)
    np.testing.assert_array_equal(read(samples.tobytes()[:-1]), samples[:-1].astype(np.float32) / 32768)


@pytest.mark.parametrize(
    "subtype, precision",
    [("PCM_U8", 1e-2), ("PCM_16", 1e-4), ("PCM_24", 1e-6), ("PCM_32", 1e-6), ("FLOAT", 1e-7), ("DOUBLE", 1e-7)],
)
@pytest.mark.parametrize("rate", [16000, 44100])
def test_the_header_of_a_wav_is_obeyed(subtype, precision, rate):
    right = sound(rate, 2.0, 1)[:, 0]
    samples = np.stack([sound(rate, 2.0)[:, 0], right], 1)
    found = read(written("wav", samples, rate, subtype=subtype))
    expected = samples.mean(1) if rate == 16000 else soxr.resample(samples.mean(1), rate, 16000, "HQ")
    np.testing.assert_allclose(found, expected, atol=precision)


def with_size(size: int) -> bytes:
    """A wav file whose header counts so many bytes of samples."""
    content = bytearray(WAV)
    content[40:44] = size.to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize("unknown", [0, 0x7EFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_the_length_of_a_program_that_did_not_know_it_is_ignored(unknown, caplog):
    assert len(read(with_size(unknown))) == len(SOUND) and not caplog.records


def test_the_header_that_ffmpeg_writes_to_a_pipe_is_obeyed():
    note = b"LIST" + (26).to_bytes(4, "little") + b"INFOISFT" + (14).to_bytes(4, "little") + b"Lavf59.27.100\0"
    endless = b"\xff" * 4
    content = b"RIFF" + endless + WAV[8:36] + note + b"data" + endless + WAV[44:]
    np.testing.assert_array_equal(read(content), read(WAV))
    large = b"RF64" + endless + b"WAVEds64" + (28).to_bytes(4, "little") + bytes(28) + content[12:]
    np.testing.assert_array_equal(read(large), read(WAV))


LARGE = written("wav", SOUND[:, None], 16000, format="RF64")


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_the_long_size_of_a_large_wav_is_obeyed(magic, caplog):
    large = magic + LARGE[4:]
    tail = b"iXML" + (2000).to_bytes(4, "little") + b"<x/>" * 500
    np.testing.assert_array_equal(read(large + tail), read(WAV))
    np.testing.assert_array_equal(read(large + tail + WAV + large), np.tile(read(WAV), 3))
    assert not caplog.records


@pytest.mark.parametrize("unknown", [0, (1 << 32) - 1, (1 << 63) - 1, (1 << 64) - 37, (1 << 64) - 1])
def test_a_long_size_of_a_program_that_did_not_know_it_is_ignored(unknown, caplog):
    place = LARGE.index(b"ds64") + 16
    content = LARGE[:place] + unknown.to_bytes(8, "little") + LARGE[place + 8 :]
    np.testing.assert_array_equal(read(content), read(WAV))
    assert not caplog.records


@pytest.mark.parametrize(
    "tail",
    [
        b"LIST" + (26).to_bytes(4, "little") + b"INFOISFT" + (14).to_bytes(4, "little") + b"Lavf59.27.100\0",
        b"fact"
        + (4).to_bytes(4, "little")
        + bytes(4)
        + b"cue "
        + (2).to_bytes(4, "little")
        + b"ab"
        + b"JUNK"
        + bytes(4),
        b"id3 " + (200_000).to_bytes(4, "little") + bytes(200_000) + b"fact" + (1).to_bytes(4, "little") + b"a\0",
    ],
)
def test_chunks_behind_the_samples_are_not_samples(tail, caplog):
    np.testing.assert_array_equal(read(WAV + tail), read(WAV))
    np.testing.assert_array_equal(read(WAV + tail + WAV), np.tile(read(WAV), 2))  # nor at a seam of two files
    assert not caplog.records


def test_joined_wavs_are_read_with_the_header_of_each():
    other = written("wav", sound(44100, 2.0, channels=2), 44100, subtype="FLOAT")
    found = read(WAV + other + WAV)
    np.testing.assert_array_equal(found[: len(SOUND)], read(WAV))
    np.testing.assert_array_equal(found[len(SOUND) : -len(SOUND)], read(other))
    np.testing.assert_array_equal(found[-len(SOUND) :], read(WAV))


def test_a_header_with_a_rate_that_nothing_records_at_is_refused():
    content = WAV[:24] + (1 << 31).to_bytes(4, "little") + WAV[28:]
    with pytest.raises(AudioError, match="stdin: its header names a sample rate of 2147483648 Hz"):
        read(content)


def test_a_large_chunk_before_the_samples_is_skipped_in_pieces():
    class Counting(Pipe):
        largest = 0

        def readinto(self, buffer):
            self.largest = max(self.largest, len(buffer))
            return super().readinto(buffer)

    pipe = Counting(WAV[:36] + b"JUNK" + (1 << 24).to_bytes(4, "little") + bytes(1 << 24) + WAV[36:])
    pieces = list(stream_pcm(io.BufferedReader(pipe)))
    np.testing.assert_array_equal(np.concatenate(pieces), read(WAV))
    assert pipe.largest < 1 << 20


def test_a_count_that_is_too_large_or_too_small_is_told(caplog):
    assert len(read(with_size(100_000))) == len(SOUND)
    assert "stdin: ended early, its header counts 36000 more bytes of samples" in caplog.text
    assert len(read(with_size(3_000_000_000))) == len(SOUND)
    assert "stdin: ended early, its header counts 2999936000 more bytes of samples" in caplog.text
    np.testing.assert_array_equal(read(with_size(1000)), read(WAV))
    assert "stdin: its header counts 1000 bytes of samples, but more follow" in caplog.text


@pytest.mark.parametrize("channel, expected", [("left", 0), ("right", 1), (2, 2)])
def test_one_channel_is_taken(channel, expected):
    samples = np.stack([sound(16000, 2.0, seed)[:, 0] for seed in range(3)], 1)
    pipe = io.BufferedReader(Pipe(written("wav", samples, 16000, subtype="FLOAT")))
    np.testing.assert_array_equal(np.concatenate(list(stream_pcm(pipe, channel=channel))), samples[:, expected])


def test_opposite_phase_and_more_than_two_channels_are_told(caplog):
    read(written("wav", np.stack([SOUND, -SOUND], 1), 16000))
    assert "stdin: its channels cancel out (opposite phase)" in caplog.text
    read(written("wav", np.stack([SOUND] * 4, 1), 16000))
    assert "stdin: its 4 channels are mixed into one" in caplog.text


@pytest.mark.parametrize("sign, warnings", [(-1, 1), (1, 0)])
def test_opposite_phase_is_told_once_while_a_stream_goes_on(caplog, sign, warnings):
    left = sound(16000, 7.0)[:, 0]
    pipe = io.BufferedReader(Pipe(written("wav", np.stack([left, sign * left], 1), 16000)))
    heard = 0
    for piece in stream_pcm(pipe, piece_seconds=0.5):
        heard += len(piece)
        assert len(caplog.messages) == (warnings if heard >= 5 * 16000 else 0)
    assert heard == len(left) and len(caplog.messages) == warnings


def test_samples_that_begin_like_a_frame_are_samples():
    for start in (b"\xff\xfb\x90\x64", b"\xff\xf1\x50\x80\x20\x1f"):
        samples = np.frombuffer(start + (SOUND * 32767).astype("<i2").tobytes(), "<i2")
        np.testing.assert_array_equal(read(samples.tobytes()), samples.astype(np.float32) / 32768)


@pytest.mark.parametrize(
    "content, kind",
    [
        (written("flac", SOUND[:, None], 16000), "FLAC"),
        (written("ogg", SOUND[:, None], 16000), "Ogg"),
        (written("mp3", SOUND[:, None], 16000), "mp3"),
        (b"ID3\3\0\0\0\0\0\0" + bytes(100), "mp3"),
        (encode("mp2", sound(44100)), "mp3"),
        (encode("aac", sound(44100)), "aac"),
        (encode("au", sound(22050)), "Sun au"),
        (encode("w64", sound(22050)), "w64"),
        (encode("wv", sound(44100)), "WavPack"),
        (encode("avi", sound(44100)), "avi"),
        (written("aiff", SOUND[:, None], 16000), "aiff"),
        (written("wav", SOUND[:, None], 16000, endian="BIG"), "big-endian wav"),
        (encode("m4a", sound(44100)), "m4a"),
        (encode("webm", sound(48000)), "webm"),
        (encode("amr", sound(8000)), "amr"),
    ],
)
def test_compressed_sound_is_refused_by_name(content, kind):
    with pytest.raises(AudioError, match=f"stdin: this is .*{kind}.*, not samples"):
        read(content)


@pytest.mark.parametrize(
    "subtype, kind", [("ULAW", "mu-law"), ("ALAW", "A-law"), ("IMA_ADPCM", "IMA ADPCM"), ("MS_ADPCM", "ADPCM")]
)
def test_other_wavs_are_refused_by_name(subtype, kind):
    with pytest.raises(AudioError, match=f"stdin: a wav header of {kind}, which cannot be read"):
        read(written("wav", SOUND[:, None], 16000, subtype=subtype))


def test_the_samples_are_those_that_libsndfile_reads(tmp_path):
    (tmp_path / "a.wav").write_bytes(written("wav", SOUND[:, None], 16000))
    np.testing.assert_array_equal(
        read((tmp_path / "a.wav").read_bytes()), soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    )
