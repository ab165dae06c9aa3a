"""The judge's ten tasks, and four earlier ones.

Each recipe gets the folder of unpacked packages and yields clips. Clips that must not be on both sides of a split (of
one voice, game, sound font or piece of music) are in one split.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.judge import games, played, speech
from experiments.judge.clips import SPLITS, Clip, folds


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


TASKS: tuple[Task, ...] = (
    Task("mahjong_words", 1.5, folds(4), "words and calls; a fold is a voice, in two languages", speech.mahjong_words),
    Task("voices_in_babble", 1.0, folds(5), "12 voices in babble; a word is in one fold", speech.voices_in_babble),
    Task("voice_counts", 3.0, SPLITS, "1 to 4 voices at once; a voice is in one split", speech.voice_counts),
    Task(
        "voice_excerpts", speech.EXCERPT, folds(5), "8 telephone voices; a prompt is in one fold", speech.voice_excerpts
    ),
    Task("drum_pieces", 1.0, folds(5), "drum pieces; a fold is a maker of kits", played.drum_pieces),
    Task("hit_counts", 2.0, folds(4), "1 to 6 drum hits; a fold is a maker of kits", played.hit_counts),
    Task("instrument_families", 1.5, folds(3), "families; a fold is a maker of samples", played.instrument_families),
    Task("melody_notes", 0.8, folds(5), "12 notes over two others; an instrument is in one fold", played.melody_notes),
    Task("effect_kinds", games.KIND_SECONDS, folds(5), "6 kinds; an event is in one fold", games.effect_kinds),
    Task("soundtracks", 4.0, folds(5), "music of 5 games; a piece is in one fold", games.soundtracks),
)
# In the place of voices_in_babble, voice_excerpts, melody_notes and effect_kinds until version 2.0; docs/results.md has
# scores of them. They are made when they are named.
EARLIER: tuple[Task, ...] = (
    Task("tuberling_voices", 1.5, SPLITS, "12 voices of 12 languages; a word is in one split", speech.tuberling_voices),
    Task("prompt_voices", 2.0, SPLITS, "8 telephone voices, GSM; a prompt is in one split", speech.prompt_voices),
    Task("note_pitches", 1.5, SPLITS, "24 notes, C4 to B5; an instrument is in one split", played.note_pitches),
    Task("game_effects", 2.0, folds(5), "kinds of effects by file name; a fold is some games", games.game_effects),
)
