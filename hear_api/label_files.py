"""Predicted labels as files: a csv or jsonl table, label tracks for Audacity, or selection tables for Raven.

Times are in seconds from the start of the recording. A table has `<name>.settings.json` beside it, a folder has it
inside: what the labels depend on, with the names of all classes and the temperature of the probabilities. A folder has
an index of its files, too. If channels were labelled one by one, tables and the index have a column with their number,
counted from 0, and each has a file of its own.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from torch import Tensor

from audio_mamba.data.audio import AudioError, channel_count
from audio_mamba.hear_api.classifier import AudioClassifier
from audio_mamba.hear_api.clips import Clip, Failure
from audio_mamba.hear_api.journal import Entry, Journal
from audio_mamba.hear_api.windows import Windows
from audio_mamba.hear_api.writers import INDEX_NAME, SETTINGS_NAME, Format, has_channels, name_in_folder, whole_folder
from audio_mamba.system.atomic_files import atomic_text, atomic_write

FORMATS = ("csv", "jsonl", "audacity", "raven")
TRACK_SUFFIX = {"audacity": ".txt", "raven": ".selections.txt"}


class Label(NamedTuple):
    """One label of a window or a whole file."""

    start: float
    end: float
    label: str
    probability: float


@dataclass(frozen=True)
class Labelling:
    """Which parts of a file are labelled, and which labels of each part are reported.

    Attributes:
        classes: names of all labels.
        temperature: of the classifier, for the settings.
        windows: None for whole files.
        top: the largest number of labels; None for no limit.
        threshold: the least probability.
        max_hz: the upper edge of the front end's bands.
    """

    classes: list[str]
    temperature: float
    windows: Windows | None
    top: int | None
    threshold: float
    max_hz: float

    @classmethod
    def for_classifier(
        cls,
        classifier: AudioClassifier,
        window: float | None,
        hop: float | None,
        top: int | None,
        threshold: float | None,
    ) -> "Labelling":
        """From the options of the command. ValueError for a value out of range."""
        rate = classifier.front_end.frames_per_second
        windows = None if window is None else Windows.of_seconds(window, hop, rate, prefix="--")
        if top is not None and top < 1:
            raise ValueError(f"--top must be at least 1, got {top}")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"--threshold is a probability, from 0 to 1, got {threshold:g}")
        if top is None and threshold is None:
            top, threshold = (1, 0.0) if classifier.loss == "single" else (None, 0.5)
        return cls(
            classes=classifier.classes,
            temperature=classifier.temperature,
            windows=windows,
            top=top,
            threshold=threshold or 0.0,
            max_hz=classifier.front_end.mel_max_hz,
        )

    def rows(self, classifier: AudioClassifier, group: Sequence[Clip | Failure]) -> Iterator[Tensor]:
        """For each clip of a group the probabilities of its windows, or of all of it, float32 [n, classes];
        failures have none.

        Raises:
            data.audio.AudioFileError: a long file, which is a group of its own, cannot be read a second time.
        """
        if self.windows is None:
            yield from classifier.of_group(group)
        else:
            for clip in group:
                if not isinstance(clip, Failure):
                    yield classifier.of_windows(clip, self.windows)

    def settings(self) -> dict:
        """What the result depends on, beside weights and files."""
        return {
            "window": self.windows.length / self.windows.rate if self.windows else 0.0,
            "hop": self.hop_seconds,
            "top": self.top,
            "threshold": self.threshold,
            "classes": self.classes,
            "temperature": self.temperature,
        }

    @property
    def hop_seconds(self) -> float:
        """From one window to the next; 0 for whole files."""
        return self.windows.hop / self.windows.rate if self.windows else 0.0

    def span(self, number: int, seconds: float) -> tuple[float, float]:
        """Where a window, or the whole file of so many seconds, begins and ends."""
        start, end = self.windows.span(number, seconds) if self.windows else (0.0, seconds)
        return round(start, 6), round(end, 6)

    def labels(self, rows: np.ndarray, seconds: float) -> Iterator[Label]:
        """The reported labels of a file, window by window, the most likely first.

        rows: probabilities [windows, classes]. seconds: length of the file.
        """
        for number, row in enumerate(rows):
            start, end = self.span(number, seconds)
            for k in np.argsort(-row, kind="stable")[: self.top]:
                if row[k] >= self.threshold:
                    yield Label(start, end, self.classes[k], float(row[k]))


def merged(labels: Iterator[Label]) -> list[Label]:
    """Successive windows of one label that touch or overlap become one span with their highest probability; in order
    of start."""
    spans: list[Label] = []
    last: dict[str, int] = {}  # place of each label's latest span
    for label in labels:
        place = last.get(label.label)
        if place is not None and label.start <= spans[place].end + 1e-6:
            span = spans[place]
            probability = max(span.probability, label.probability)
            spans[place] = span._replace(end=max(span.end, label.end), probability=probability)
        else:
            last[label.label] = len(spans)
            spans.append(label)
    return sorted(spans, key=lambda span: (span.start, span.label))


def format_for(out: Path, name: str | None, labelling: Labelling) -> Format:
    """How the result is written: as named, or as the suffix of `out` says. ValueError if they do not fit."""
    suffix = out.suffix.lower()
    name = name or suffix.removeprefix(".")
    if name not in FORMATS or suffix != ("" if name in TRACK_SUFFIX else f".{name}"):
        raise ValueError(
            f"--out {out}: write it as .csv or .jsonl, or with --format audacity or raven without a suffix for a folder"
        )
    if name in TRACK_SUFFIX:
        return Format(partial(_write_folder, labelling, name), partial(_settings_in_folder, name))
    return Format(partial(_write_table, labelling, name), _settings_beside)


def files_of(journal: Journal) -> Iterator[tuple[Entry, np.ndarray]]:
    """The files without a failure, each with its rows [n, classes]."""
    held = np.zeros((0, journal.width), np.float32)
    blocks = journal.read_rows()
    for entry in journal.entries:
        if entry.error is None:
            while len(held) < entry.rows:
                held = np.concatenate([held, next(blocks)])
            yield entry, held[: entry.rows]
            held = held[entry.rows :]


# ---------------------------------------------------------------- tables


def _write_table(labelling: Labelling, name: str, out: Path, journal: Journal, step_seconds: float) -> None:
    """csv: a row per label. jsonl: an object per window with its labels, also if it has none."""
    with atomic_write(_beside(out)) as file:
        file.write(json.dumps(journal.settings, ensure_ascii=False).encode())
    with atomic_text(out) as text:
        (_write_csv if name == "csv" else _write_jsonl)(labelling, text, journal)


def _write_csv(labelling: Labelling, text: IO[str], journal: Journal) -> None:
    table = csv.writer(text)
    numbered = has_channels(journal)
    table.writerow(["path", *(["channel"] if numbered else []), "start", "end", "label", "probability"])
    for entry, rows in files_of(journal):
        of: list[Any] = [entry.path, entry.channel] if numbered else [entry.path]
        for label in labelling.labels(rows, entry.seconds):
            table.writerow([*of, label.start, label.end, label.label, f"{label.probability:.6g}"])


def _write_jsonl(labelling: Labelling, text: IO[str], journal: Journal) -> None:
    for entry, rows in files_of(journal):
        for number, row in enumerate(rows):
            found = list(labelling.labels(row[None], entry.seconds))
            start, end = labelling.span(number, entry.seconds)
            window: dict[str, Any] = {"path": entry.path}
            if entry.channel is not None:
                window["channel"] = entry.channel
            window |= {"start": start, "end": end}
            window["labels"] = {label.label: round(label.probability, 6) for label in found}
            text.write(json.dumps(window, ensure_ascii=False) + "\n")


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name}.settings.json")


def _settings_beside(out: Path) -> str | None:
    if not _beside(out).exists():
        raise ValueError(f"it has no {_beside(out).name} beside it")
    return _beside(out).read_text(encoding="utf-8")


# ---------------------------------------------------------------- a file per recording


def _write_folder(labelling: Labelling, name: str, out: Path, journal: Journal, step_seconds: float) -> None:
    """A label track or selection table per recording, named `<number>_<name of the recording>`, or per channel, named
    `<number>_ch<its number>_<name of the recording>`; index.csv (track, path, duration, labels), with --channel each
    with a column channel after path; and settings.json."""
    settings = json.dumps(journal.settings | {"format": name}, ensure_ascii=False)
    with whole_folder(out, journal) as folder, open(folder / INDEX_NAME, "w", newline="", encoding="utf-8") as table:
        (folder / SETTINGS_NAME).write_text(settings, encoding="utf-8")
        index = csv.writer(table)
        index.writerow(["track", "path", *(["channel"] if has_channels(journal) else []), "duration", "labels"])
        for number, (entry, rows) in enumerate(files_of(journal)):
            spans = merged(labelling.labels(rows, entry.seconds))
            if name == "audacity":
                text = audacity_track(spans)
            else:
                text = raven_table(spans, labelling.max_hz, _labelled_channel(entry, journal.settings["channel"]))
            track = name_in_folder(number, entry, TRACK_SUFFIX[name])
            (folder / track).write_text(text, encoding="utf-8")
            channel = [] if entry.channel is None else [entry.channel]
            index.writerow([track, entry.path, *channel, entry.seconds, len(spans)])


def _labelled_channel(entry: Entry, chosen: str) -> int:
    """The number of the channel that the labels of an entry are of, counted from 0, which stands for a mix, too."""
    if entry.channel is not None or chosen != "right":
        return entry.channel or 0
    try:
        return min(1, channel_count(entry.file or entry.path) - 1)
    except AudioError:  # the file went away after it was labelled
        return 1


def _settings_in_folder(name: str, out: Path) -> str | None:
    text = (out / SETTINGS_NAME).read_text(encoding="utf-8")
    settings = json.loads(text)
    made_as = settings.get("format") if isinstance(settings, dict) else None
    if made_as != name:
        raise ValueError(f"it was written with --format {made_as}" if made_as else f"{SETTINGS_NAME} has no format")
    return text


def audacity_track(spans: list[Label]) -> str:
    """A label track: start, end and label on a line, separated by tabs (Audacity manual, "Importing and Exporting
    Labels")."""
    return "".join(f"{span.start:.6f}\t{span.end:.6f}\t{_one_line(span.label)}\n" for span in spans)


def raven_table(spans: list[Label], max_hz: float, channel: int = 0) -> str:
    """A selection table with the columns that Raven needs, over all frequencies, and label and score. Raven counts
    channels from 1."""
    header = ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"]
    lines = ["\t".join([*header, "Label", "Score"])]
    for number, span in enumerate(spans, start=1):
        cells = [number, "Spectrogram 1", channel + 1, f"{span.start:.6f}", f"{span.end:.6f}", "0.0", f"{max_hz:.1f}"]
        lines.append("\t".join(map(str, [*cells, _one_line(span.label), f"{span.probability:.4f}"])))
    return "\n".join(lines) + "\n"


def _one_line(label: str) -> str:
    """A label without the tabs and line ends that would break its line."""
    return " ".join(label.split())
