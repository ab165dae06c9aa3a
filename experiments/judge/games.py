"""Recipes of tasks of games: kinds of effects, soundtracks."""

import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile as sf

from audio_mamba.data.audio import load_audio
from experiments.judge.clips import Clip, fold_by, folds
from experiments.judge.instruments import SAMPLE_RATE, SILENCE
from experiments.judge.mixing import at_random_level, generator

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


KINDS = {  # the first pattern that is found in FOLDER/NAME of a file, in lower case
    "step": r"^footsteps/(?!hitground|crouch|stand|water_)",
    "voice": r"^(soldiers|civilians|sarge|neko|festivoxmale|rott)/(?!boom|bzzz)|-selected_|affirm|yessir|_movout"
    r"|_tarconf|/scream_|/wscream|/grunt|^sfx/(ahh|better not|can't reach|fatica|hm|no|oh|ho_yeh|out|too late)$"
    r"|^standard/(dam|excellent|verygood)|^open-invaders/(goodbye|welcome|letsgo|insane|gameisover|listhisc|new_high)",
    "ambience": r"^(ambience|ambient|world)/(?!jingle|tele|1shot|portal|jumppad|disco|bloodspiderwalk|growl|clack)",
    "explosion": r"(?<!festivoxmale/)(expl|boom)|_dest|destro[yi]|dst$|^sounds/bomb$|crash$",
    "shot": r"(?<!1)(?<!screen)shot|/shoot|fire(_?\d)?$|^weapons/(bullet|laser|plasma|ptl|flamer)|/gun\d|/laser|blaster"
    r"|/battle_[ms]|[gl]f\d|vulcanf|/rtir_|^geoscape/combat-(air|gun|rocket$)|lance$",
    "bonus": r"bonus|extend|gem|gold$|coins|money|powerup|power_up|life_(add|plus)|lplus|gainlife|pickup|pkup|crystal"
    r"|upgrade|health|correct$|score_?(up|tick)?$|extraball",
}
KIND_CLIPS = 45  # of a kind from one game at most
KIND_SECONDS = 1.5


def effect_kinds(packages: Path) -> Iterator[Clip]:
    """What kind of event it is, by other events of the same games, at a level that says nothing. Files whose names
    differ in numbers alone are one event and in one fold."""
    for game in (game for games in GAMES for game in games):
        kept: Counter = Counter()
        for file in _unpacked(packages / game):
            label = kind_of(file)
            if label is None or kept[label] == KIND_CLIPS or "music" in file.relative_to(packages).as_posix().lower():
                continue
            audio = load_audio(file, min_samples=1)[: round(KIND_SECONDS * SAMPLE_RATE)]
            if len(audio) >= 0.05 * SAMPLE_RATE and np.abs(audio).max() > SILENCE:
                kept[label] += 1
                name = f"{game}_{file.parent.name}_{file.stem}"
                event = re.sub(r"\d+[a-z]?", "", file.stem.lower())
                fold = fold_by(f"{game}/{file.parent.name}/{event}", 5)
                yield Clip(game, fold, label, name, at_random_level(audio, generator(name)))


def kind_of(file: Path) -> str | None:
    """The kind of event that a file's folder and name tell; None for all others."""
    path = f"{file.parent.name}/{file.stem}".lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, path)), None)


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
