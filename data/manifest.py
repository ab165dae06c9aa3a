"""Reads `manifest.json` of an archive, and says in a sentence what is wrong with one that is not valid."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from audio_mamba.data.samples import ArchiveError

MANIFEST_NAME = "manifest.json"
COUNT = "a whole number of at least 0"


def read_manifest(directory: Path) -> dict | None:
    """The manifest of an archive made by `data.prepare`, or None if there is none.

    Raises:
        ArchiveError: the file is there but is not a manifest, or it contradicts itself.
    """
    path = directory / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_bytes())
        if not isinstance(manifest, dict) or not {"samples", "settings", "shards"} <= manifest.keys():
            raise ValueError("it must hold samples, settings and shards")
    except (OSError, ValueError, RecursionError) as error:
        raise ArchiveError(f"{path} is not a manifest written by `audio-mamba prepare` ({error})") from error
    if problem := _manifest_problem(manifest):
        raise ArchiveError(f"{path} is not valid: {problem}")
    return manifest


def values_by_file(directory: Path, manifest: dict, key: str, numbers: Sequence[int]) -> list[str] | None:
    """The folds or groups of files, of which the manifest of an archive has one each; None if it has none.

    Args:
        key: "folds" or "groups".
        numbers: of the files.

    Raises:
        ArchiveError: the manifest has fewer.
    """
    values = manifest.get(key)
    if values and (files := 1 + max(numbers, default=-1)) > len(values):
        raise ArchiveError(
            f"{directory / MANIFEST_NAME} is not valid: {key} must have a name for each file, got {len(values)} for at "
            f"least {files} files"
        )
    return [values[number] for number in numbers] if values else None


def _manifest_problem(manifest: dict) -> str | None:
    """What is wrong with the form of a manifest, or None. Keys that no command reads may hold anything."""
    for key, (valid, form) in _FORMS.items():
        if key in manifest and not valid(manifest[key]):
            return f"{key} must be {form}, got {_json(manifest[key])}"
    names: set[str] = set()
    for number, entry in enumerate(manifest["shards"], start=1):
        if problem := _entry_problem(entry):
            return f"shard {number}: {problem}"
        if entry["name"] in names:
            return f"shard {number}: {entry['name']} is listed twice"
        names.add(entry["name"])
    for key in ("folds", "groups"):
        if {key, "files"} <= manifest.keys() and len(manifest[key]) != manifest["files"]:
            return f"{key} must have a name for each file, got {len(manifest[key])} for {manifest['files']} files"
    stated, total = manifest["samples"], sum(entry["samples"] for entry in manifest["shards"])
    if stated != total:
        return f"samples is {stated}, but the samples of its shards add up to {total}"
    return None


def _entry_problem(entry: object) -> str | None:
    """What is wrong with the entry of one shard, or None."""
    if not isinstance(entry, dict):
        return f"must be an object, got {_json(entry)}"
    name, checksums = entry.get("name"), entry.get("sha256", {})
    if not _is_file_name(name):
        return f"name must be the name of a file, got {_json(name)}"
    if not _is_count(entry.get("samples")):
        return f"samples must be {COUNT}, got {_json(entry.get('samples'))}"
    if not isinstance(checksums, dict) or not all(
        _is_file_name(file) and isinstance(checksum, str) for file, checksum in checksums.items()
    ):
        return f"sha256 must hold a checksum for each file name, got {_json(checksums)}"
    return None


def _is_file_name(name: object) -> bool:
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) < 256
    except UnicodeEncodeError:  # half a character
        return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_skipped_files(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, dict) and {"file", "reason"} <= entry.keys() for entry in value
    )


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "samples": (_is_count, COUNT),
    "hours": (_is_number, "a number"),
    "files": (_is_count, COUNT),
    "files_skipped": (_is_count, COUNT),
    "settings": (lambda value: isinstance(value, dict), "an object"),
    "labels": (_are_names, "a list of names"),
    "folds": (_are_names, "a list of names"),
    "groups": (_are_names, "a list of names"),
    "shards": (lambda value: isinstance(value, list), "a list"),
    "skipped": (_are_skipped_files, "a list of objects with file and reason"),
}


def _json(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
