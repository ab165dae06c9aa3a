"""Recordings built by the rules of their formats: counts, sizes, tags, clocks; and some that break them."""

import io

import numpy as np
import pytest

from audio_mamba.data.audio import AudioError
from audio_mamba.data.decoding import parts_of
from tests.data.recordings import RATE, encode, is_in_time, sound, written
from tests.data.test_recordings import aiff_of, load, truth

PICTURE = (b"\xff\xfb\x90\x64" + bytes(413)) * 5  # looks like frames of an mp3


# ---------------------------------------------------------------- mp3 and flac


@pytest.mark.parametrize("suffix", ["mp3", "flac"])
@pytest.mark.parametrize("samples", [30_000, 44_100])
def test_a_part_holds_as_many_samples_as_were_encoded(suffix, samples):
    (part,) = parts_of(io.BytesIO(written(suffix, sound(44100)[:samples], 44100)))
    assert part.samples == samples


def counted(mp3: bytes, kept: tuple[int, ...], more: int = 0) -> bytes:
    """With some of the four fields of its first frame, which counts `more` frames: frames, bytes, a table of places, a
    quality. Behind them is the encoder, with the delays that are taken off."""
    start = mp3.index(b"Info") if b"Info" in mp3[:100] else mp3.index(b"Xing")
    frames = (int.from_bytes(mp3[start + 8 : start + 12], "big") + more).to_bytes(4, "big")
    fields = frames, *(mp3[start + a : start + b] for a, b in ((12, 16), (16, 116), (116, 120)))
    flags = sum(bit << place for place, bit in enumerate(kept)).to_bytes(4, "big")
    header = flags + b"".join(field for field, bit in zip(fields, kept) if bit) + mp3[start + 120 : start + 156]
    return mp3[: start + 4] + header.ljust(152, b"\0") + mp3[start + 156 :]


@pytest.mark.parametrize("kept", [(1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1)])
def test_the_first_frame_of_an_mp3_may_leave_fields_out(tmp_path, kept):
    samples = sound(44100, 2.0)
    content = counted(written("mp3", samples, 44100), kept)
    assert [part.samples for part in parts_of(io.BytesIO(content))] == [len(samples)]
    assert is_in_time(load(tmp_path / "a.mp3", content)[: 2 * RATE], truth(2.0))


@pytest.mark.parametrize("kept", [(1, 1, 1, 1), (1, 0, 1, 1)])
def test_the_first_frame_of_an_mp3_may_count_itself(tmp_path, kept):
    content = written("mp3", sound(44100, 2.0), 44100)
    assert is_in_time(load(tmp_path / "a.mp3", counted(content, kept, more=1))[: 2 * RATE], truth(2.0))
    with pytest.raises(AudioError, match="frames are there"):
        load(tmp_path / "a.mp3", counted(content, kept, more=2))


APE = (2000).to_bytes(4, "little") + (len(PICTURE) + 32).to_bytes(4, "little") + bytes(16)
TAGS = {
    "ID3v1": b"TAG" + bytes(125),
    "extended ID3v1": b"TAG+" + bytes(223) + b"TAG" + bytes(125),
    "ID3v2 with a footer": b"ID3\4\0\x10\0\0" + bytes(divmod(len(PICTURE), 128)) + PICTURE + b"3DI\4\0\x10" + bytes(4),
    "APE": b"APETAGEX" + APE + PICTURE + b"APETAGEX" + APE,
    "Lyrics3": b"LYRICSBEGIN" + PICTURE + b"002096LYRICS200",
}


@pytest.mark.parametrize("kind", TAGS)
def test_tags_between_joined_mp3s_are_passed_over(tmp_path, kind):
    first, second = (written("mp3", sound(44100, 2.0, seed), 44100) for seed in (0, 1))
    found = load(tmp_path / "joined.mp3", first + TAGS[kind] + second)
    assert is_in_time(found, np.concatenate([truth(2.0, 0), truth(2.0, 1)]))


@pytest.mark.parametrize("rate", [11_000, 12_345, 99_990])
def test_flac_frames_name_unusual_rates_in_three_ways(tmp_path, rate):
    """In kHz, Hz and tens of Hz."""
    samples = np.round(sound(16000, 2.0) * 32768) / 32768
    found = load(tmp_path / "a.flac", written("flac", samples, rate, subtype="PCM_16"), sample_rate=rate)
    np.testing.assert_array_equal(found, samples[:, 0])


# ---------------------------------------------------------------- wav and aiff


@pytest.mark.parametrize("end", [20, 36, 40, 43])
def test_a_wav_that_ends_in_its_header_is_damaged(tmp_path, end):
    with pytest.raises(AudioError):
        load(tmp_path / "cut.wav", written("wav", sound(), RATE)[:end])


@pytest.mark.parametrize("suffix", ["wav", "aiff"])
def test_silence_is_padding_only_where_the_file_says_that_it_ends_before(tmp_path, suffix):
    half = len(sound()) // 2
    silent = np.concatenate([sound()[:half], np.zeros_like(sound()[half:])])
    content = written(suffix, silent, RATE, subtype="PCM_16")
    if suffix == "aiff":
        content = aiff_of(content, half)
    else:
        content = content[:40] + (2 * half).to_bytes(4, "little") + content[44:]
    with pytest.raises(AudioError, match="header counts .* bytes of samples, but"):
        load(tmp_path / "more", content)
    shorter = (len(content) - 8 - 2 * half).to_bytes(4, "big" if suffix == "aiff" else "little")
    assert len(load(tmp_path / "padded", content[:4] + shorter + content[8:])) == half


def test_a_chunk_that_nobody_knows_may_end_a_wav(tmp_path):
    content = written("wav", sound(), RATE)
    found = load(tmp_path / "a.wav", content + b"mine\4\0\0\0abcd")
    np.testing.assert_array_equal(found, load(tmp_path / "b.wav", content))


# ---------------------------------------------------------------- containers


def test_a_box_of_an_mp4_may_have_its_size_behind_its_name_or_reach_to_the_end(tmp_path):
    content = encode("m4a", sound(44100))
    place = content.index(b"mdat") - 4
    assert content[place - 8 : place] == b"\0\0\0\x08free"  # room for the longer form
    longer = b"\0\0\0\1mdat" + (int.from_bytes(content[place : place + 4], "big") + 8).to_bytes(8, "big")
    longer = content[: place - 8] + longer + content[place + 8 :]
    np.testing.assert_array_equal(load(tmp_path / "longer", longer), load(tmp_path / "whole", content))
    content = encode("m4a", sound(44100), movflags="faststart")
    place = content.index(b"mdat") - 4
    open_ended = content[:place] + bytes(4) + content[place + 4 :]
    np.testing.assert_array_equal(load(tmp_path / "open", open_ended), load(tmp_path / "whole", content))


@pytest.mark.parametrize("unit, refused", [(1_001_000, False), (1_050_000, True), (950_000, True)])
def test_a_clock_that_does_not_fit_the_samples_is_refused(tmp_path, unit, refused):
    """Each packet is early or late by less than a rounding error, all together by seconds."""
    scale = b"\x2a\xd7\xb1\x83"  # of the times in a Matroska file, in nanoseconds
    content = encode("mka", sound(44100))
    changed = content.replace(scale + (1_000_000).to_bytes(3, "big"), scale + unit.to_bytes(3, "big"))
    assert changed != content
    if refused:
        with pytest.raises(AudioError, match="contradicts itself|is missing|are missing"):
            load(tmp_path / "clock", changed)
    else:
        np.testing.assert_array_equal(load(tmp_path / "clock", changed), load(tmp_path / "whole", content))


def test_joined_aacs_may_differ_in_rate(tmp_path):
    """They are one part, since nothing but the rate of its frames tells them apart."""
    contents = [encode("aac", sound(rate, 2.0, seed), rate) for seed, rate in enumerate((44100, 22050))]
    apart = [load(tmp_path / "apart.aac", content) for content in contents]
    found = load(tmp_path / "joined.aac", b"".join(contents))
    assert is_in_time(found, np.concatenate(apart))
