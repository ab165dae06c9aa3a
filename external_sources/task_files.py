"""The files of a HEAR task on disk, and whether they have changed since something was made from them."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from audio_mamba.external_sources import layout
from audio_mamba.system.atomic_files import atomic_write, sha256

VOCABULARY = "labelvocabulary.csv"
NOTE = "task-files.json"  # beside embeddings, and beside resampled audio
RESAMPLED = "resampled.json"  # in a folder of resampled audio: how it was made
HASHING_THREADS = 8


class TaskError(ValueError):
    """A task that the kit cannot use; the message names the file and says what is needed."""


class FileState(NamedTuple):
    """What identifies the content of a file. Size and time are compared first, since they are quick to read."""

    size: int  # bytes
    time: int  # of the last change, in ns
    sha256: str


class TaskFiles(NamedTuple):
    """The files that embeddings of a task depend on."""

    task: str  # absolute path of the task's folder
    sample_rate: int  # of the audio, in Hz
    files: dict[str, FileState]  # by path below the folder: metadata, labels, and the audio at that rate

    def digest(self) -> str:
        """One SHA-256 for the names and contents of all files."""
        lines = (f"{name} {state.sha256}\n" for name, state in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def sample_rates(task: Path) -> list[int]:
    """The rates in Hz of a task's own audio, lowest first: folders with a number as name that were not resampled."""
    return sorted(
        int(entry.name)
        for entry in task.iterdir()
        if entry.name.isdecimal() and entry.is_dir() and not (entry / RESAMPLED).exists()
    )


def source_rate(task: Path, sample_rate: int) -> int:
    """The rate of the audio that is embedded at `sample_rate`: this one if the task has it, else its highest.

    Raises:
        TaskError: the task has no audio.
    """
    rates = sample_rates(task)
    if not rates:
        raise TaskError(f"{task} has no folder of audio, such as {sample_rate}")
    return sample_rate if sample_rate in rates else rates[-1]


def read_json(path: Path, kind: type):
    """The content of a JSON file of a task, which must be a `kind`. Raises TaskError."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise TaskError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, kind):
        raise TaskError(f"{path} must be a JSON {'object' if kind is dict else 'list'}, got {content!r:.60}")
    return content


def split_names(task: Path) -> list[str]:
    """The splits that the metadata of a task lists. Raises TaskError."""
    splits = read_json(task / layout.METADATA, dict).get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
        raise TaskError(f"{task / layout.METADATA}: splits must be a list of names, got {splits!r:.60}")
    return splits


def label_files(task: Path) -> list[str]:
    """Names of the files that describe a task: metadata, vocabulary and the labels of each split. Raises TaskError."""
    return [layout.METADATA, VOCABULARY, *(f"{split}.json" for split in split_names(task))]


def audio_files(task: Path, sample_rate: int) -> list[str]:
    """Paths below the task's folder of all clips that its splits list, at one rate. Raises TaskError."""
    return [
        f"{sample_rate}/{split}/{name}"
        for split in split_names(task)
        for name in read_json(task / f"{split}.json", dict)
    ]


def read_files(task: Path, sample_rate: int) -> TaskFiles:
    """The present state of the files that embeddings at `sample_rate` depend on, at their source rate.

    Raises:
        TaskError: a file is missing or unreadable.
    """
    rate = source_rate(task, sample_rate)
    names = [*label_files(task), *audio_files(task, rate)]
    try:
        states = file_states(task, names)
    except OSError as error:
        raise TaskError(f"{error.filename} cannot be read ({error.strerror})") from None
    return TaskFiles(str(task.absolute()), rate, dict(zip(names, states)))


def file_states(task: Path, names: Iterable[str]) -> list[FileState]:
    """The present states of files, given by their paths below a folder. Raises OSError."""

    def state(name: str) -> FileState:
        status = (task / name).stat()  # before reading, so that a later change is noticed
        return FileState(status.st_size, status.st_mtime_ns, sha256(task / name))

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(pool.map(state, names))


def write_note(folder: Path, files: TaskFiles) -> None:
    """Note the state of the files in a folder of what was made from them."""
    with atomic_write(folder / NOTE) as file:
        file.write(json.dumps(files._asdict(), indent=1).encode())


def read_note(folder: Path) -> TaskFiles | None:
    """What `write_note` wrote, or None."""
    if not (folder / NOTE).is_file():
        return None
    noted = read_json(folder / NOTE, dict)
    return TaskFiles(
        noted["task"], noted["sample_rate"], {name: FileState(*state) for name, state in noted["files"].items()}
    )


def differing_file(noted: TaskFiles, other: TaskFiles) -> str | None:
    """The first file, by name, that shows that two notes are of different versions of a task; None if none does.

    Metadata, vocabulary, labels and archives must be the same files. Audio, which is in folders, is compared where both
    have it, since models may read different rates.
    """
    files, others = ({name: state.sha256 for name, state in found.files.items()} for found in (noted, other))
    labels = {name for name in {*files, *others} if "/" not in name}
    compared = labels | (files.keys() & others.keys())
    return min((name for name in compared if files.get(name) != others.get(name)), default=None)


def copied_labels(folder: Path) -> TaskFiles | None:
    """The label files that the kit copied beside embeddings of earlier versions, which have no note; None if absent."""
    try:
        names = label_files(folder)
        states = [FileState((folder / name).stat().st_size, 0, sha256(folder / name)) for name in names]
    except (OSError, TaskError):
        return None
    return TaskFiles("", 0, dict(zip(names, states)))


def changed_files(noted: TaskFiles, task: Path) -> list[str]:
    """The files whose content differs from the noted one, or that are missing. A file is read only if its size is the
    same and its time is not."""

    def changed(item: tuple[str, FileState]) -> bool:
        name, then = item
        try:
            now = (task / name).stat()
            if now.st_size != then.size:
                return True
            return now.st_mtime_ns != then.time and sha256(task / name) != then.sha256
        except OSError:
            return True

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return [
            name for (name, _), differs in zip(noted.files.items(), pool.map(changed, noted.files.items())) if differs
        ]


def why_stale(folder: Path, task: Path | None = None) -> str | None:
    """Why embeddings in `folder` no longer fit the files of their task, in words; None if they do.

    Args:
        folder: of complete embeddings, or of a downstream run to which they are linked.
        task: the task's folder now; None for the noted one, which is not compared if it is gone.
    """
    noted = read_note(folder)
    if task is None:
        if noted is None or not Path(noted.task).is_dir():
            return None
        task = Path(noted.task)
    noted = noted or copied_labels(folder)
    if noted is None:
        return None
    if noted.sample_rate and noted.sample_rate not in sample_rates(task):
        return f"{task} no longer has audio at {noted.sample_rate} Hz"
    if changed := changed_files(noted, task):
        others = f" and {len(changed) - 1} other files" if len(changed) > 1 else ""
        return f"{task / changed[0]}{others} changed"
    return None
