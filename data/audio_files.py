"""Which files below a folder are audio, by their suffixes; which are hidden, and which links dangle."""

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

AUDIO_SUFFIXES = {
    *(".wav", ".wave", ".bwf", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aiff", ".aif", ".aifc"),
    *(".m4a", ".m4b", ".aac", ".mp4", ".mov", ".3gp", ".webm", ".mka", ".mkv", ".wma", ".wmv", ".avi", ".amr", ".caf"),
    *(".au", ".snd", ".w64", ".ape", ".wv", ".tta", ".mpc", ".ac3", ".eac3", ".dts", ".awb", ".voc", ".sph"),
}
# Of recordings that neither decoder reads, or that are not sound alone.
OTHER_SUFFIXES = {
    ".aax",
    ".dff",
    ".dsf",
    ".dss",
    ".flv",
    ".m4p",
    ".m4v",
    ".mid",
    ".mpg",
    ".ra",
    ".rm",
    ".shn",
    ".tak",
    ".ts",
}
# Of an OSError: what is wrong with the storage, the network or the machine, not with a file.
STORAGE_ERRORS = {
    *("EIO", "ESTALE", "ENODEV", "ENXIO", "EREMOTEIO", "EMFILE", "ENFILE", "ENOMEM", "ETIMEDOUT", "ENOTCONN"),
    *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ECONNRESET", "ECONNABORTED"),
}
SYSTEM_FOLDERS = {"@eadir", "__macosx", "$recycle.bin", "system volume information", "lost+found", "#recycle"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


class AudioError(ValueError):
    """An audio file or folder that cannot be used; the message names it and says why."""


class AudioFileError(AudioError):
    """An audio file that cannot be used: `path` names it, and `reason` says why."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class StorageError(AudioFileError):
    """An audio file that cannot be read since the storage or the machine fails; the file itself may be whole."""


class UnexpectedAudioError(ValueError):
    """Reading an audio file failed for an unforeseen reason. The message names the file; the cause is the original
    exception. It is not an AudioError: the file may be whole, so it must not be skipped like a damaged one."""


class Fingerprint(NamedTuple):
    """What changes when a file is written again."""

    size: int  # in bytes
    mtime_ns: int


class Listing(NamedTuple):
    """The audio below a folder, and what is not part of it."""

    files: list[Path]  # sorted; with the dangling links
    others: list[Path]  # recordings of other formats, OTHER_SUFFIXES
    hidden: list[Path]  # files and whole folders that were left out
    dangling: list[Path]  # links whose target is missing, such as annexed files that were not fetched


def fingerprint(path: str | Path) -> Fingerprint:
    """Size and time of a file, to see whether it is still the same. OSError where it is missing."""
    status = os.stat(path)
    return Fingerprint(status.st_size, status.st_mtime_ns)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to the system: .Trash-1000, ._a.wav, @eaDir, __MACOSX."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS | SYSTEM_FILES


def find_audio(directory: str | Path, hidden: bool = False) -> list[Path]:
    """All audio files below a folder (AUDIO_SUFFIXES, any letter case), sorted by path.

    Links are followed. Folders that cannot be read are left out with a warning; so are files in folders that may not be
    entered, and recordings of other formats (OTHER_SUFFIXES), with one for all of each kind. Hidden, trash and system
    files and folders are counted in one line of the log. Dangling links are among the files, with a warning, so that
    reading names them like other files that cannot be read.

    Args:
        hidden: take hidden, trash and system files and folders too.

    Raises:
        AudioError: the folder does not exist, or holds no such file.
    """
    directory = Path(directory)
    listing = list_audio_below(directory, hidden)
    accepted = f"accepted: {' '.join(sorted(AUDIO_SUFFIXES))}"
    left_out = []
    for what, paths in (
        ("hidden or system files and folders", listing.hidden),
        ("recordings of other formats", listing.others),
    ):
        if paths:
            advice = "; --hidden takes them" if paths is listing.hidden else ""
            left_out.append(f"left out {what}: {len(paths)}, the first is {printable(paths[0])}{advice}")
    if not listing.files:
        raise AudioError(f"no audio found below {directory} ({'; '.join([*left_out, accepted])})")
    for note in left_out:
        logger.warning("%s", note)
    if listing.dangling:
        logger.warning(
            "dangling links: %d (were their files fetched?), the first is %s",
            len(listing.dangling),
            printable(listing.dangling[0]),
        )
    return listing.files


def list_audio_below(directory: Path, hidden: bool = False) -> Listing:
    """See `find_audio`; says nothing in the log except of folders and files that cannot be read."""
    if not directory.is_dir():
        raise AudioError(f"{directory} is not a folder of audio files")
    left_out: list[Path] = []
    below = _files_below(directory, None if hidden else left_out)
    recordings = (path for path in below if path.suffix.lower() in AUDIO_SUFFIXES | OTHER_SUFFIXES)
    found, dangling = files_and_dangling(recordings)
    others = [path for path in found if path.suffix.lower() in OTHER_SUFFIXES]
    files = [path for path in found if path.suffix.lower() in AUDIO_SUFFIXES]
    return Listing(sorted(files + dangling), sorted(others), sorted(left_out), sorted(dangling))


def files_and_dangling(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Which of some existing paths are files, and which are dangling links; folders and the like are neither. Those
    that cannot be looked at are left out, with one warning for all of them."""
    files: list[Path] = []
    dangling: list[Path] = []
    unreadable: list[tuple[Path, str | None]] = []
    for path in paths:
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                files.append(path)
        except OSError as error:
            if os.path.islink(path) and not isinstance(error, PermissionError):
                dangling.append(path)
            else:
                unreadable.append((path, error.strerror))
    if unreadable:
        first, reason = unreadable[0]
        logger.warning(
            "left out files that cannot be read: %d, the first is %s (%s)", len(unreadable), printable(first), reason
        )
    return files, dangling


def _files_below(directory: Path, left_out: list[Path] | None) -> Iterator[Path]:
    """All files; hidden ones and hidden folders go to `left_out`, where there is such a list."""

    def warn(error: OSError) -> None:
        logger.warning("%s: left out, it cannot be read (%s)", error.filename, error.strerror)

    for folder, folders, names in os.walk(directory, onerror=warn, followlinks=True):
        if left_out is not None:
            left_out += [Path(folder, name) for name in folders if is_hidden(name)]
            left_out += [
                Path(folder, name)
                for name in names
                if is_hidden(name) and os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES
            ]
            folders[:] = [name for name in folders if not is_hidden(name)]
            names = [name for name in names if not is_hidden(name)]
        folders[:] = [name for name in folders if not leads_back(Path(folder, name))]
        yield from (Path(folder, name) for name in names)


def leads_back(folder: Path) -> bool:
    """Whether a link to a folder leads to one that contains it, and so round and round."""
    # Of a folder that may not be looked at, this is False, and os.walk says that it cannot be read.
    return os.path.islink(folder) and any(parent.samefile(folder) for parent in folder.absolute().parents)


def printable(path: str | Path) -> str:
    """A path with / between its parts, as text for any file or terminal: bytes that are not UTF-8 become \\xff."""
    return os.fsencode(Path(path).as_posix()).decode(errors="backslashreplace")
