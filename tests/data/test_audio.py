"""Loading of real file formats, against the samples that went into them."""

import errno
import io
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from audio_mamba.data.audio import (
    AUDIO_SUFFIXES,
    OTHER_SUFFIXES,
    AudioError,
    StorageError,
    UnexpectedAudioError,
    channel_count,
    estimated_seconds,
    find_audio,
    fingerprint,
    load_audio,
    stream_audio,
)
from tests.data.recordings import CODECS

# How soundfile writes each of the accepted suffixes, and by how much a codec may change two sines.
FORMATS = {
    "wav": ({}, 1e-3),
    "wave": ({"format": "WAV"}, 1e-3),
    "bwf": ({"format": "WAV", "subtype": "PCM_24"}, 1e-3),
    "rf64": ({"format": "RF64"}, 1e-3),
    "flac": ({}, 1e-3),
    "ogg": ({}, 0.05),
    "mp3": ({}, 0.07),
    "oga": ({"format": "OGG", "subtype": "VORBIS"}, 0.05),
    "opus": ({"format": "OGG", "subtype": "OPUS"}, 0.2),
    "aiff": ({}, 1e-3),
    "aif": ({"format": "AIFF", "subtype": "PCM_24"}, 1e-3),
    "aifc": ({"format": "AIFF", "subtype": "FLOAT"}, 1e-3),
}


# Of what PyAV reads, of which test_recordings.py tests the kinds that PyAV also writes.
OF_PYAV = {
    *(Path(f"a.{suffix}").suffix for suffix in CODECS),
    *(".m4b", ".wmv", ".snd", ".ape", ".sph", ".mpc", ".dts", ".awb"),
}


def sines(rate: int, seconds: float = 3.0) -> np.ndarray:
    """Two sines, well below every codec's and resampler's limit; float32 [n]."""
    t = np.arange(int(rate * seconds)) / rate
    return (0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 1500 * t)).astype(np.float32)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Away from the edges, where resamplers and codecs ring."""
    middle = slice(2000, -2000)
    return np.linalg.norm((found - expected)[middle]) / np.linalg.norm(expected[middle])


def test_every_accepted_format_is_tested():
    assert {f".{suffix}" for suffix in FORMATS} | OF_PYAV == AUDIO_SUFFIXES
    assert not AUDIO_SUFFIXES & OTHER_SUFFIXES


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_every_format_and_rate_gives_the_same_sound(tmp_path, suffix, rate):
    path, (options, tolerance) = tmp_path / f"sound.{suffix}", FORMATS[suffix]
    if (suffix, rate) == ("opus", 44100):
        rate = 48000  # Opus has no 44.1 kHz
    soundfile.write(path, sines(rate), rate, **options)
    audio = load_audio(path)
    assert audio.dtype == np.float32 and audio.shape == (48000,)
    assert relative_error(audio, sines(16000)) < tolerance


def test_channels_are_averaged(tmp_path):
    left, right = sines(16000), np.full(48000, 0.25, np.float32)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "stereo.wav"), (left + right) / 2, atol=1e-7)


def test_a_channel_may_be_any_whole_number_but_not_a_truth_value(tmp_path):
    left, right = sines(16000), np.full(48000, 0.25, np.float32)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], 1), 16000, subtype="FLOAT")
    (block,) = stream_audio(tmp_path / "stereo.wav", channel=np.int64(1))
    np.testing.assert_array_equal(block, right)
    with pytest.raises(ValueError, match="channel must be a number or one of"):
        next(stream_audio(tmp_path / "stereo.wav", channel=True))


def test_streams_in_bounded_blocks_and_resamples_without_seams(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 44100 * 35).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", noise, 44100, subtype="FLOAT")
    blocks = list(stream_audio(tmp_path / "long.wav"))
    assert max(map(len, blocks)) <= 11 * 16000
    np.testing.assert_allclose(np.concatenate(blocks), soxr.resample(noise, 44100, 16000, "HQ"), atol=1e-6)


def test_other_rates_can_be_asked_for(tmp_path):
    soundfile.write(tmp_path / "a.wav", sines(16000), 16000)
    assert relative_error(load_audio(tmp_path / "a.wav", 48000), sines(48000)) < 1e-3


def test_real_recordings_load_as_they_are(shared_tasks):
    for path in sorted(shared_tasks.glob("*/16000/*/*.wav"))[::150]:
        expected, rate = soundfile.read(path, dtype="int16")
        assert rate == 16000
        np.testing.assert_array_equal(load_audio(path), expected.astype(np.float32) / 32768)


def write_bad(path, kind: str) -> None:
    good = sines(16000)
    if kind == "text":
        path.write_bytes(b"this is not audio " * 50)
    elif kind == "no bytes":
        path.write_bytes(b"")
    elif kind == "no samples":
        soundfile.write(path, good[:0], 16000)
    elif kind == "200 samples":
        soundfile.write(path, good[:200], 16000)
    elif kind == "nan":
        good[20000] = np.nan
        soundfile.write(path, good, 16000, subtype="FLOAT")
    elif kind == "inf":
        good[20000] = np.inf
        soundfile.write(path, good, 16000, subtype="FLOAT")


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("text", "cannot be read"),
        ("no bytes", "cannot be read"),
        ("no samples", "no samples"),
        ("missing", "no such"),
        ("200 samples", "too short, 200 samples"),
        ("nan", "NaN or Inf"),
        ("inf", "NaN or Inf"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path, kind, reason):
    path = tmp_path / "bad.wav"
    write_bad(path, kind)
    with pytest.raises(AudioError, match=reason) as caught:
        load_audio(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place, read",
    [
        ("parts_of", load_audio),
        ("parts_of", channel_count),
        ("resampled", load_audio),
        ("seconds_of", estimated_seconds),
    ],
)
def test_a_failure_that_nobody_has_foreseen_names_the_file_and_keeps_its_cause(tmp_path, monkeypatch, place, read):
    def fail(*_):
        raise RecursionError("too deep")

    monkeypatch.setattr(f"audio_mamba.data.audio.{place}", fail)
    soundfile.write(tmp_path / "odd.wav", np.zeros(8000), 8000)
    with pytest.raises(
        UnexpectedAudioError, match=r"odd.wav: reading it failed unexpectedly \(RecursionError"
    ) as caught:
        read(tmp_path / "odd.wav")
    assert isinstance(caught.value.__cause__, RecursionError)
    assert not isinstance(caught.value, AudioError), "it must not pass for a damaged file, which is left out"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "it comes from worker processes"


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_cut_off_file_is_an_error_not_a_shorter_clip(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 160000), 16000, **FORMATS[suffix][0])
    content = path.read_bytes()
    for size in (len(content) // 2, len(content) - 500, len(content) - 2):
        path.write_bytes(content[:size])
        with pytest.raises(AudioError, match="cut"):
            load_audio(path)


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_an_ogg_with_something_after_its_end_is_whole(tmp_path, suffix):
    path = tmp_path / f"tagged.{suffix}"
    soundfile.write(path, sines(16000), 16000, **FORMATS[suffix][0])
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    assert load_audio(path).shape == (48000,)


@pytest.mark.parametrize(
    "suffix, chunk, unknown",
    [
        ("wav", b"data", 0xFFFFFFFF),
        ("wav", b"data", 0x7FFFF000),
        ("aiff", b"SSND", 0),
        ("aiff", b"SSND", 0x7EFFFFF8),
        ("aiff", b"SSND", 0x7F000008),
    ],
)
def test_a_file_from_a_program_that_did_not_know_its_length_is_whole(tmp_path, suffix, chunk, unknown):
    path = tmp_path / f"piped.{suffix}"
    soundfile.write(path, sines(16000), 16000)
    content = path.read_bytes()
    place = content.index(chunk) + 4
    size = unknown.to_bytes(4, "little" if suffix == "wav" else "big")
    path.write_bytes(content[:place] + size + content[place + 4 :])
    assert load_audio(path).shape == (48000,)


def test_an_ogg_without_the_mark_of_its_end_is_whole(tmp_path):
    path = tmp_path / "unmarked.ogg"
    soundfile.write(path, sines(16000), 16000)
    content = bytearray(path.read_bytes())
    last_page = content.rindex(b"OggS")
    content[last_page + 5] &= ~4
    content[last_page + 22 : last_page + 26] = _ogg_checksum(content[last_page:])
    path.write_bytes(content)
    assert "lacks an end-of-stream bit" in soundfile.SoundFile(path).extra_info
    assert load_audio(path).shape == (48000,)


def _ogg_checksum(page: bytearray) -> bytes:
    page = page[:22] + bytes(4) + page[26:]
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ (0x04C11DB7 if register & 0x80000000 else 0)) & 0xFFFFFFFF
    return register.to_bytes(4, "little")


@pytest.mark.parametrize("bitrate_mode, tag_bytes", [("CONSTANT", 0), ("VARIABLE", 0), ("VARIABLE", 300_000)])
def test_an_mp3_that_does_not_count_its_frames_is_read_to_its_end(tmp_path, bitrate_mode, tag_bytes):
    """libsndfile guesses its length: too long for one reason, a third of it for another."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 44100 * 6)
    noise[44100 * 3 :] *= 0.001
    soundfile.write(tmp_path / "counted.mp3", noise, 44100, bitrate_mode=bitrate_mode, compression_level=0.3)
    content = (tmp_path / "counted.mp3").read_bytes()
    frames = content[content.index(content[:2], 40) :]  # without the first one, which holds the count
    size = bytes(tag_bytes >> shift & 127 for shift in (21, 14, 7, 0))
    (tmp_path / "uncounted.mp3").write_bytes((b"ID3\x03\0\0" + size + bytes(tag_bytes) if tag_bytes else b"") + frames)
    threads = set(threading.enumerate())
    found, expected = load_audio(tmp_path / "uncounted.mp3"), load_audio(tmp_path / "counted.mp3")
    assert 0 <= len(found) - len(expected) < 2 * 1152  # with the codec's delay, which the first frame names too
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_folder_that_cannot_be_read_is_named_and_passed_over(tmp_path, monkeypatch, caplog):
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").touch()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_audio(tmp_path) == [tmp_path / "open" / "a.wav"]
    assert f"{tmp_path}/closed: left out, it cannot be read (Permission denied)" in caplog.text


def test_files_in_a_folder_that_may_not_be_entered_are_passed_over(tmp_path, monkeypatch, caplog):
    """Its names can be listed; what they are cannot be seen."""
    for name in ("closed", "closed/below", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").touch()
    (tmp_path / "closed" / "b.wav").touch()

    def refusing(function):
        def refuse(path, *args, **options):
            if "/closed/" in str(path):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return function(path, *args, **options)

        return refuse

    for name in ("stat", "lstat", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    assert find_audio(tmp_path) == [tmp_path / "open" / "a.wav"]
    assert f"{tmp_path}/closed/below: left out, it cannot be read (Permission denied)" in caplog.text
    assert f"left out files that cannot be read: 2, the first is {tmp_path}/closed/" in caplog.text


def test_an_mp3_whose_disk_fails_in_the_middle_is_refused(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.mp3", np.random.default_rng(0).uniform(-0.5, 0.5, 44100 * 6), 44100)
    content = (tmp_path / "a.mp3").read_bytes()
    frames = content[content.index(content[:2], 40) :]  # as above
    (tmp_path / "a.mp3").write_bytes(frames)

    half = frames.index(frames[:2], len(frames) // 2)  # whole frames, which a decoder would take for all

    class Failing(io.FileIO):
        def readinto(self, buffer):
            if self.tell() >= half:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(memoryview(buffer)[: half - self.tell()])

    real = open
    monkeypatch.setattr(
        "builtins.open",
        lambda path, *mode, **options: (
            io.BufferedReader(Failing(path)) if str(path).endswith(".mp3") else real(path, *mode, **options)
        ),
    )
    with pytest.raises(AudioError, match="a.mp3: cannot be read as audio .*[Ii]nput/output error"):
        load_audio(tmp_path / "a.mp3")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a"])
@pytest.mark.parametrize(
    "number, of_storage", [(errno.EIO, True), (errno.ESTALE, True), (errno.EMFILE, True), (errno.EACCES, False)]
)
def test_an_error_of_the_storage_is_told_from_one_of_the_file(tmp_path, monkeypatch, name, number, of_storage):
    def fails(path, *mode, **options):
        raise OSError(number, os.strerror(number), path)

    (tmp_path / name).touch()
    monkeypatch.setattr("builtins.open", fails)
    with pytest.raises(AudioError, match=os.strerror(number)) as found:
        load_audio(tmp_path / name)
    assert isinstance(found.value, StorageError) == of_storage


def test_a_read_that_fails_within_libsndfile_is_of_the_storage(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", sines(16000), 16000)

    class Failing(io.FileIO):
        def readinto(self, buffer):
            if self.tell() >= 50_000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(memoryview(buffer)[: 50_000 - self.tell()])

    monkeypatch.setattr("builtins.open", lambda path, *_, **__: io.BufferedReader(Failing(path)))
    # libsndfile, which reads by number, takes a failed read for the end.
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: np.zeros((0, 1), np.float32))
    with pytest.raises(StorageError, match="a.wav: cannot be read as audio .*[Ii]nput/output error"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("name", [b"not utf-8 \xe9.wav", b"new\nline.wav", b"named.raw"])
def test_any_name_that_the_file_system_has(tmp_path, name):
    soundfile.write(tmp_path / "a.wav", sines(16000), 16000)
    (tmp_path / "a.wav").rename(tmp_path / os.fsdecode(name))
    assert load_audio(tmp_path / os.fsdecode(name)).shape == (48000,)


def test_a_name_that_no_file_system_has(tmp_path):
    with pytest.raises(AudioError, match="cannot be read as audio .File name too long.$"):
        load_audio(tmp_path / ("a" * 300))


def test_find_audio_takes_audio_of_any_depth_and_letter_case(tmp_path):
    for name in ("b/c/2.WAV", "b/1.flac", "a.Mp3", "b/3.ogg", "notes.txt", "b/4.oga", "b/5.Opus", "b/6.AIFF"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_audio(tmp_path)]
    assert found == ["a.Mp3", "b/1.flac", "b/3.ogg", "b/4.oga", "b/5.Opus", "b/6.AIFF", "b/c/2.WAV"]


def test_find_audio_tells_once_of_recordings_that_it_passes_over(tmp_path, caplog):
    for name in ("a.wav", "b.txt"):
        (tmp_path / name).touch()
    assert find_audio(tmp_path) and not caplog.records
    for name in ("z.ts", "c.SHN", "d.rm"):
        (tmp_path / name).touch()
    assert find_audio(tmp_path) == [tmp_path / "a.wav"]
    assert [record.getMessage() for record in caplog.records] == [
        f"left out recordings of other formats: 3, the first is {tmp_path}/c.SHN"
    ]
    (tmp_path / "a.wav").unlink()
    with pytest.raises(AudioError, match="no audio found below .* formats: 3, the first is .*/c.SHN; accepted: .*flac"):
        find_audio(tmp_path)


def test_find_audio_follows_links_but_not_in_circles(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.wav").touch()
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "linked").symlink_to("../disk")
    (tmp_path / "disk" / "back").symlink_to("../audio")
    assert find_audio(tmp_path / "audio") == [tmp_path / "audio" / "linked" / "a.wav"]


HIDDEN = (".Trash-1000/files/a.wav", ".ipynb_checkpoints/a.wav", "@eaDir/a.wav", "__MACOSX/b/._a.wav", "b/._c.wav")


def test_find_audio_leaves_hidden_and_system_files_out_and_counts_them(tmp_path, caplog):
    for name in (*HIDDEN, "b/c.wav", "b/.notes", "b/.git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_audio(tmp_path) == [tmp_path / "b" / "c.wav"]
    assert [record.getMessage() for record in caplog.records] == [
        f"left out hidden or system files and folders: 6, the first is {tmp_path}/.Trash-1000; --hidden takes them"
    ]
    assert find_audio(tmp_path, hidden=True) == sorted(tmp_path / name for name in (*HIDDEN, "b/c.wav"))
    with pytest.raises(AudioError, match="no audio found below .*left out hidden .*: 1, the first is .*/._a.wav"):
        find_audio(tmp_path / "__MACOSX" / "b")


def test_find_audio_counts_dangling_links_and_reading_names_them(tmp_path, caplog):
    (tmp_path / "a.wav").touch()
    for name in ("b.wav", "c.flac", "d.txt"):
        (tmp_path / name).symlink_to("../annex/objects/not fetched")
    found = find_audio(tmp_path)
    assert [path.name for path in found] == ["a.wav", "b.wav", "c.flac"]
    assert [record.getMessage() for record in caplog.records] == [
        f"dangling links: 2 (were their files fetched?), the first is {tmp_path}/b.wav"
    ]
    with pytest.raises(AudioError, match="b.wav: a dangling link"):
        load_audio(found[1])


def test_a_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"1234")
    before = fingerprint(path)
    assert fingerprint(path) == before == (4, path.stat().st_mtime_ns)
    os.utime(path, ns=(0, before.mtime_ns + 1))
    assert fingerprint(path) != before


def test_find_audio_names_a_folder_without_audio(tmp_path):
    with pytest.raises(AudioError, match="no audio found below .*flac"):
        find_audio(tmp_path)
    with pytest.raises(AudioError, match="absent is not a folder"):
        find_audio(tmp_path / "absent")
