"""What the kit requires of a task, checked before it runs, with a sentence where the kit has a bare AssertionError."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile

from audio_mamba.data.label_tables import LabelError, composed, read_classes
from audio_mamba.external_sources import layout
from audio_mamba.external_sources.task_files import VOCABULARY, TaskError, audio_files, read_json, split_names

KINDS = {
    "embedding_type": ("scene", "event"),
    "prediction_type": ("multiclass", "multilabel"),
    "split_mode": ("trainvaltest", "new_split_kfold", "presplit_kfold"),
}
SCORES = {  # by embedding_type, heareval.score.available_scores
    "scene": ("top1_acc", "pitch_acc", "chroma_acc", "mAP", "d_prime", "aucroc"),
    "event": ("event_onset_200ms_fms", "event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms", "segment_1s_er"),
}
SPLITS = ("train", "valid", "test")
MIN_FOLDS = 3  # one is for testing, one for validation
READING_THREADS = 8


def check_task(task: Path, sample_rate: int) -> None:
    """Check the files of a task: metadata, labels of every split, and the audio at one rate.

    Args:
        task: folder of the task.
        sample_rate: of the audio in Hz, which is in `<task>/<sample_rate>/<split>/`.

    Raises:
        TaskError: the first thing that the kit could not use.
    """
    metadata = read_json(task / layout.METADATA, dict)
    _check_metadata(task / layout.METADATA, metadata, split_names(task))
    seconds = metadata["sample_duration"]
    vocabulary = _read_vocabulary(task / VOCABULARY)
    for split in split_names(task):
        path = task / f"{split}.json"
        labels = read_json(path, dict)
        if not labels:
            raise TaskError(f"{path} lists no audio")
        for clip, entries in labels.items():
            if "embedding.npy" in clip:
                raise TaskError(f"{path}: {clip}: the kit needs a name without embedding.npy")
            _check_labels(f"{path}: {clip}", entries, metadata, vocabulary)
    # The kit makes batches of 84 s at 16 kHz.
    _check_audio(task, sample_rate, same_length=seconds is not None and seconds * sample_rate <= 42 * 16000)


def _check_metadata(path: Path, metadata: dict, splits: list[str]) -> None:
    """The keys that the kit reads in extraction, training and testing."""
    for key, accepted in KINDS.items():
        if metadata.get(key) not in accepted:
            raise TaskError(f"{path}: {key} must be {' or '.join(accepted)}, got {metadata.get(key)!r:.60}")
    kind, prediction, mode = (metadata[key] for key in KINDS)
    if kind == "event" and prediction == "multiclass":
        raise TaskError(f"{path}: prediction_type must be multilabel for events, got 'multiclass'")
    if mode == "trainvaltest" and (missing := [split for split in SPLITS if split not in splits]):
        raise TaskError(f"{path}: with split_mode trainvaltest, splits must have {' and '.join(missing)}")
    if mode != "trainvaltest" and len(set(splits)) < MIN_FOLDS:
        raise TaskError(f"{path}: with split_mode {mode}, splits must be {MIN_FOLDS} folds or more, got {len(splits)}")
    if len(set(splits)) < len(splits):
        raise TaskError(f"{path}: splits has a name twice")
    if not isinstance(metadata.get("task_name"), str):
        raise TaskError(f"{path}: task_name must be text, got {metadata.get('task_name')!r:.60}")
    if "sample_duration" not in metadata:
        raise TaskError(f"{path}: sample_duration is missing: seconds, or null for clips of any length")
    seconds = metadata["sample_duration"]
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0):
        raise TaskError(f"{path}: sample_duration must be seconds or null, got {seconds!r:.60}")
    scores = metadata.get("evaluation")
    known = isinstance(scores, list) and scores and all(score in SCORES[kind] for score in scores)
    if not known:
        raise TaskError(f"{path}: evaluation must be a list of {', '.join(SCORES[kind])}; got {scores!r:.60}")


def _read_vocabulary(path: Path) -> set[str]:
    """The labels as the kit has them: read by pandas, and not composed in Unicode."""
    try:
        labels = read_classes(path)
    except LabelError as error:
        raise TaskError(str(error)) from None
    table = pd.read_csv(path)
    if missing := {"idx", "label"} - set(table.columns):
        raise TaskError(f"{path} has no column {min(missing)}; it has {', '.join(map(str, table.columns))}")
    found = dict(zip(table["idx"], table["label"]))
    for number, label in enumerate(labels):
        if pd.isna(found[number]) or composed(str(found[number])) != label:
            raise TaskError(f"{path}: the kit reads the label {label!r} as {found[number]}; choose another name")
    return set(map(str, found.values()))


def _check_labels(place: str, entries: Any, metadata: dict, vocabulary: set[str]) -> None:
    """The labels of one clip: a list of labels for scenes; of events, with times in ms, for events."""
    if not isinstance(entries, list):
        raise TaskError(f"{place}: the labels must be a list, such as [{entries!r:.60}], got {entries!r:.60}")
    if metadata["embedding_type"] == "event":
        for event in entries:
            _check_event(place, event)
        labels = [event["label"] for event in entries]
    else:
        labels = entries
        if metadata["prediction_type"] == "multiclass" and len(labels) != 1:
            raise TaskError(f"{place}: a clip of a multiclass task has one label, got {len(labels)}")
    for label in labels:
        if isinstance(label, (dict, list)):
            raise TaskError(f"{place}: a label must be text, got {label!r:.60}")
        if str(label) not in vocabulary:
            alike = composed(str(label)) in map(composed, vocabulary)
            form = " in the same Unicode form (composed or decomposed)" if alike else ""
            raise TaskError(f"{place}: the label {label!r} is not in {VOCABULARY}{form}")


def _check_event(place: str, event: Any) -> None:
    try:
        start, end, _ = event["start"], event["end"], event["label"]
    except (KeyError, TypeError):
        raise TaskError(f"{place}: an event needs label, start and end (in ms), got {event!r:.80}") from None
    for time in (start, end):
        if isinstance(time, bool) or not isinstance(time, (int, float)) or not math.isfinite(time):
            raise TaskError(f"{place}: start and end of an event must be numbers (in ms), got {time!r:.60}")
    if not end >= start:
        raise TaskError(f"{place}: an event ends at {float(end)} ms, before its start at {float(start)} ms")


def _check_audio(task: Path, sample_rate: int, same_length: bool) -> None:
    """One channel at the right rate and, where the kit makes batches, clips of one length."""
    if not (task / str(sample_rate)).is_dir():
        raise TaskError(f"no audio at the model's sample rate: {task / str(sample_rate)} is missing")
    paths = [task / name for name in audio_files(task, sample_rate)]
    with ThreadPoolExecutor(READING_THREADS) as pool:
        infos = list(pool.map(_read_header, paths))
    first: dict[str, tuple[str, int]] = {}  # clip and number of samples, by split
    for path, info in zip(paths, infos):
        if info.samplerate != sample_rate:
            raise TaskError(f"{path} has {info.samplerate} Hz, but its folder is for {sample_rate} Hz")
        if info.channels != 1:
            raise TaskError(f"{path} has {info.channels} channels; the kit needs 1")
        clip, frames = first.setdefault(path.parent.name, (path.name, info.frames))
        if same_length and info.frames != frames:
            raise TaskError(
                f"{path} has {info.frames} samples, but {clip} has {frames}; clips of different lengths need "
                f'"sample_duration": null in {layout.METADATA}'
            )


def _read_header(path: Path) -> Any:
    if not path.is_file():
        raise TaskError(f"{path} is missing, but {path.parent.name}.json lists it")
    try:
        return soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise TaskError(f"{path} cannot be read as audio ({error})") from None
