"""Recordings of every kind that people make, whole and odd: the truth is what was encoded."""

import contextlib
import io
import logging
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audio_mamba.data.audio import AudioError, channel_count, estimated_seconds, load_audio, stream_audio
from audio_mamba.data.decoding import mp4
from audio_mamba.data.decoding.riff import TRAILING_CHUNKS
from audio_mamba.data.pcm_stream import stream_pcm
from tests.data.recordings import (
    CODECS,
    RATE,
    SECONDS,
    encode,
    is_in_time,
    ogg_checked,
    ogg_pages,
    sound,
    undamaged,
    without_count,
    written,
)

CASES = Path(__file__).parent / "cases" / "audio"


def truth(seconds: float = SECONDS, seed: int = 0) -> np.ndarray:
    return sound(RATE, seconds, seed)[:, 0]


def load(path: Path, content: bytes, **options) -> np.ndarray:
    path.write_bytes(content)
    return load_audio(path, **options)


def delay_of(found: np.ndarray) -> int:
    """By how many samples a sound is late, from a second in its middle."""
    start, length, most = 3 * RATE, RATE, RATE // 2
    around = found[start - most : start + length + most]
    return int(np.correlate(around, truth()[start : start + length], "valid").argmax()) - most


# ---------------------------------------------------------------- files that failed once


@pytest.mark.parametrize(
    "name, seconds",
    [
        ("joined.mp3", 6),
        ("chained.ogg", 6),
        ("unknown_length.flac", 3),
        ("data_size_zero.wav", 3),
    ],
)
def test_what_sound_follows_is_read_to_its_end(name, seconds, caplog):
    assert len(load_audio(CASES / name)) == pytest.approx(seconds * RATE, abs=0.05 * RATE)
    assert (str(CASES / name) in caplog.text) == (name == "data_size_zero.wav")


@pytest.mark.parametrize(
    "name, reason",
    [
        ("lost_page.ogg", "page 7 is missing"),
        ("longer_than_its_header.wav", "counts 48000 bytes of samples, but 288000 follow"),
    ],
)
def test_what_is_lost_or_not_counted_is_refused_by_name(name, reason):
    with pytest.raises(AudioError, match=f"{name}: .*{reason}"):
        load_audio(CASES / name)


def test_the_shared_files_are_these(shared_cases):
    shared = {path.name: path.read_bytes() for path in (shared_cases / "audio").iterdir()}
    assert shared == {path.name: path.read_bytes() for path in CASES.iterdir()}
    tested = Path(__file__).read_text()
    assert all(f'"{name}"' in tested for name in shared)


# ---------------------------------------------------------------- kinds that libsndfile does not read


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", CODECS)
def test_every_kind_is_read_whole_and_in_time(tmp_path, suffix, channels):
    if suffix == "amr" and channels == 2:
        pytest.skip("amr has one channel")
    rate = CODECS[suffix][2]
    path = tmp_path / "named.wrongly"  # the content decides
    found = load(path, encode(suffix, sound(rate, channels=channels)))
    padding = 2 * 4096 * RATE // rate  # of the first and the last frame of containers without a count
    assert -0.05 * RATE < len(found) - len(truth()) < padding
    delay = delay_of(found)
    # Containers that do not say so leave the codec's delay in. FFmpeg leaves out the first half of a wma's first frame.
    assert -2 <= delay < padding or suffix == "wma" and -0.05 * RATE <= delay <= 0
    if delay < 0:
        found = np.concatenate([np.zeros(-delay, np.float32), found])
    found = found[max(0, delay) :]
    rest = min(len(found), len(truth()))
    likeness = 0.7 if suffix == "amr" else 0.9
    assert is_in_time(found[RATE // 10 : rest], truth()[RATE // 10 : rest], likeness=likeness)
    assert channel_count(path) == channels
    assert estimated_seconds(path) == pytest.approx(SECONDS, abs=1)


@pytest.mark.parametrize("suffix", ["m4a", "mp4", "mov", "webm", "caf"])
def test_containers_that_count_the_delay_of_their_codec_have_it_taken_off(tmp_path, suffix):
    rate = CODECS[suffix][2]
    found = load(tmp_path / "a", encode(suffix, sound(rate)))
    assert is_in_time(found, truth())
    assert abs(delay_of(found)) <= 1


@pytest.mark.parametrize(
    "suffix", ["m4a", "mp4", "mov", "webm", "mkv", "wma", "caf", "aac", "amr", "mp2", "avi", "oga", "voc"]
)
def test_the_first_half_of_a_file_is_an_error(tmp_path, suffix):
    content = encode(suffix, sound(CODECS[suffix][2]), **({"movflags": "faststart"} if suffix == "m4a" else {}))
    with pytest.raises(AudioError, match="half: (cut off|damaged|cannot be read as audio .*nvalid data)"):
        load(tmp_path / "half", content[: len(content) // 2 + 1])


@pytest.mark.parametrize("suffix", ["oga", "voc", "au", "w64"])
def test_what_is_stored_without_loss_is_read_exactly(tmp_path, suffix):
    rate, generator = CODECS[suffix][2], np.random.default_rng(0)
    samples = generator.integers(-30000, 30000, (3 * rate, 2)).astype(np.float32) / 32768
    for number in range(2):
        found = load(tmp_path / "a", encode(suffix, samples), sample_rate=rate, channel=number)
        np.testing.assert_array_equal(found, samples[:, number])


@pytest.mark.parametrize("format, subtype", [("au", "PCM_16"), ("au", "ULAW"), ("nist", "PCM_16"), ("nist", "ULAW")])
@pytest.mark.parametrize("cut", [1, 100, 1100])
def test_not_a_sample_may_be_missing_where_they_are_counted(tmp_path, format, subtype, cut):
    content = written(format, sound(8000), 8000, subtype=subtype)
    assert len(load(tmp_path / "whole", content, sample_rate=8000)) == len(sound(8000))
    for damaged in (content[:-cut], content[:2000] + content[2000 + cut :]):
        with pytest.raises(AudioError, match="cut: cut off or damaged, .* of 6.00 s are missing"):
            load(tmp_path / "cut", damaged)


@pytest.mark.parametrize("suffix", ["mp3.wav", "mp2.wav"])
def test_mp3_in_a_wav_is_checked_as_in_an_mp3(tmp_path, suffix):
    content = encode(suffix, sound(44100))
    whole, end = load(tmp_path / "whole", content, sample_rate=44100), content.index(b"data") + 8
    note = b"LIST" + (26).to_bytes(4, "little") + b"INFOISFT" + (14).to_bytes(4, "little") + b"Lavf59.27.100\0"
    for rest, expected in ((note, whole), (content, np.tile(whole, 2))):
        np.testing.assert_array_equal(load(tmp_path / "more", content + rest, sample_rate=44100), expected)
    with pytest.raises(AudioError, match="cut off, .* bytes of samples are there"):
        load(tmp_path / "cut", content[:-1000])
    for start in (0, len(content) // 2):
        changed = content[: end + start] + bytes(5000) + content[end + start + 5000 :]
        with pytest.raises(AudioError, match="hole: (damaged|its header says mp3)"):
            load(tmp_path / "hole", changed)


def voc(*blocks: tuple[int, bytes]) -> bytes:
    head = b"Creative Voice File\x1a" + bytes([26, 0, 0x14, 1, 0x1F, 0x11])
    return head + b"".join(bytes([kind]) + len(data).to_bytes(3, "little") + data for kind, data in blocks)


def test_a_voc_of_many_blocks_is_read_exactly(tmp_path, caplog):
    octets = np.random.default_rng(0).integers(0, 256, 40_000).astype(np.uint8)
    expected, data = (octets.astype(np.float32) - 128) / 128, octets.tobytes()
    more = [(2, data[start : start + 5000]) for start in range(10_000, 40_000, 5000)]
    for sound_block in ((1, bytes([131, 0])), (9, (8000).to_bytes(4, "little") + bytes([8, 1]) + bytes(6))):  # 8000 Hz
        blocks = [(sound_block[0], sound_block[1] + data[:10_000]), (5, b"a note\0"), (4, b"\1\0"), *more]
        whole = voc(*blocks) + b"\0"
        np.testing.assert_array_equal(load(tmp_path / "whole.voc", whole, sample_rate=8000), expected)
        assert not caplog.records
        for lacking in (1, 4000):
            with pytest.raises(AudioError, match=f"cut.voc: cut off, its last block lacks {lacking} bytes"):
                load(tmp_path / "cut.voc", whole[: -1 - lacking])
        for damaged in (whole[:15_000] + whole[16_000:], voc(*blocks, (3, b"\xff\0\x83"))):
            with pytest.raises(AudioError, match="damaged|of kind 3, which is not read"):
                load(tmp_path / "damaged.voc", damaged)
        assert len(load(tmp_path / "between.voc", voc(*blocks[:-1]), sample_rate=8000)) == 35_000
        assert "between.voc: its end is not marked" in caplog.text
        caplog.clear()
    stereo_blocks = [(8, (0x10000 - 16_000).to_bytes(4, "little")[:2] + bytes([0, 1])), (1, bytes([131, 0]) + data)]
    left = load(tmp_path / "stereo.voc", voc(*stereo_blocks) + b"\0", sample_rate=8000, channel="left")
    np.testing.assert_array_equal(left, expected[::2])


@pytest.mark.parametrize("suffix", ["webm", "mka"])
def test_a_hole_in_a_file_with_times_is_named_and_filled(tmp_path, suffix, caplog):
    """Removes a whole cluster: nothing but the times of what follows tells."""
    content = encode(suffix, sound(CODECS[suffix][2]), live="1", cluster_time_limit="500")
    cluster = b"\x1f\x43\xb6\x75"
    starts = [i for i in range(len(content)) if content.startswith(cluster, i)]
    found = load(tmp_path / "hole", content[: starts[4]] + content[starts[6] :])
    assert "hole: " in caplog.text and "are missing at second" in caplog.text
    whole = load(tmp_path / "whole", content)
    assert is_in_time(found[:31000], whole[:31000])  # before the hole; behind it the times are rounded to 1 ms
    assert abs(len(found) - len(whole)) <= 16 and abs(delay_of(found) - delay_of(whole)) <= 16


def test_files_without_sound_and_files_of_other_files_are_refused(tmp_path):
    (tmp_path / "secret.wav").write_bytes(written("wav", sound(), RATE))
    for text in (f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n", f"#EXTM3U\n{tmp_path}/secret.wav\n"):
        with pytest.raises(AudioError, match="list.m4a: cannot be read as audio"):
            load(tmp_path / "list.m4a", text.encode())
    with pytest.raises(AudioError, match="cannot be read as audio"):
        load(tmp_path / "noise.m4a", np.random.default_rng(0).bytes(50_000))


def test_a_second_sound_track_is_not_passed_over_in_silence(tmp_path, caplog):
    import av

    with av.open(str(tmp_path / "two.mka"), "w", format="matroska") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        for number, stream in enumerate(streams):
            samples = (sound(seed=number).T * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux(stream.encode(frame))
    assert is_in_time(load_audio(tmp_path / "two.mka"), truth())
    assert "two.mka: the first of its 2 sound tracks" in caplog.text


@pytest.mark.parametrize("suffix", ["m4a", "mov", "3gp", "webm", "mkv", "avi", "wv", "mp3"])
def test_titles_that_are_not_utf8_are_nothing_wrong_with_the_sound(tmp_path, suffix):
    if suffix == "mp3":
        samples = sound(seconds=1.0)
        plain = written("mp3", samples, RATE) + b"TAG" + b"Mxller".ljust(125, b"\0")
    else:
        plain = encode(suffix, sound(CODECS[suffix][2], 1.0), title="Mxller")
    latin = plain.replace(b"Mxller", "Müller".encode("latin-1"))
    assert latin != plain
    expected = load(tmp_path / f"plain.{suffix}", plain)
    np.testing.assert_array_equal(load(tmp_path / f"latin.{suffix}", latin), expected)
    assert estimated_seconds(tmp_path / f"latin.{suffix}") == estimated_seconds(tmp_path / f"plain.{suffix}") > 0.9


def test_a_codec_that_nobody_knows_is_named(tmp_path):
    content = encode("caf", sound(CODECS["caf"][2], 1.0))
    assert content.count(b"alac") >= 1
    with pytest.raises(AudioError, match="odd.caf: its codec is not one that FFmpeg decodes"):
        load(tmp_path / "odd.caf", content.replace(b"alac", b"a?ac", 1))


# ---------------------------------------------------------------- joined and chained


JOINED = ["wav", "flac", "mp3", "ogg", "opus", "m4a", "aiff"]


@pytest.mark.parametrize("suffix", JOINED)
def test_joined_files_are_read_one_after_the_other(tmp_path, suffix):
    contents = []
    for seed, seconds in enumerate((2.0, 3.0)):
        rate = 48000 if suffix == "opus" else 44100
        samples = sound(rate, seconds, seed)
        contents.append(encode("m4a", samples) if suffix == "m4a" else written(suffix, samples, rate))
    found = load(tmp_path / f"joined.{suffix}", b"".join(contents))
    apart = [load(tmp_path / f"apart.{suffix}", content) for content in contents]
    assert is_in_time(found, np.concatenate(apart))
    assert is_in_time(apart[0], truth(2.0, 0)) and is_in_time(apart[1], truth(3.0, 1))


@pytest.mark.parametrize("suffix", ["wav", "aiff"])
def test_any_number_of_joined_files_is_read(tmp_path, suffix):
    """More than Python's functions may call each other."""
    one = written(suffix, np.linspace(-0.5, 0.5, 800, dtype=np.float32)[:, None], 16000)
    assert len(load(tmp_path / f"joined.{suffix}", 1500 * one)) == 1500 * 800


@pytest.mark.parametrize("padding", [[0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1]])
def test_joined_wavs_of_odd_sizes_are_read_with_and_without_padding(tmp_path, padding):
    """Programs leave the padding out, and what follows is then at odd places."""
    samples = np.linspace(-0.5, 0.5, 801, dtype=np.float32)[:, None]
    one = written("wav", samples, 16000, subtype="PCM_U8")[: 44 + 801]
    content = b"".join(one + bytes(count) for count in padding)
    expected = np.tile(load(tmp_path / "one.wav", one), 3)
    np.testing.assert_array_equal(load(tmp_path / "joined.wav", content), expected)
    np.testing.assert_array_equal(np.concatenate(list(stream_pcm(io.BytesIO(content)))), expected)


def test_a_flac_that_is_cut_off_in_its_header_is_not_passed_over(tmp_path):
    """Not even if it counts no samples and another one, long enough for the rest of the header, follows."""
    whole = written("flac", sound(16000, 2.0), RATE)
    tag = b"fLaC\0\0\0\x22" + whole[8:42]
    tag = tag[:21] + bytes([tag[21] & 0xF0]) + bytes(4) + tag[26:]
    assert len(load(tmp_path / "joined.flac", whole + whole)) == 4 * RATE
    with pytest.raises(AudioError, match="its header is cut off"):
        load(tmp_path / "cut.flac", tag + b"\x84\0\1\0" + whole)


def test_any_number_of_joined_mp4s_is_found():
    joined = 1500 * encode("m4a", sound(16000, 0.2))
    parts = mp4.mp4_parts(io.BytesIO(joined), 0, len(joined))
    assert [part.end for part in parts] == [(number + 1) * len(joined) // 1500 for number in range(1500)]


def test_joined_mp3s_may_differ_in_rate_and_channels_and_in_what_they_count(tmp_path):
    pieces = [
        written("mp3", sound(44100, 2, 0), 44100),
        b"TAG" + bytes(125) + b"ID3\x03\0\0\0\0\1\0" + bytes(128),
        written("mp3", sound(22050, 2, 1), 22050),
        written("mp3", sound(22050, 2, 2, channels=2), 22050),
        without_count(written("mp3", sound(44100, 2, 3), 44100)),
    ]
    found = load(tmp_path / "podcast.mp3", b"".join(pieces))
    assert is_in_time(found[: 6 * RATE], np.concatenate([truth(2, 0), truth(2, 1), truth(2, 2)]))
    assert 8 * RATE <= len(found) < 8.1 * RATE  # the last one does not count the codec's delay


def test_a_counted_mp3_with_an_uncounted_one_behind_it(tmp_path):
    pieces = written("mp3", sound(44100, 2, 0), 44100), without_count(written("mp3", sound(44100, 2, 1), 44100))
    found = load(tmp_path / "joined.mp3", b"".join(pieces))
    assert is_in_time(found[: 2 * RATE], truth(2, 0)) and 4 * RATE <= len(found) < 4.1 * RATE


def test_wav_samples_behind_the_count_of_a_header_that_wrapped_are_read(tmp_path, monkeypatch, caplog):
    """As over 4 GiB, with smaller numbers."""
    monkeypatch.setattr("audio_mamba.data.decoding.riff.WRAP", 1 << 16)
    content = bytearray(written("wav", sound(), RATE))
    content[40:44] = ((len(content) - 44) % (1 << 16)).to_bytes(4, "little")
    assert is_in_time(load(tmp_path / "long.wav", bytes(content)), truth())
    assert "long.wav: its header cannot count more than 4 GiB" in caplog.text


def test_so_they_are_if_all_that_follows_the_count_is_silence(tmp_path, monkeypatch, caplog):
    """Silence must not pass for the padding of a shorter file."""
    monkeypatch.setattr("audio_mamba.data.decoding.riff.WRAP", 1 << 16)
    content = bytearray(written("wav", sound(), RATE))
    counted = (len(content) - 44) % (1 << 16)
    content[4:8], content[40:44] = (36 + counted).to_bytes(4, "little"), counted.to_bytes(4, "little")
    content[44 + counted :] = bytes(len(content) - 44 - counted)
    found = load(tmp_path / "long.wav", bytes(content))
    assert len(found) == len(truth()) and found[: counted // 2].any() and not found[counted // 2 :].any()
    assert "long.wav: its header cannot count more than 4 GiB" in caplog.text


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_a_recorder_that_crashed_leaves_sound_of_any_width(tmp_path, subtype, caplog):
    content = written("wav", sound(channels=2), RATE, subtype=subtype)
    place = content.index(b"data") + 4
    found = load(tmp_path / "crashed.wav", content[:4] + bytes(4) + content[8:place] + bytes(4) + content[place + 4 :])
    assert is_in_time(found, truth()) and "crashed.wav: its header counts no samples" in caplog.text


@pytest.mark.parametrize("seconds", [0.5, 7])
def test_flac_of_a_pipe_is_read(tmp_path, seconds):
    content = bytearray(written("flac", sound(44100, seconds, channels=2), 44100))
    content[21] &= 0xF0
    content[22:26] = bytes(4)  # the number of samples
    content[26:42] = bytes(16)  # their MD5
    assert is_in_time(load(tmp_path / "piped.flac", bytes(content)), truth(seconds))
    with pytest.raises(AudioError, match="piped.flac: .*damaged|cut off"):
        load(tmp_path / "piped.flac", bytes(content[:-100]))


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_padding_between_pages_is_not_damage(tmp_path, suffix):
    content = undamaged(suffix, 0)
    pages = ogg_pages(content)
    padded = b"".join([*pages[:4], bytes(1000), *pages[4:]])
    np.testing.assert_array_equal(load(tmp_path / "padded", padded), load(tmp_path / "whole", content))


def back_in_time(page: bytes) -> bytes:
    """An Ogg page with a small time, and the checksum that belongs to it."""
    return ogg_checked(page[:6] + (9).to_bytes(8, "little") + page[14:])


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda p: p[:4] + p[5:], "page 4 is missing"),
        (lambda p: p[1:], "has no first page"),
        (lambda p: [*p[:4], p[4][:100] + bytes([p[4][100] ^ 1]) + p[4][101:], *p[5:]], "checksum of page 4 is wrong"),
        (lambda p: [*p[:4], p[5], p[4], *p[6:]], "page 4 is missing"),
        (lambda p: [*p[:-1], back_in_time(p[-1])], "back in time"),
    ],
)
def test_damage_inside_of_an_ogg_is_named(tmp_path, suffix, change, reason):
    with pytest.raises(AudioError, match=f"inside: .*{reason}"):
        load(tmp_path / "inside", b"".join(change(ogg_pages(undamaged(suffix, 0)))))


def test_an_uncounted_mp3_with_a_hole_is_named(tmp_path):
    content = undamaged("uncounted.mp3", 0)
    for start, end in ((10_000, 20_000), (15_001, 15_050)):
        with pytest.raises(AudioError, match="hole.mp3: damaged.* at second"):
            load(tmp_path / "hole.mp3", content[:start] + content[end:])


@pytest.mark.parametrize("front", [b"ID3\x04\0\0\0\x7f\x7f\x7f", b"ID3\x03\0\x40\1\x7f\x7f\x7f"])
def test_large_tags_and_pictures_before_an_mp3(tmp_path, front):
    size = sum(byte << shift for byte, shift in zip(front[6:], (21, 14, 7, 0)))
    picture = (b"\xff\xfb\x90\x64" + bytes(413)) * 10  # looks like frames
    content = front + picture.ljust(size, b"\0") + undamaged("mp3", 0) + b"TAG" + bytes(125)
    assert is_in_time(load(tmp_path / "tagged.mp3", content), truth())


@pytest.mark.parametrize(
    "place, value, reason",
    [
        (24, 32000, "contradicts itself: 32000 samples a second"),
        (22, 2, "contradicts itself"),
        (34, 24, "contradicts itself"),
        (40, 1000, "counts 1000 bytes of samples"),
        (40, 300_000, "cut off, 192000 of 300000 bytes"),
        (40, 2_200_000_000, "cut off, 192000 of 2200000000 bytes"),
        (40, 3_000_000_000, "cut off, 192000 of 3000000000 bytes"),
    ],
)
def test_a_wav_header_that_lies_is_an_error(tmp_path, place, value, reason):
    content = bytearray(written("wav", sound(), RATE))
    width = 2 if place in (22, 34) else 4
    content[place : place + width] = value.to_bytes(width, "little")
    with pytest.raises(AudioError, match=reason):
        load(tmp_path / "lie.wav", bytes(content))


def aiff_of(content: bytes, samples: int) -> bytes:
    """An aiff file of 16 bits whose header counts so many samples."""
    count, size = content.index(b"COMM") + 10, content.index(b"SSND") + 4
    content = content[:count] + samples.to_bytes(4, "big") + content[count + 4 :]
    return content[:size] + (2 * samples + 8).to_bytes(4, "big") + content[size + 4 :]


@pytest.mark.parametrize("channels", [1, 3])
def test_an_aiff_with_an_odd_number_of_bytes_is_read_whole(tmp_path, channels):
    """libsndfile counts the byte of padding among its samples, other programs do not."""
    samples = sound(RATE)[:4001, :1].repeat(channels, axis=1)
    content = io.BytesIO()
    soundfile.write(content, samples, RATE, format="AIFF", subtype="PCM_24")
    counted = content.getvalue()
    uncounted = bytearray(counted)
    place = counted.index(b"SSND") + 4
    uncounted[place : place + 4] = (4001 * channels * 3 + 8).to_bytes(4, "big")
    assert uncounted != counted
    for form in (counted, bytes(uncounted)):
        found = load(tmp_path / "odd.aiff", form, sample_rate=RATE)
        np.testing.assert_allclose(found, samples.mean(1), atol=1e-6)


@pytest.mark.parametrize("size", [-1, 2 * 4001])
def test_a_caf_of_unknown_length_is_read_to_its_end(tmp_path, size):
    """4 bytes of edit count stand before the samples. FFmpeg reads 4096 bytes at once, so the last packet is short."""
    values = np.random.default_rng(0).integers(-30000, 30000, 4001).astype(">i2")
    described = struct.pack(">d4s5I", RATE, b"lpcm", 0, 2, 1, 1, 16)
    content = b"caff" + struct.pack(">2H", 1, 0) + b"desc" + struct.pack(">q", len(described)) + described
    content += b"data" + struct.pack(">qI", size + 4 if size > 0 else -1, 0) + values.tobytes()
    np.testing.assert_array_equal(load(tmp_path / "a.caf", content, sample_rate=RATE), values.astype("f4") / 32768)


@pytest.mark.parametrize("samples", [100_000, 1_200_000_000, 1_500_000_000])
def test_an_aiff_with_fewer_samples_than_it_counts_is_an_error(tmp_path, samples):
    content = aiff_of(written("aiff", sound(), RATE), samples)
    with pytest.raises(AudioError, match=f"cut.aiff: cut off, 192000 of {2 * samples} bytes"):
        load(tmp_path / "cut.aiff", content)


@pytest.mark.parametrize("size", [0x7F000000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF])
def test_the_length_of_a_program_that_did_not_know_it_is_ignored(tmp_path, size):
    content = written("wav", sound(), RATE)
    content = content[:40] + size.to_bytes(4, "little") + content[44:]
    np.testing.assert_allclose(load(tmp_path / "piped.wav", content), truth(), atol=1e-4)
    if size == 0x7F000000:
        content = aiff_of(written("aiff", sound(), RATE), (size - 8) // 2)
        np.testing.assert_allclose(load(tmp_path / "piped.aiff", content), truth(), atol=1e-4)


@pytest.mark.parametrize("suffix", ["wav", "au"])
def test_a_sample_rate_that_nothing_records_at_is_refused(tmp_path, suffix):
    if suffix == "wav":
        content = bytearray(written("wav", sound(), RATE))
        content[24:32] = (1 << 30).to_bytes(4, "little") + bytes(4)
    else:
        content = bytearray(encode("au", sound()))
        content[16:20] = (1 << 30).to_bytes(4, "big")
    with pytest.raises(AudioError, match="its header names a sample rate of"):
        load(tmp_path / f"fast.{suffix}", bytes(content))


def test_chunks_tags_and_padding_behind_the_samples_are_not_samples(tmp_path):
    content = written("wav", sound(), RATE)
    tail = b"LIST" + (26).to_bytes(4, "little") + b"INFOISFT" + (14).to_bytes(4, "little") + b"Lavf59.27.100\0"
    for rest in (tail, tail + b"TAG" + bytes(125), tail[:20], bytes(5000), b"id3 \x0a\0\0\0ID3\3\0\0\0\0\0\0"):
        np.testing.assert_array_equal(load(tmp_path / "a.wav", content + rest), load(tmp_path / "b.wav", content))


@pytest.mark.parametrize("name", sorted(TRAILING_CHUNKS - {b"PEAK"}))  # libsndfile refuses a cut PEAK
def test_a_last_chunk_that_is_cut_off_is_not_samples_in_a_file_or_on_a_pipe(tmp_path, name):
    content = written("wav", sound(), RATE)
    rest = name + (5000).to_bytes(4, "little") + bytes(range(1, 101))
    np.testing.assert_array_equal(load(tmp_path / "a.wav", content + rest), load(tmp_path / "b.wav", content))
    piped = [np.concatenate(list(stream_pcm(io.BytesIO(wav)))) for wav in (content + rest, content)]
    np.testing.assert_array_equal(*piped)


# ---------------------------------------------------------------- channels


def stereo(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack([left, right], 1)


def test_one_channel_or_their_mean_is_taken(tmp_path):
    left, right = truth(seed=1), truth(seed=2)
    path = tmp_path / "stereo.wav"
    soundfile.write(path, stereo(left, right), RATE, subtype="FLOAT")
    for channel, expected in {"mix": (left + right) / 2, "left": left, "right": right, 0: left, 1: right}.items():
        np.testing.assert_allclose(load_audio(path, channel=channel), expected, atol=1e-6)
    with pytest.raises(AudioError, match="stereo.wav: has no channel 2, it has 2"):
        load_audio(path, channel=2)
    with pytest.raises(ValueError, match="channel must be a number or one of mix, left, right, got 'middle'"):
        load_audio(path, channel="middle")


def test_the_only_channel_is_left_and_right(tmp_path):
    soundfile.write(tmp_path / "mono.wav", truth(), RATE, subtype="FLOAT")
    for channel in ("left", "right", 0):
        np.testing.assert_array_equal(load_audio(tmp_path / "mono.wav", channel=channel), truth())


@pytest.mark.parametrize("gain, warned", [(-1.0, True), (-0.9, True), (-0.5, False), (0.0, False), (1.0, False)])
def test_channels_of_opposite_phase_are_named(tmp_path, gain, warned, caplog):
    soundfile.write(tmp_path / "phase.wav", stereo(truth(), gain * truth()), RATE)
    load_audio(tmp_path / "phase.wav")
    assert ("phase.wav: its channels cancel out" in caplog.text) == warned
    caplog.clear()
    load_audio(tmp_path / "phase.wav", channel="left")
    assert not caplog.records


def test_other_channels_in_a_later_part_are_named(tmp_path, caplog):
    content = written("wav", sound(), RATE) + written("wav", sound(channels=2), RATE)
    assert len(load(tmp_path / "joined.wav", content, channel=0)) == 2 * len(sound())
    assert "joined.wav: has 1, then 2 channels; only channel 0 is taken" in caplog.text
    caplog.clear()
    load(tmp_path / "joined.wav", content)
    assert not caplog.records


def test_all_of_a_file_decides_whether_channels_cancel_out(tmp_path, caplog):
    """Not its first block, of ten seconds."""
    left = np.tile(truth(), 4)
    right = np.where(np.arange(len(left)) < len(left) // 2, -left, left)
    soundfile.write(tmp_path / "phase.wav", stereo(left, right), RATE)
    load_audio(tmp_path / "phase.wav")
    assert not caplog.records


def test_three_channels_are_named_once(tmp_path, caplog):
    soundfile.write(tmp_path / "three.wav", np.tile(truth()[:, None], (4, 3)), RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "three.wav"), np.tile(truth(), 4), atol=1e-6)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/three.wav: its 3 channels are mixed into one"
    ]


def test_silence_is_not_opposite_phase(tmp_path, caplog):
    soundfile.write(tmp_path / "silence.wav", np.zeros((RATE, 2)), RATE)
    load_audio(tmp_path / "silence.wav")
    assert not caplog.records


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize("suffix", ["mp3", "m4a", "flac", "ogg"])
def test_memory_does_not_grow_with_the_length(tmp_path, suffix):
    def peak(seconds: int) -> int:
        samples = np.tile(sound(44100, 10), (seconds // 10, 1))
        path = tmp_path / f"{seconds}.{suffix}"
        path.write_bytes(encode(suffix, samples) if suffix in CODECS else written(suffix, samples, 44100))
        tracemalloc.start()
        for _ in stream_audio(path):
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    peak(10)  # loads modules
    assert peak(90) < 1.3 * peak(30)


def test_pyav_is_loaded_for_the_files_that_need_it_alone(tmp_path):
    for suffix in ("wav", "flac", "ogg"):
        (tmp_path / f"a.{suffix}").write_bytes(written(suffix, sound(), RATE))
    code = (
        "import sys; from audio_mamba.data.audio import find_audio, load_audio\n"
        f"for path in find_audio({str(tmp_path)!r}): load_audio(path)\n"
        "assert 'av' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_nothing_is_written_to_the_terminal(tmp_path, capfd, caplog):
    caplog.set_level(logging.CRITICAL)
    for suffix in ("m4a", "mp3"):
        content = bytearray(undamaged(suffix, 0))
        content[20_000:20_100] = bytes(100)
        with contextlib.suppress(AudioError):
            load(tmp_path / suffix, bytes(content))
    assert capfd.readouterr() == ("", "")
