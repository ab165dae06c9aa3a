"""Recipes of tasks of speech: words, voices, how many voices."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from audio_mamba.data.audio import load_audio
from experiments.judge.clips import Clip, fold_by, folds, split_by
from experiments.judge.instruments import SAMPLE_RATE
from experiments.judge.mixing import at_random_level, excerpt, generator, mixed, through_random_channel


def mahjong_words(packages: Path) -> Iterator[Clip]:
    """What is said, by another voice: names of tiles and calls, in two languages."""
    voices = packages / "kajongg/usr/share/kajongg/voices"
    for file in sorted(voices.rglob("*.ogg")):
        voice = file.parent.name
        language = "" if file.parent.parent == voices else file.parent.parent.name + "_"
        fold = folds(4)[("female1", "female2", "male1", "male2").index(voice)]
        yield Clip("kajongg", fold, file.stem, f"{language}{voice}_{file.stem}", load_audio(file))


TUBERLING = "ktuberling-data/usr/share/ktuberling/sounds"


def tuberling_voices(packages: Path) -> Iterator[Clip]:
    """Whose voice it is, each of another language, by other words."""
    for folder in sorted((packages / TUBERLING).iterdir()):
        words = _words(folder)
        if len(words) >= 60:
            for file in words[:80]:
                split = split_by(file.stem)
                yield Clip("ktuberling-data", split, folder.name, f"{folder.name}_{file.stem}", load_audio(file))


BABBLE_DB = (0.0, 6.0)  # a voice above the babble of others


def voices_in_babble(packages: Path) -> Iterator[Clip]:
    """Whose voice it is, each of another language, by other words: through a random microphone, at a random level, with
    two other voices that are never asked for."""
    folders = sorted((packages / TUBERLING).iterdir())
    asked = [folder for folder in folders if len(_words(folder)) >= 60]
    others = [[load_audio(file) for file in _words(folder)] for folder in folders if 10 <= len(_words(folder)) < 60]
    talks = [np.concatenate(words) for words in others]
    for folder in asked:
        for file in _words(folder)[:60]:
            name = f"{folder.name}_{file.stem}"
            rng = generator(name)
            word = through_random_channel(load_audio(file)[:SAMPLE_RATE], rng)
            babble = np.zeros_like(word)
            for number in rng.choice(len(talks), 2, replace=False):
                part = np.roll(talks[number], rng.integers(len(talks[number])))[: len(word)]
                babble += part / max(float(np.linalg.norm(part)), 1e-9)
            audio = at_random_level(mixed(word, babble, rng.uniform(*BABBLE_DB)), rng)
            yield Clip("ktuberling-data", fold_by(file.stem, 5), folder.name, name, audio)


def voice_counts(packages: Path) -> Iterator[Clip]:
    """How many voices speak at once, one to four, by other voices. Levels differ by voice."""
    rng, seconds = np.random.default_rng(0), 3.0
    voices = {folder.name: folder for folder in sorted((packages / TUBERLING).iterdir()) if len(_words(folder)) >= 10}
    names = [name for name in voices if "@" not in name]  # the others are sr once more
    of_split = {"train": names[::2], "valid": names[1::4], "test": names[3::4]}
    for split, each in (("train", 60), ("valid", 30), ("test", 30)):
        speech = {name: [load_audio(file) for file in _words(voices[name])] for name in of_split[split]}
        for count in range(1, 5):
            for number in range(each):
                mix = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
                for name in rng.choice(of_split[split], count, replace=False):
                    talk = np.concatenate([speech[name][i] for i in rng.permutation(len(speech[name]))[:10]])
                    talk = np.roll(talk, rng.integers(len(talk)))[: len(mix)]
                    mix[: len(talk)] += talk * 10 ** (rng.uniform(-28, -22) / 20) / talk.std()
                yield Clip("ktuberling-data", split, str(count), f"{split}_{count}_{number}", mix)


def _words(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.ogg"), *folder.glob("*.wav")], key=lambda file: (file.stem, file.suffix))


PROMPTS = {
    "asterisk-core-sounds-en-gsm": "en",
    "asterisk-core-sounds-es-gsm": "es_mx",
    "asterisk-core-sounds-fr-gsm": "fr_ca",
    "asterisk-core-sounds-it-gsm": "it",
    "asterisk-core-sounds-ru-gsm": "ru",
    "asterisk-prompt-es-co": "es_co",
    "asterisk-prompt-fr-armelle": "fr",
    "asterisk-prompt-it-menardi-gsm": "it_menardi",
}


def prompt_voices(packages: Path) -> Iterator[Clip]:
    """Whose voice it is on the telephone, by other prompts; letters are left out, another task uses them."""
    for package, voice, name, audio in _prompts(packages, 80):
        yield Clip(package, split_by(name), voice, f"{voice}_{name}", audio)


EXCERPT = 0.3  # seconds


def voice_excerpts(packages: Path) -> Iterator[Clip]:
    """Whose voice it is on the telephone, by other prompts: less than a syllable's worth, at a random level."""
    for package, voice, name, audio in _prompts(packages, 90):
        rng = generator(f"{voice}_{name}")
        audio = at_random_level(excerpt(audio, EXCERPT, rng), rng)
        yield Clip(package, fold_by(name, 5), voice, f"{voice}_{name}", audio)


def _prompts(packages: Path, count: int) -> Iterator[tuple[str, str, str, np.ndarray]]:
    """Package, voice, name and audio of `count` prompts of each voice, chosen by a hash of the name."""
    for package, voice in PROMPTS.items():
        files = {
            file.stem: file
            for file in sorted((packages / package).rglob("*.gsm"))
            if file.parent.name not in ("letters", "phonetic", "silence") and not file.is_symlink()
        }
        kept = 0
        for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
            audio = _gsm(files[name])
            if len(audio) >= 0.4 * SAMPLE_RATE and "beep" not in name and kept < count:
                kept += 1
                yield package, voice, name, audio


def _gsm(path: Path) -> np.ndarray:
    """A headerless GSM 06.10 recording of 8 kHz as float32 [n] at 16 kHz; its upper half of the spectrum is empty."""
    audio, _ = sf.read(path, dtype="float32", format="RAW", subtype="GSM610", samplerate=8000, channels=1)
    return soxr.resample(audio, 8000, SAMPLE_RATE)
