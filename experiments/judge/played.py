"""Recipes of tasks of sampled instruments: drums, how many hits, families, notes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.judge.clips import Clip, folds
from experiments.judge.instruments import PERCUSSION, SAMPLE_RATE, Note, play, read_patch
from experiments.judge.mixing import at_random_level, generator

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


MELODY = PLAYERS[:20]
ACCOMPANIMENT = range(48, 72)  # C3 to B4, below the melody


def melody_notes(packages: Path) -> Iterator[Clip]:
    """Which of the 12 notes from C5 to B5 is the highest, over two lower notes of another instrument: by other
    instruments, of three makers, at a level that says nothing."""
    for font in ("musescore", "a320u", "gmbank"):
        package, file = FONTS[font]
        played = [(number, key) for number in range(len(MELODY)) for key in range(72, 84)]
        slots = []
        for number, key in played:
            rng = generator(f"{font} {MELODY[number]} {key}")
            below = int(rng.choice([other for other in MELODY[number % 5 :: 5] if other != MELODY[number]]))
            lower = [Note(1, below, int(note), 90, 0, 0.7) for note in rng.choice(ACCOMPANIMENT, 2, replace=False)]
            slots.append([Note(0, MELODY[number], key, 90, 0, 0.7), *lower])
        for (number, key), audio in zip(played, play(packages / package / file, slots, 0.8)):
            name = f"{font}_{MELODY[number]}_{PITCHES[key % 12]}"
            yield Clip(package, folds(5)[number % 5], PITCHES[key % 12], name, at_random_level(audio, generator(name)))
