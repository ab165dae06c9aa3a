"""Select clips of up to ten seconds from the fetched packages: balanced by kind, without silence and duplicates.

    python -m experiments.free_audio.select_clips AUDIO CLIPS

Writes CLIPS/{train,validation}/<kind>/<package>/*.flac (16 kHz, mono), the table CLIPS/clips.csv, and hours and
licences to CLIPS/packages.md. A package is in one split only. The same audio always gives the same clips.

    python -m experiments.free_audio.select_clips AUDIO CLIPS --packages A.csv --packages B.csv --clips-per-kind all

takes all clips of the training packages, but from no kind more than twice the hours of the scarcest kind.
"""

import argparse
import csv
import logging
import shutil
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import soundfile
import torch
from tqdm import tqdm

from audio_mamba.data.audio import AudioError, find_audio, load_audio
from audio_mamba.data.features import log_mel
from audio_mamba.front_end import PUBLISHED
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.machine import usable_cores
from experiments.free_audio.packages import KINDS, SPLITS, TABLE, Package, add_tables_option, kind_of, read_packages

CLIP_SECONDS, SHORTEST_SECONDS = 10, 1
QUIETEST_DB = -55.0  # level of the whole clip, 0 dB is a full square wave
SAME = 0.98  # clips whose fingerprints correlate more than this count as duplicates
FINGERPRINT = (16, 16)  # cells of time x mel bands
COMPARED_AT_ONCE = 1024  # candidates, when looking for duplicates
CLIPS_PER_KIND = {"train": 1067, "validation": 100}
MOST_HOURS = 2.0  # of a kind, in multiples of the scarcest kind, where the number of clips is not limited
LEFT_OUT = "left_out.txt"  # beside a table: files to exclude, relative to AUDIO; lines that start with # are comments

logger = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A segment of a file that may become a clip; start and length in samples at 16 kHz, level in dB."""

    package: Package
    kind: str
    path: Path
    start: int
    length: int
    level: float
    fingerprint: np.ndarray  # float32 [256], of norm 1


def fingerprint(audio: np.ndarray) -> np.ndarray:
    """The coarse shape of a log-mel spectrogram, regardless of its level: float32 [256] with mean 0 and norm 1."""
    spectrogram = log_mel(torch.from_numpy(audio)[None])  # [1, frames, 80]
    cells = torch.nn.functional.adaptive_avg_pool2d(spectrogram, FINGERPRINT).flatten()  # [256]
    cells = cells - cells.mean()
    return (cells / cells.norm().clamp_min(1e-6)).numpy()


def candidates_of(package: Package, path: Path) -> tuple[list[Candidate], str | None]:
    """The segments of one file, and the reason if the file cannot be read."""
    torch.set_num_threads(1)
    try:
        audio = load_audio(path)
    except AudioError as error:
        return [], str(error)
    kind = kind_of(package, path, len(audio) / PUBLISHED.sample_rate)
    found = []
    for start in range(0, len(audio), CLIP_SECONDS * PUBLISHED.sample_rate):
        clip = audio[start : start + CLIP_SECONDS * PUBLISHED.sample_rate]
        if len(clip) >= SHORTEST_SECONDS * PUBLISHED.sample_rate:
            level = 10 * np.log10(np.mean(clip.astype(np.float64) ** 2) + 1e-12)
            found.append(Candidate(package, kind, path, start, len(clip), float(level), fingerprint(clip)))
    return found, None


def without_silence(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that are louder than QUIETEST_DB."""
    return [candidate for candidate in candidates if candidate.level > QUIETEST_DB]


def without_duplicates(candidates: list[Candidate]) -> list[Candidate]:
    """The first of each set of duplicates: lengths within 5%, and fingerprints that correlate more than SAME."""
    prints = np.stack([candidate.fingerprint for candidate in candidates])  # [n, 256]
    lengths = np.array([candidate.length for candidate in candidates])

    def same(one: np.ndarray, other: np.ndarray) -> np.ndarray:  # indices [m] and [n] -> [m, n]
        near = np.abs(lengths[one, None] - lengths[other]) <= 0.05 * lengths[other]
        return near & (prints[one] @ prints[other].T > SAME)

    kept = np.array([], dtype=int)
    for start in range(0, len(candidates), COMPARED_AT_ONCE):
        block = np.arange(start, min(start + COMPARED_AT_ONCE, len(candidates)))
        block = block[~same(kept, block).any(axis=0)]
        among = same(block, block)
        new: list[int] = []
        for i in range(len(block)):
            if not among[new, i].any():
                new.append(i)
        kept = np.concatenate([kept, block[new]])
    return [candidates[i] for i in kept]


def balanced(candidates: list[Candidate], count: int | None, rng: np.random.Generator) -> list[Candidate]:
    """Clips of each kind, taken from its packages in turn, so that no package dominates.

    Args:
        count: of clips of a kind at most; None for all, up to MOST_HOURS times the hours of the scarcest kind.
    """
    orders = [in_turns([candidate for candidate in candidates if candidate.kind == kind], rng) for kind in KINDS]
    if count is None:
        ends = [np.cumsum([candidate.length for candidate in order]) for order in orders]
        most = MOST_HOURS * min((end[-1] for end in ends if len(end)), default=0)
        counts = [int((end <= most).sum()) for end in ends]
    else:
        counts = [count] * len(orders)
    return [candidate for order, n in zip(orders, counts) for candidate in order[:n]]


def in_turns(candidates: list[Candidate], rng: np.random.Generator) -> list[Candidate]:
    """All candidates: one of each package, then another of each, and so on. A package's own are in random order."""
    queues: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        queues.setdefault(candidate.package.name, []).append(candidate)
    for name in queues:
        queues[name] = [queues[name][i] for i in rng.permutation(len(queues[name]))]
    order: list[Candidate] = []
    while any(queues.values()):
        order += [queue.pop() for queue in queues.values() if queue]
    return order


def write_clips(path: Path, clips: list[tuple[int, str, Candidate]], out: Path) -> list[dict]:
    """Write the clips (number, split, candidate) of one file; return their rows of clips.csv."""
    audio, rows = load_audio(path), []
    for number, split, clip in clips:
        name = Path(split) / clip.kind / clip.package.name / f"{number:05d}-{path.stem}.flac"
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(out / name, np.clip(audio[clip.start : clip.start + clip.length], -1, 1), PUBLISHED.sample_rate)
        rows.append(
            {
                "file": name,
                "split": split,
                "kind": clip.kind,
                "package": clip.package.name,
                "seconds": round(clip.length / PUBLISHED.sample_rate, 2),
                "level_db": round(clip.level, 1),
            }
        )
    return rows


def hours_table(clips: pd.DataFrame, packages: list[Package]) -> str:
    """A Markdown table of the clips, hours, split and licence of each package."""
    licences = {package.name: package.licence for package in packages}
    groups = clips.groupby(["split", "kind", "package"], sort=True).seconds.agg(["size", "sum"])
    lines = ["| split | kind | package | clips | hours | licence |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {split} | {kind} | {package} | {size} | {seconds / 3600:.2f} | {licences[package]} |"
        for (split, kind, package), (size, seconds) in zip(groups.index, groups.itertuples(index=False))
    ]
    for split in SPLITS:
        some = clips[clips.split == split]
        lines.append(f"| **{split}** | | | {len(some)} | {some.seconds.sum() / 3600:.2f} | |")
    return "\n".join(lines) + "\n"


def select_clips(
    audio_dir: Path,
    out: Path,
    workers: int,
    tables: Sequence[Path] = (TABLE,),
    clips_per_kind: int | None = CLIPS_PER_KIND["train"],
) -> None:
    """Select and write the clips of the packages of some tables.

    Args:
        clips_per_kind: of the training split; None for all, see `balanced`. The validation split is always the same.

    Raises:
        ValueError: nothing was fetched, `out` exists, or a table is not valid.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; remove it or choose another name")
    packages = [package for package in read_packages(tables) if (audio_dir / package.name).is_dir()]
    if not packages:
        raise ValueError(f"{audio_dir} has none of the packages; run experiments.free_audio.fetch first")
    lists = [path for table in tables if (path := table.with_name(LEFT_OUT)).exists()]
    left_out = {
        audio_dir / line for path in lists for line in path.read_text().splitlines() if not line.startswith("#")
    }
    files = [
        (package, path) for package in packages for path in find_audio(audio_dir / package.name) if path not in left_out
    ]
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)  # an interrupted run may have selected other clips
    with ProcessPoolExecutor(workers) as pool:
        read = list(
            tqdm(pool.map(candidates_of, *zip(*files), chunksize=8), total=len(files), desc="reading", unit="file")
        )
        for reason in filter(None, (reason for _, reason in read)):
            logger.warning("skipping %s", reason)
        found = [candidate for some, _ in read for candidate in some]
        loud = without_silence(found)
        single = without_duplicates(loud)
        chosen = [
            (split, clip)
            for split in SPLITS
            for clip in balanced(
                [clip for clip in single if clip.package.split == split],
                clips_per_kind if split == "train" else CLIPS_PER_KIND[split],
                np.random.default_rng(0),
            )
        ]
        of_file: dict[Path, list[tuple[int, str, Candidate]]] = {}
        for number, (split, clip) in enumerate(chosen):
            of_file.setdefault(clip.path, []).append((number, split, clip))
        written = list(
            tqdm(
                pool.map(write_clips, of_file, of_file.values(), [partial] * len(of_file)),
                total=len(of_file),
                desc="writing",
                unit="file",
            )
        )
    table = pd.DataFrame(row for rows in written for row in rows).sort_values("file", key=lambda file: file.map(str))
    with atomic_write(partial / "clips.csv") as file:
        file.write(table.to_csv(index=False, quoting=csv.QUOTE_MINIMAL).encode())
    with atomic_write(partial / "packages.md") as file:
        file.write(hours_table(table, packages).encode())
    partial.rename(out)
    print(
        f"{out}: {len(table)} clips, {table.seconds.sum() / 3600:.2f} hours, from {len(found)} candidates; "
        f"dropped {len(found) - len(loud)} near silence and {len(loud) - len(single)} near-duplicates"
    )


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a positive number or 'all', got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.free_audio.select_clips", description=__doc__.splitlines()[0]
    )
    parser.add_argument("audio_dir", metavar="AUDIO", type=Path, help="output of experiments.free_audio.fetch")
    parser.add_argument("out", metavar="CLIPS", type=Path, help="folder to create")
    add_tables_option(parser)
    parser.add_argument(
        "--clips-per-kind",
        metavar="N",
        type=_count,
        default=CLIPS_PER_KIND["train"],
        help="clips of each kind for training at most, or 'all': all of them, up to twice the hours of the scarcest "
        "kind (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes (default: %(default)s)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="select_clips: %(message)s")
    try:
        select_clips(args.audio_dir, args.out, args.workers, args.tables or [TABLE], args.clips_per_kind)
    except KeyboardInterrupt:
        sys.exit(130)
    except (ValueError, OSError) as error:
        raise SystemExit(f"select_clips: {error}")


if __name__ == "__main__":
    main()
