"""The recipes of the judge's ten tasks: which recordings, which labels, which splits.

Each recipe gets the folder of unpacked packages and yields clips. Clips that must not be on both sides of a split (of
one voice, game, sound font or piece of music) are in one split.
"""

import hashlib
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile as sf
import soxr

from audio_mamba.data.audio import load_audio
from experiments.judge.instruments import PERCUSSION, SAMPLE_RATE, Note, play, read_patch

SPLITS = ("train", "valid", "test")


class Clip(NamedTuple):
    """A clip of a task. `package` is where it is from; audio float32 [n] at 16 kHz, of any length."""

    package: str
    split: str
    label: str
    name: str
    audio: np.ndarray


@dataclass(frozen=True)
class Task:
    """A scene task of one label per clip.

    Attributes:
        seconds: to which clips are cut, or padded with silence.
        splits: names of splits, "train", "valid" and "test", or of folds.
        notes: what is split by what, for readers of the task's metadata.
    """

    name: str
    seconds: float
    splits: tuple[str, ...]
    notes: str
    clips: Callable[[Path], Iterator[Clip]]


def folds(count: int) -> tuple[str, ...]:
    """The names of folds, as in HEAR."""
    return tuple(f"fold{number:02d}" for number in range(count))


def split_by(key: str) -> str:
    """A split for all clips of a key, the same anywhere: three of five are train, one valid, one test."""
    return ("train", "train", "train", "valid", "test")[int(hashlib.sha256(key.encode()).hexdigest(), 16) % 5]


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
    for package, voice in PROMPTS.items():
        files = {
            file.stem: file
            for file in sorted((packages / package).rglob("*.gsm"))
            if file.parent.name not in ("letters", "phonetic", "silence") and not file.is_symlink()
        }
        kept = 0
        for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
            audio = _gsm(files[name])
            if len(audio) >= 0.4 * SAMPLE_RATE and "beep" not in name and kept < 80:
                kept += 1
                yield Clip(package, split_by(name), voice, f"{voice}_{name}", audio)


def _gsm(path: Path) -> np.ndarray:
    """A headerless GSM 06.10 recording of 8 kHz as float32 [n] at 16 kHz; its upper half of the spectrum is empty."""
    audio, _ = sf.read(path, dtype="float32", format="RAW", subtype="GSM610", samplerate=8000, channels=1)
    return soxr.resample(audio, 8000, SAMPLE_RATE)


# Sound fonts that may share samples are one source.
FONTS = {
    "musescore": ("musescore-general-soundfont-small", "usr/share/sounds/sf3/MuseScore_General_Lite.sf3"),
    "a320u": ("denemo-data", "usr/share/sounds/sf2/A320U.sf2"),
    "gmbank": ("csound-soundfont", "usr/share/sounds/sf2/sf_GMbank.sf2"),
    "pearl": ("avldrums.lv2-soundfont", "usr/share/sounds/sf2/Black_Pearl_4_LV2.sf2"),
    "zeppelin": ("avldrums.lv2-soundfont", "usr/share/sounds/sf2/Red_Zeppelin_4_LV2.sf2"),
}
PATCHES = "freepats/usr/share/midi/freepats"
KITS = {"musescore": (0, 8, 16, 24, 25, 32, 40), "a320u": (0, 24, 25, 40), "gmbank": (0, 24, 25), "pearl": (0,)}
KITS["zeppelin"] = (0,)
SAME = 0.99  # correlation of clips that count as one
CHANNELS = {"pearl": 0, "zeppelin": 0}  # these fonts have their drums in the bank of melodic instruments
DRUM_FOLDS = {"musescore": 0, "a320u": 1, "gmbank": 1, "pearl": 2, "zeppelin": 3, "freepats": 4}
DRUMS = {  # keys of General MIDI
    "kick": (35, 36),
    "side_stick": (37,),
    "snare": (38, 40),
    "clap": (39,),
    "tom": (41, 43, 45, 47),
    "closed_hat": (42, 44),
    "open_hat": (46,),
    "crash": (49, 55, 57),
    "ride": (51, 53),
    "tambourine": (54,),
    "cowbell": (56,),
}


def drum_pieces(packages: Path) -> Iterator[Clip]:
    """Which piece of a drum kit it is, by other kits; several loudness layers. Of clips that differ in level alone, and
    of samples that are in several kits, one is kept."""
    kept: dict[str, list[np.ndarray]] = {}
    for clip in _drum_pieces(packages):
        shape = clip.audio[:SAMPLE_RATE]
        shape = np.pad(shape, (0, SAMPLE_RATE - len(shape))) / max(float(np.linalg.norm(shape)), 1e-3)
        others = kept.setdefault(clip.label, [])
        if np.linalg.norm(shape) > 0.9 and all(abs(shape @ other) < SAME for other in others):
            others.append(shape)
            yield clip


def _drum_pieces(packages: Path) -> Iterator[Clip]:
    keys = [(label, key) for label, keys in DRUMS.items() for key in keys]
    for font, kits in KITS.items():
        package, file = FONTS[font]
        hits = [(kit, *key, velocity) for kit in kits for key in keys for velocity in (30, 55, 80, 105, 125)]
        slots = [[Note(CHANNELS.get(font, PERCUSSION), kit, key, velocity, 0, 0.9)] for kit, _, key, velocity in hits]
        for (kit, label, key, velocity), audio in zip(hits, play(packages / package / file, slots, 1.0)):
            yield Clip(package, folds(5)[DRUM_FOLDS[font]], label, f"{font}_{kit}_{key}_{velocity}", audio)
    for label, key in keys:
        for patch in (packages / PATCHES / "Drum_000").glob(f"{key:03d}_*.pat"):
            for _, audio in read_patch(patch):
                yield Clip("freepats", folds(5)[DRUM_FOLDS["freepats"]], label, f"freepats_{key}", audio)


def hit_counts(packages: Path) -> Iterator[Clip]:
    """How many drum hits there are in two seconds, one to six, by other kits."""
    rng = np.random.default_rng(0)
    for font, kits in KITS.items():
        package, file = FONTS[font]
        counts = [count for count in range(1, 7) for _ in range(16)]
        slots = []
        for count in counts:
            kit = int(rng.choice(kits))
            keys = [int(key) for key in rng.choice([36, 38, 40, 41, 42, 43, 45, 47], count)]  # all fonts have these
            gaps = 0.12 + rng.dirichlet(np.ones(count + 1)) * (1.8 - 0.12 * (count + 1))
            slots.append(
                [
                    Note(CHANNELS.get(font, PERCUSSION), kit, key, int(rng.integers(70, 121)), time, time + 0.1)
                    for key, time in zip(keys, np.cumsum(gaps))
                ]
            )
        for number, (count, audio) in enumerate(zip(counts, play(packages / package / file, slots, 2.0))):
            fold = folds(4)[min(DRUM_FOLDS[font], 3)]
            yield Clip(package, fold, str(count), f"{font}_{count}_{number}", audio)


FAMILIES = (  # of eight General MIDI programs each
    *("piano", "chromatic_percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reed", "pipe"),
    *("synth_lead", "synth_pad"),
)


def instrument_families(packages: Path) -> Iterator[Clip]:
    """Which family of instruments it is, by another maker's samples."""
    for font, fold in (("musescore", 0), ("a320u", 1), ("gmbank", 1)):
        package, file = FONTS[font]
        played = [
            (program, key)
            for program in range(8 * len(FAMILIES))
            for key in ((33, 45) if FAMILIES[program // 8] == "bass" else (50, 64) if font == "a320u" else (55, 69))
        ]
        slots = [[Note(0, program, key, 90, 0, 1.0)] for program, key in played]
        for (program, key), audio in zip(played, play(packages / package / file, slots, 1.5)):
            yield Clip(package, folds(3)[fold], FAMILIES[program // 8], f"{font}_{program}_{key}", audio)
    for patch in sorted((packages / PATCHES / "Tone_000").glob("*.pat")):
        program = int(patch.name[:3])
        if program < 8 * len(FAMILIES):
            for number, (_, audio) in enumerate(read_patch(patch)):
                if len(audio) >= 0.2 * SAMPLE_RATE:
                    yield Clip("freepats", folds(3)[2], FAMILIES[program // 8], f"freepats_{program}_{number}", audio)


PITCHES = ("c", "csharp", "d", "dsharp", "e", "f", "fsharp", "g", "gsharp", "a", "asharp", "b")
PLAYERS = (11, 12, 16, 19, 21, 22, 24, 25, 26, 40, 41, 46, 48, 52, 56, 57, 60, 65, 68, 71, 73, 75, 80, 89)


def note_pitches(packages: Path) -> Iterator[Clip]:
    """Which of 24 notes it is, C4 to B5, by other instruments; two sound fonts."""
    for font in ("musescore", "a320u"):
        package, file = FONTS[font]
        played = [(program, key) for program in PLAYERS[font == "a320u" :: 2] for key in range(60, 84)]
        slots = [[Note(0, program, key, 90, 0, 1.0)] for program, key in played]
        for (program, key), audio in zip(played, play(packages / package / file, slots, 1.5)):
            split = ("train", "valid", "train", "test", "train")[PLAYERS.index(program) // 2 % 5]
            label = f"{PITCHES[key % 12]}{key // 12 - 1}"
            yield Clip(package, split, label, f"{font}_{program}_{label}", audio)


GAMES = (  # in one fold: games that may share sounds
    ("ufoai-sound",),
    ("openarena-data", "openarena-088-data"),
    (
        *("noiz2sa-data", "gunroar-data", "titanion-data", "torus-trooper-data", "tumiki-fighters-data"),
        *("parsec47-data", "rrootage-data", "mu-cade-data", "a7xpg-data", "val-and-rick-data"),
    ),
    ("pekka-kana-2-data", "netpanzer-data", "powermanga-data", "brainparty-data", "hex-a-hop-data", "freedink-data"),
    (
        *("heroes-sound-effects", "tecnoballz-data", "lbreakouthd-data", "wizznic-data", "abe-data", "njam-data"),
        *("chromium-bsu-data", "alienblaster-data", "freetennis-common", "open-invaders-data", "amphetamine-data"),
    ),
)
EFFECTS = {  # the first pattern that is found in a path
    "step": r"footsteps|/step|player/.*foot",
    "voice": r"hurt|death|/die|_die|pain|scream|taunt|gasp|drown|ohno|ouch|/oh|ko\.|_dm|ahh|moo|baa|yessir|affirm"
    r"|soldiers",
    "explosion": r"expl|boom|_dest|dst|destroy|detruit|bomb|crash\.",
    "shot": r"shot|shoot|fire|/gun|laser|blaster|bullet|plasma|chaingun|battle_|gf\db|lf1|bf1|rocket|tir_",
    "bonus": r"bonus|extend|gem|gold|coin|money|score|power|life|pkup|pickup|crystal|upgrade|quad|heal|extra"
    r"|correct|joker",
    "menu": r"menu|click|select|beep|button|choose|confirm|/ui/|option",
    "hit": r"hit|impact|bump|wall|whack|ric\d|damage|brick|bounce|smack|punch",
}


def game_effects(packages: Path) -> Iterator[Clip]:
    """What kind of event it is, by the effects of other games. The kind is read off the files' names."""
    for fold, games in zip(folds(len(GAMES)), GAMES):
        for game in games:
            for file in _unpacked(packages / game):
                path = "/" + file.relative_to(packages).as_posix().lower().split("/", 1)[1]
                label = next((kind for kind, pattern in EFFECTS.items() if re.search(pattern, path)), None)
                if label is None or "music" in path:
                    continue
                audio = load_audio(file, min_samples=1)
                if 0.05 * SAMPLE_RATE <= len(audio) <= 6 * SAMPLE_RATE:
                    yield Clip(game, fold, label, f"{game}_{file.parent.name}_{file.stem}", audio)


SOUNDTRACKS = {
    "openclonk-data": "openclonk",
    "openarena-088-data": "openarena",
    "pushover-data": "pushover",
    "xmoto-data": "xmoto",
    **dict.fromkeys(GAMES[2], "aba_games"),
}


def soundtracks(packages: Path) -> Iterator[Clip]:
    """Which game's music it is, by other pieces: excerpts of four seconds."""
    pieces: dict[str, list[tuple[str, Path]]] = {}
    for package, label in SOUNDTRACKS.items():
        for file in _unpacked(packages / package):
            if file.suffix == ".ogg" and sf.info(file).duration >= 30:
                pieces.setdefault(label, []).append((package, file))
    for label, files in pieces.items():
        order = sorted(files, key=lambda item: hashlib.sha256(item[1].name.encode()).digest())[:10]
        for number, (package, file) in enumerate(order):
            audio = load_audio(file)
            for part in range(10):
                start = round((part + 0.5) / 10 * (len(audio) - 4 * SAMPLE_RATE))
                name = f"{label}_{file.stem}_{part}"
                yield Clip(package, folds(5)[number % 5], label, name, audio[start : start + 4 * SAMPLE_RATE])


def _unpacked(package: Path) -> list[Path]:
    """The recordings of a package, with those in its pk3 archives, which are unpacked once beside them."""
    for archive in sorted(package.rglob("*.pk3")):
        folder = archive.with_suffix(".unpacked")
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                if member.filename.endswith((".wav", ".ogg")) and not (folder / member.filename).exists():
                    file.extract(member, folder)
    return sorted(path for path in package.rglob("*") if path.suffix in (".wav", ".ogg") and path.is_file())


TASKS: Iterable[Task] = (
    Task("mahjong_words", 1.5, folds(4), "words and calls; a fold is a voice, in two languages", mahjong_words),
    Task("tuberling_voices", 1.5, SPLITS, "12 voices of 12 languages; a word is in one split", tuberling_voices),
    Task("voice_counts", 3.0, SPLITS, "1 to 4 voices at once; a voice is in one split", voice_counts),
    Task("prompt_voices", 2.0, SPLITS, "8 telephone voices, GSM; a prompt is in one split", prompt_voices),
    Task("drum_pieces", 1.0, folds(5), "drum pieces; a fold is a maker of kits", drum_pieces),
    Task("hit_counts", 2.0, folds(4), "1 to 6 drum hits; a fold is a maker of kits", hit_counts),
    Task("instrument_families", 1.5, folds(3), "families of instruments; a fold is a maker", instrument_families),
    Task("note_pitches", 1.5, SPLITS, "24 notes, C4 to B5; an instrument is in one split", note_pitches),
    Task("game_effects", 2.0, folds(5), "kinds of game effects by file name; games are in one fold", game_effects),
    Task("soundtracks", 4.0, folds(5), "music of 5 games; a piece is in one fold", soundtracks),
)
