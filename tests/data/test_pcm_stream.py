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


@pytest.mark.parametrize("subtype, precision", [("PCM_U8", 1e-2), ("PCM_16", 1e-4), ("PCM_32", 1e-6), ("FLOAT", 1e-7)])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_the_header_of_a_wav_is_obeyed(subtype, precision, rate):
    right = sound(rate, 2.0, 1)[:, 0]
    samples = np.stack([sound(rate, 2.0)[:, 0], right], 1)
    found = read(written("wav", samples, rate, subtype=subtype))
    expected = samples.mean(1) if rate == 16000 else soxr.resample(samples.mean(1), rate, 16000, "HQ")
    np.testing.assert_allclose(found, expected, atol=precision)


def test_the_length_that_a_wav_of_a_pipe_names_is_ignored():
    content = bytearray(written("wav", SOUND[:, None], 16000))
    content[40:44] = bytes(4)
    assert len(read(bytes(content))) == len(SOUND)


@pytest.mark.parametrize(
    "content, kind",
    [
        (written("flac", SOUND[:, None], 16000), "FLAC"),
        (written("ogg", SOUND[:, None], 16000), "Ogg"),
        (written("mp3", SOUND[:, None], 16000), "mp3"),
        (b"ID3\3\0\0\0\0\0\0" + bytes(100), "mp3"),
        (encode("m4a", sound(44100)), "m4a"),
        (encode("webm", sound(48000)), "webm"),
        (encode("amr", sound(8000)), "amr"),
    ],
)
def test_compressed_sound_is_refused_by_name(content, kind):
    with pytest.raises(AudioError, match=f"stdin: this is .*{kind}.*, not samples"):
        read(content)


@pytest.mark.parametrize("subtype", ["PCM_24", "ULAW"])
def test_other_wavs_are_refused(subtype):
    with pytest.raises(AudioError, match="stdin: a wav header of a kind that is not read"):
        read(written("wav", SOUND[:, None], 16000, subtype=subtype))


def test_the_samples_are_those_that_libsndfile_reads(tmp_path):
    (tmp_path / "a.wav").write_bytes(written("wav", SOUND[:, None], 16000))
    np.testing.assert_array_equal(
        read((tmp_path / "a.wav").read_bytes()), soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    )
