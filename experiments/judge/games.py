"""Recipes of tasks of games: kinds of effects, soundtracks."""

import hashlib
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import soundfile as sf

from audio_mamba.data.audio import load_audio
from experiments.judge.clips import Clip, folds
from experiments.judge.instruments import SAMPLE_RATE

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
