"""Clips that were made harder: what is in them, against sums by hand, and what their splits keep apart."""

from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import soundfile

from experiments.judge import games, played, speech
from experiments.judge.clips import fold_by, folds
from experiments.judge.instruments import SAMPLE_RATE
from experiments.judge.mixing import (
    LEVELS,
    RESPONSE,
    at_random_level,
    excerpt,
    generator,
    mixed,
    through_random_channel,
)


def noise(samples, seed=0):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32) * 0.1


def decibels(audio):
    return 10 * np.log10(np.mean(np.square(audio, dtype=np.float64)))


def by_fold(clips, key):
    """The folds that each key's clips are in."""
    found = defaultdict(set)
    for clip in clips:
        found[key(clip)].add(clip.split)
    return found


def test_random_numbers_belong_to_the_name():
    assert generator("a").random() == generator("a").random() != generator("b").random()
    assert fold_by("a", 5) == fold_by("a", 5) and {fold_by(str(n), 5) for n in range(100)} == set(folds(5))


def test_the_level_of_a_clip_says_nothing_of_what_it_was():
    loud, quiet = (at_random_level(gain * noise(4000), generator("x")) for gain in (1.0, 0.01))
    np.testing.assert_allclose(loud, quiet, rtol=1e-5)
    assert LEVELS[0] <= decibels(loud) <= LEVELS[1]
    click = np.zeros(16000, np.float32)
    click[0] = 1.0
    assert np.abs(at_random_level(click, generator("x"))).max() <= 0.99  # lower, not clipped
    assert not at_random_level(np.zeros(10, np.float32), generator("x")).any()


def test_excerpts_are_the_loud_parts():
    audio = np.concatenate([np.zeros(SAMPLE_RATE, np.float32), noise(SAMPLE_RATE)])
    for number in range(20):
        part = excerpt(audio, 0.25, generator(str(number)))
        assert len(part) == SAMPLE_RATE // 4 and decibels(part) >= decibels(audio) - 0.1
    np.testing.assert_array_equal(excerpt(audio[:100], 0.25, generator("")), audio[:100])
    assert len(excerpt(np.full(8000, 0.5, np.float32), 0.25, generator(""))) == 4000  # all parts are alike


def test_a_mix_has_the_ratio_that_was_asked_for():
    audio, other = noise(8000), 0.03 * noise(3000, seed=1)
    added = mixed(audio, other, 6.0) - audio
    assert decibels(audio) - decibels(added) == pytest.approx(6.0, abs=1e-3)
    np.testing.assert_allclose(added[3000:6000], added[:3000], atol=1e-7)
    np.testing.assert_array_equal(mixed(audio, np.zeros(10, np.float32), 0.0), audio)


def test_a_channel_changes_each_frequency_by_at_most_its_response_and_adds_no_other():
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    gains = []
    for frequency in (100, 1000, 5000):
        tone = np.sin(2 * np.pi * frequency * time).astype(np.float32)
        heard = through_random_channel(tone, generator("room"))
        spectrum = np.abs(np.fft.rfft(heard))
        assert spectrum.argmax() == frequency
        np.testing.assert_allclose(np.delete(spectrum, frequency), 0, atol=0.2)  # of 8000
        gains.append(decibels(heard) - decibels(tone))
    assert max(map(abs, gains)) <= RESPONSE + 0.01 and np.ptp(gains) > 1


def write_voices(packages: Path, voices: dict[str, int]):
    for voice, words in voices.items():
        folder = packages / speech.TUBERLING / voice
        folder.mkdir(parents=True)
        for word in range(words):
            soundfile.write(folder / f"word{word}.wav", noise(5000, seed=word), SAMPLE_RATE)


def test_a_word_in_babble_is_in_one_fold_and_its_babble_is_of_other_voices(tmp_path, monkeypatch):
    write_voices(tmp_path, {"da": 61, "fr": 62, "es": 10, "it": 12, "too_few": 9})
    read = []
    monkeypatch.setattr(speech, "load_audio", lambda path: read.append(path.parent.name) or noise(5000, len(read)))
    clips = list(speech.voices_in_babble(tmp_path))
    assert {name: read.count(name) for name in set(read)} == {"da": 60, "fr": 60, "es": 10, "it": 12}
    assert sorted({clip.label for clip in clips}) == ["da", "fr"] and len(clips) == 120
    assert all(len(found) == 1 for found in by_fold(clips, lambda clip: clip.name.split("_")[1]).values())
    assert {clip.split for clip in clips} == set(folds(5))
    read.clear()
    again = list(speech.voices_in_babble(tmp_path))
    assert all(np.array_equal(clip.audio, other.audio) for clip, other in zip(clips, again, strict=True))


def test_excerpts_of_a_prompt_are_in_one_fold_and_letters_are_left_out(tmp_path):
    for package, (folder, name) in product(speech.PROMPTS, [("en", f"p{n}") for n in range(95)] + [("letters", "a")]):
        path = tmp_path / package / folder / f"{name}.gsm"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(4000), 8000, format="RAW", subtype="GSM610")
    clips = list(speech.voice_excerpts(tmp_path))
    assert len(clips) == 8 * 90 and not any(clip.name.endswith("_a") for clip in clips)
    assert all(len(found) == 1 for found in by_fold(clips, lambda clip: clip.name.rsplit("_", 1)[1]).values())
    assert {len(clip.audio) for clip in clips} == {round(speech.EXCERPT * SAMPLE_RATE)}


def test_the_melody_is_the_highest_note_and_an_instrument_is_in_one_fold(tmp_path, monkeypatch):
    slots_of = []

    def play(font, slots, seconds):
        slots_of.extend(slots)
        return [noise(round(seconds * SAMPLE_RATE), seed=number) for number in range(len(slots))]

    monkeypatch.setattr(played, "play", play)
    clips = list(played.melody_notes(tmp_path))
    assert len(clips) == 720 and len({clip.name for clip in clips}) == 720
    programs = defaultdict(set)
    for clip, (melody, *lower) in zip(clips, slots_of, strict=True):
        assert clip.label == played.PITCHES[melody.key % 12] and len(lower) == 2
        assert melody.key > max(note.key for note in lower)
        assert {note.program for note in lower} != {melody.program}
        for note in (melody, *lower):
            programs[note.program].add(clip.split)
    assert len(programs) == 20 and all(len(found) == 1 for found in programs.values())


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("footsteps/grass1", "step"),
        ("footsteps/water_in", None),
        ("soldiers/maledeath01", "voice"),
        ("festivoxmale/incomingenemyfire", "voice"),
        ("festivoxmale/boom", None),
        ("ambience/fire03", "ambience"),
        ("world/1shot_greg_01", None),
        ("chunks/ship_destroyed", "explosion"),
        ("weapons/explosion-fire", "explosion"),
        ("weapons/bullet-rifle-1x", "shot"),
        ("machinegun/machgf1b", "shot"),
        ("open-invaders/screenshotsaved", None),
        ("sounds/battle_over_the_junk_city", None),
        ("chunks/hit", None),
        ("Standard/extraball", "bonus"),
    ],
)
def test_the_kind_of_an_effect_is_read_off_its_name(path, kind):
    assert games.kind_of(Path("usr/share/games/alienblaster") / f"{path}.wav") == kind


def test_numbered_effects_are_one_event_in_one_fold(tmp_path, monkeypatch):
    monkeypatch.setattr(games, "GAMES", (("one", "two"),))
    for game, (name, count) in product(("one", "two"), [("shot", 60), ("explosion", 3), ("big_explosion", 3)]):
        for number in range(count):
            path = tmp_path / game / "sounds" / f"{name}_{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, noise(3000, seed=number), SAMPLE_RATE)
    soundfile.write(tmp_path / "one/sounds/shot_silent.wav", np.zeros(3000), SAMPLE_RATE)
    clips = list(games.effect_kinds(tmp_path))
    assert len(clips) == 2 * (games.KIND_CLIPS + 6)
    events = by_fold(clips, lambda clip: clip.name.rsplit("_", 1)[0])
    assert len(events) == 6 and all(len(found) == 1 for found in events.values())
