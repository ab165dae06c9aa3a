"""What training data hold, to tell whether a resumed run, and each process of a run, reads the same data.

A folder may be renamed or copied. What counts is the order of the shards, their file names, the numbers of their
samples and their bytes: the checksum of the manifest, and the short digest of the file as it is now.
"""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from audio_mamba.data.manifest import read_manifest
from audio_mamba.data.shard_index import short_digest


class ShardContents(NamedTuple):
    """One shard. What is not known is empty, and matches anything."""

    name: str  # of the file, without its folder
    samples: int | None  # that can be used; None for a remote shard
    digest: str  # size, and short digest of the first and last 64 KiB
    checksum: str  # of the whole file, from the manifest

    def difference(self, expected: "ShardContents") -> str | None:
        """How this shard differs from `expected`; None if it is the same."""
        if self.name != expected.name:
            return f"{self.name} instead of {expected.name}"
        if self.samples != expected.samples:
            return f"{self.name} has {self.samples} samples instead of {expected.samples}"
        pairs = ((self.digest, expected.digest), (self.checksum, expected.checksum))
        return f"{self.name} has other content" if any(a and b and a != b for a, b in pairs) else None


@dataclass(frozen=True)
class Contents:
    """The samples of all shards together, and the shards in order."""

    samples: int
    shards: list[ShardContents]

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Contents":
        """Restore a `state`."""
        return cls(state["samples"], [ShardContents(*shard) for shard in state["shards"]])

    def state(self) -> dict[str, Any]:
        """As builtins, for a checkpoint."""
        return {"samples": self.samples, "shards": [list(shard) for shard in self.shards]}

    def digest(self) -> str:
        """SHA-256 of everything, in hex digits."""
        return hashlib.sha256(repr(self.state()).encode(errors="surrogateescape")).hexdigest()

    def difference(self, expected: "Contents") -> str | None:
        """How these data differ from `expected`, up to the first shard that does; None if they are the same."""
        first = None
        for shard, other in itertools.zip_longest(self.shards, expected.shards):
            if shard is None:
                first = f"no {other.name}"
            elif other is None:
                first = f"{shard.name} is new"
            else:
                first = shard.difference(other)
            if first:
                break
        sizes = f"{self._size()} instead of {expected._size()}" if self._size() != expected._size() else None
        return "; ".join(filter(None, [sizes, first])) or None

    def _size(self) -> str:
        return f"{self.samples} samples in {len(self.shards)} shard(s)"


class LocalContents:
    """The contents of shards on a disk. Reads a shard again only if its size, inode or times have changed.

    Args:
        paths: of the shards, in order.
        samples: of each shard.
    """

    def __init__(self, paths: list[Path], samples: list[int]):
        self._paths, self._samples = paths, samples
        stated = {folder: stated_checksums(folder) for folder in {path.parent for path in paths}}
        self._checksums = [stated[path.parent].get(path.name, "") for path in paths]
        self._seen: dict[Path, tuple[tuple[int, ...], str]] = {}  # what the system says about the file, digest

    def now(self) -> Contents:
        """The contents as they are now. A shard that cannot be read counts as unchanged: its reader reports it."""
        shards = [
            ShardContents(path.name, samples, self._digest(path), checksum)
            for path, samples, checksum in zip(self._paths, self._samples, self._checksums, strict=True)
        ]
        return Contents(sum(self._samples), shards)

    def _digest(self, path: Path) -> str:
        try:
            status = path.stat()
            stamp = status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
            if path not in self._seen or self._seen[path][0] != stamp:
                self._seen[path] = stamp, f"{status.st_size} {short_digest(path)}"
        except OSError:
            pass
        return self._seen[path][1] if path in self._seen else ""


def stated_checksums(folder: Path) -> dict[str, str]:
    """The checksums that the manifest of a folder states, by the name of the shard; "" where it states none."""
    manifest = read_manifest(folder) or {"shards": []}
    return {entry["name"]: entry.get("sha256", {}).get(entry["name"], "") for entry in manifest["shards"]}
