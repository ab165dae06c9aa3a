"""What a run of `data.prepare` has to do and how far it is, as files in its OUT_DIR, so that it can be stopped at any
moment, resumed later, and shared by several machines.

    unfinished                  while the archive is not complete: settings, inputs and plan
    shard-000007.tar            with its .index.npz; there whole or not at all
    shard-000007.report.json    written after them: the shard is finished
    manifest.json               made of all reports, which go then: the archive is complete
"""

import dataclasses
import hashlib
import json
import logging
import math
from pathlib import Path

from tqdm import tqdm

from audio_mamba.data.archives import SHARD_PATTERN, UNFINISHED_NAME, warn_of_unlisted, write_manifest
from audio_mamba.data.audio import CHANNELS_OR_EACH, estimated_seconds, fingerprint
from audio_mamba.data.manifest import MANIFEST_NAME, read_manifest
from audio_mamba.data.shard_index import index_path
from audio_mamba.front_end import NORMALISATION, PUBLISHED, FrontEnd
from audio_mamba.system.atomic_files import atomic_write, remove_partials
from audio_mamba.system.shares import Share

CLIP_SECONDS = 10.0
SHARD_SIZE = 512  # clips; about 80 MB as float16
DTYPES = ("float16", "float32")
FORMATS = ("npy", "pickle")

logger = logging.getLogger(__name__)


class PrepareError(ValueError):
    """The archive cannot be made as asked; the message says why."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the bytes of the shards depend on, besides the audio."""

    dtype: str = "float16"
    clip_seconds: float = CLIP_SECONDS
    shard_size: int = SHARD_SIZE
    format: str = "npy"
    front_end: FrontEnd = PUBLISHED
    channel: str = "mix"  # or left or right (see `data.audio.stream_audio`), or each: a series of clips per channel

    def __post_init__(self):
        if self.channel not in CHANNELS_OR_EACH:
            raise PrepareError(f"channel is {self.channel!r}; accepted are {', '.join(CHANNELS_OR_EACH)}")
        if self.dtype not in DTYPES:
            raise PrepareError(f"dtype is {self.dtype!r}; accepted are {' and '.join(DTYPES)}")
        if self.format not in FORMATS:
            raise PrepareError(f"format is {self.format!r}; accepted are {' and '.join(FORMATS)}")
        if not math.isfinite(self.clip_seconds) or self.clip_samples < self.front_end.min_samples:
            least = self.front_end.min_samples / self.front_end.sample_rate
            raise PrepareError(f"clip_seconds must be finite and at least {least:.4f}, got {self.clip_seconds}")
        if self.shard_size < 1:
            raise PrepareError(f"shard_size must be at least 1, got {self.shard_size}")

    @property
    def clip_samples(self) -> int:
        return round(self.clip_seconds * self.front_end.sample_rate)


@dataclasses.dataclass(frozen=True)
class AudioFile:
    number: int  # its place among all files, which makes its keys unique
    path: Path
    label_ids: tuple[int, ...]


@dataclasses.dataclass
class ShardReport:
    """What became of the files of one shard."""

    name: str
    samples: int = 0
    audio_samples: int = 0
    skipped: list[dict] = dataclasses.field(default_factory=list)  # file, reason, clips_kept
    checksums: dict[str, str] = dataclasses.field(default_factory=dict)  # file name -> SHA-256
    versions: str = ""  # of the files, see `versions_of`; empty in reports of earlier versions


@dataclasses.dataclass
class Job:
    """A run that has something to do: which files make which shard."""

    out_dir: Path
    described: dict
    plan: list[list[AudioFile]]

    def path(self, shard: int) -> Path:
        return self.out_dir / SHARD_PATTERN.format(shard)

    def unfinished(self, share: Share) -> list[int]:
        """The shards of one share that are still to be made; whatever is left of an attempt at them is removed."""
        own = share.every(range(len(self.plan)))
        checked = tqdm(own, desc="checking", unit="shard", delay=2, leave=False)
        changed = {i for i in checked if _report_path(self.path(i)).exists() and self._has_changed(i)}
        if changed:
            logger.warning("%d finished shards are made again, since some of their files have changed", len(changed))
        shards = [i for i in own if i in changed or not _report_path(self.path(i)).exists()]
        if shards and read_manifest(self.out_dir) is not None:
            return []  # another process has completed the archive meanwhile; the reports are gone, the shards are not
        left = [path for shard in map(self.path, shards) for path in (shard, index_path(shard), _report_path(shard))]
        remove_partials(*left)
        for path in left:
            path.unlink(missing_ok=True)
        return shards

    def _report(self, shard: int) -> ShardReport:
        return ShardReport(**json.loads(_report_path(self.path(shard)).read_bytes()))

    def _has_changed(self, shard: int) -> bool:
        try:
            versions = self._report(shard).versions
        except FileNotFoundError:
            return False  # another process has completed the archive meanwhile
        return versions not in ("", versions_of(self.plan[shard]))

    def merge(self, labels: list[str], columns: dict[str, list[str]] | None = None) -> dict | None:
        """The manifest, written from the reports of all shards; None where some are not there yet.

        columns: "folds" and "groups", where they are known, with an entry per file.
        """
        try:
            reports = [
                self._report(i) for i in tqdm(range(len(self.plan)), desc="merging", unit="shard", delay=2, leave=False)
            ]
        except FileNotFoundError:
            return read_manifest(self.out_dir)  # another process may have been faster
        skipped = [entry for report in reports for entry in report.skipped]
        manifest = {
            "samples": sum(report.samples for report in reports),
            "hours": round(sum(report.audio_samples for report in reports) / self.described["sample_rate"] / 3600, 6),
            "files": sum(map(len, self.plan)),
            "files_skipped": len(skipped),
            "settings": self.described,
            "labels": labels,
            **(columns or {}),
            "shards": [
                {"name": report.name, "samples": report.samples, "sha256": report.checksums}
                for report in reports
                if report.samples
            ],
            "skipped": skipped,
        }
        if manifest["samples"]:
            try:
                write_manifest(self.out_dir, manifest)
            except FileNotFoundError:
                # Another process merged the same reports meanwhile, and its cleaning took the file that this one wrote.
                if read_manifest(self.out_dir) != manifest:
                    raise
        remove_scaffold(self.out_dir)
        return manifest


def versions_of(files: list[AudioFile]) -> str:
    """Changes when one of the files is written again: a digest of their sizes and times."""
    versions = [fingerprint(file.path) if file.path.exists() else None for file in files]
    return hashlib.sha256(repr([version and tuple(version) for version in versions]).encode()).hexdigest()[:16]


def write_report(shard: Path, report: ShardReport) -> None:
    """Mark a shard as finished."""
    with atomic_write(_report_path(shard)) as file:
        file.write(json.dumps(dataclasses.asdict(report), ensure_ascii=False).encode())


def remove_scaffold(out_dir: Path) -> None:
    """Remove what only an unfinished archive needs."""
    for path in [*out_dir.glob("shard-*.report.json"), out_dir / UNFINISHED_NAME]:
        path.unlink(missing_ok=True)
    remove_partials(out_dir / UNFINISHED_NAME, out_dir / MANIFEST_NAME)


def _report_path(shard: Path) -> Path:
    return shard.with_suffix(".report.json")


def describe(
    settings: Settings,
    files: list[AudioFile],
    labels: list[tuple[str, ...]],
    vocabulary: list[str],
    audio_dir: Path,
    columns: dict[str, list[str]],
) -> dict:
    """What the archive follows from, as the manifest keeps it; of the audio, the paths and sizes of its files."""
    inputs = hashlib.sha256()
    for file, names in zip(tqdm(files, desc="looking at files", unit="file", delay=2, leave=False), labels):
        # A dangling link has only its own size; the worker that reads it reports it.
        size = (file.path.stat() if file.path.exists() else file.path.lstat()).st_size
        line = (file.path.relative_to(audio_dir).as_posix(), size, names)
        inputs.update(repr(line).encode())
    described = dataclasses.asdict(settings)
    front_end = described.pop("front_end")  # at the same level, as in every archive so far
    described |= {key: value for key, value in front_end.items() if key not in NORMALISATION}
    return described | {
        "inputs_sha256": inputs.hexdigest(),
        "labels_sha256": _digest_of_names(vocabulary),
        **{f"{name}_sha256": _digest_of_names(values) for name, values in columns.items()},
    }


def _digest_of_names(names: list[str]) -> str:
    return hashlib.sha256(repr(names).encode()).hexdigest()


def finished_archive(out_dir: Path, described: dict) -> dict | None:
    """The manifest where out_dir holds the archive described, complete; None where it holds no complete one.

    Raises:
        PrepareError: it holds another archive, or has lost shards.
    """
    manifest = read_manifest(out_dir)
    if manifest is None:
        return None
    if absent := {"labels", "hours", "files", "files_skipped", "skipped"} - manifest.keys():
        raise PrepareError(f"{out_dir / MANIFEST_NAME} lacks {', '.join(sorted(absent))}; choose another folder")
    warn_of_unlisted(out_dir, manifest)
    order = {"labels_sha256": _digest_of_names(manifest["labels"])}  # which earlier versions did not note
    _refuse_other(out_dir, "an archive", order | manifest["settings"], described)
    missing = [entry["name"] for entry in manifest["shards"] if not (out_dir / entry["name"]).exists()]
    if missing:
        raise PrepareError(
            f"{out_dir} has lost {len(missing)} of its shards, the first {missing[0]}; "
            "remove the folder and prepare it again"
        )
    return manifest


def start_or_resume(out_dir: Path, described: dict, files: list[AudioFile], settings: Settings) -> Job | None:
    """The job of an out_dir that is not complete; None where the other processes have just completed it.

    Every process that finds no plan makes one, since they are the same: none waits for another that may have failed.

    Raises:
        PrepareError: out_dir holds shards of somebody else, or an unfinished archive of another description.
    """
    job_file = out_dir / UNFINISHED_NAME
    if not job_file.exists():
        _begin(out_dir, described, files, settings)
    try:
        job = json.loads(job_file.read_bytes())
        first_files = job["first_files"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise PrepareError(
            f"{job_file} is not what `audio-mamba prepare` writes; remove {out_dir} and start again"
        ) from error
    order = {"labels_sha256": described["labels_sha256"]}  # as above; here nothing tells
    _refuse_other(out_dir, "an unfinished archive", order | job["settings"], described)
    return Job(out_dir, described, [files[a:b] for a, b in zip(first_files, [*first_files[1:], len(files)])])


def _begin(out_dir: Path, described: dict, files: list[AudioFile], settings: Settings) -> None:
    def others_were_faster() -> bool:
        return (out_dir / UNFINISHED_NAME).exists() or (out_dir / MANIFEST_NAME).exists()

    if any(out_dir.glob("*.tar")) and not others_were_faster():
        raise PrepareError(f"{out_dir} holds tar files that `audio-mamba prepare` did not make; choose another folder")
    job = {"settings": described, "first_files": plan_shards(files, settings)}
    if not others_were_faster():
        with atomic_write(out_dir / UNFINISHED_NAME) as file:
            file.write(json.dumps(job).encode())


def _refuse_other(out_dir: Path, what: str, found: dict, described: dict) -> None:
    words = {
        "inputs_sha256": "files or labels of files",
        "labels_sha256": "order of labels",
        "folds_sha256": "folds",
        "groups_sha256": "groups",
    }
    found = {"channel": "mix"} | found  # which earlier versions did not note
    keys = [*described, *(key for key in ("folds_sha256", "groups_sha256") if key in found and key not in described)]
    differing = [words.get(key, key) for key in keys if found.get(key) != described.get(key)]
    if differing:
        raise PrepareError(
            f"{out_dir} already holds {what} made with other {', '.join(differing)}; choose another folder or remove it"
        )


def plan_shards(files: list[AudioFile], settings: Settings) -> list[int]:
    """Deal files out in order; a shard is full when the headers promise `shard_size` clips. A file is never split.

    Returns:
        the number of the first file of each shard.
    """
    first_files, clips = [0], 0
    for file in tqdm(files, desc="planning", unit="file", delay=2, leave=False):
        if clips >= settings.shard_size:
            first_files.append(file.number)
            clips = 0
        clips += max(1, round(estimated_seconds(file.path) / settings.clip_seconds))
    return first_files
