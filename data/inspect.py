"""Shows what is in an archive: counts, hours, labels, lengths, mel statistics, and a picture of random clips.

    audio-mamba inspect ARCHIVE_DIR [--picture FILE.png]

Counts, hours and lengths are those of the whole archive; labels and mel statistics come from random clips.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from audio_mamba.data.archives import archive_front_end, read_sample, shard_indices
from audio_mamba.data.manifest import read_manifest
from audio_mamba.data.samples import ArchiveError, Sample
from audio_mamba.data.shard_files import ShardFiles
from audio_mamba.system.terminal import given_path, quiet_exit

CLIPS_READ = 500
LABELS_SHOWN = 20
BAR = 40  # characters
PICTURE_ROWS, PICTURE_COLUMNS = 4, 4


class Archive:
    """An archive folder whose samples are numbered in order."""

    def __init__(self, directory: Path):
        self.problems: list[str] = []
        self.shards = shard_indices(directory, lambda path, problem, lost: self.problems.append(problem))
        manifest = read_manifest(directory)
        self.frames_per_second = archive_front_end(directory).frames_per_second
        self.labels = manifest.get("labels", []) if manifest else []
        self._first = np.cumsum([0] + [len(index) for _, index in self.shards])

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, numbers: np.ndarray) -> Iterator[Sample]:
        """The samples with these numbers, in order. Bad ones are left out and added to `problems`."""
        files = ShardFiles()
        for number in np.sort(numbers):
            shard = int(np.searchsorted(self._first, number, side="right")) - 1
            path, index = self.shards[shard]
            place = number - self._first[shard]
            try:
                yield read_sample(files, path, index.keys[place].decode(errors="replace"), index.places[place])
            except ArchiveError as error:
                self.problems.append(str(error))

    def indexed_frames(self) -> np.ndarray | None:
        """The number of frames of every clip, int [n], from the indexes; None if a shard has no index."""
        frames = np.concatenate([index.places["frames"] for _, index in self.shards])
        return frames if frames.all() else None

    def label_name(self, label: int) -> str:
        return self.labels[label] if 0 <= label < len(self.labels) else str(label)


def describe(archive: Archive, samples: list[Sample]) -> str:
    """The report in words and bars, from the indexes and the samples read."""
    indexed = archive.indexed_frames()
    known = indexed is not None
    frames = np.array([len(sample.spectrogram) for sample in samples]) if indexed is None else indexed
    hours = frames.mean() * len(archive) / archive.frames_per_second / 3600
    of = f"of {len(samples)} clips" if len(samples) < len(archive) else "of all clips"
    parts = [f"{len(archive)} clips in {len(archive.shards)} shards, {'' if known else 'about '}{hours:.2f} hours"]

    seconds = frames / archive.frames_per_second
    counts, edges = np.histogram(seconds, bins=min(10, len(np.unique(seconds))))
    parts.append(
        f"length, s (mean {seconds.mean():.2f})\n"
        + _bars([(f"{low:.2f} to {high:.2f}", count) for low, high, count in zip(edges, edges[1:], counts)])
    )

    labels = Counter(archive.label_name(label) for sample in samples for label in sample.labels.tolist())
    if labels:
        parts.append(f"labels, {len(labels)} different ({of})\n" + _bars(labels.most_common(LABELS_SHOWN)))
        if len(labels) > LABELS_SHOWN:
            parts[-1] += f"\n    and {len(labels) - LABELS_SHOWN} more"
    unlabelled = sum(not len(sample.labels) for sample in samples)
    if unlabelled:
        parts.append(f"{unlabelled} {of} have no label")

    bands = np.concatenate([sample.spectrogram.astype(np.float32) for sample in samples])  # [frames, mels]
    table = [
        f"    {band:4d} {bands[:, band].mean():8.2f} {bands[:, band].std():8.2f} {bands[:, band].min():8.2f} "
        f"{bands[:, band].max():8.2f}"
        for band in np.linspace(0, bands.shape[1] - 1, 6, dtype=int)
    ]
    whole = f"     all {bands.mean():8.2f} {bands.std():8.2f} {bands.min():8.2f} {bands.max():8.2f}"
    parts.append("\n".join([f"log-mel values ({of})", "    band     mean      std      min      max", *table, whole]))
    if archive.problems:
        parts.append(
            f"{len(archive.problems)} problems, the first: {archive.problems[0]}\n    audio-mamba verify lists all"
        )
    return "\n\n".join(parts)


def _bars(counts: list[tuple[str, int]]) -> str:
    widest, most = max(len(name) for name, _ in counts), max(max(count for _, count in counts), 1)
    return "\n".join(f"    {name:<{widest}} {count:8d} {'#' * round(BAR * count / most)}" for name, count in counts)


def save_contact_sheet(path: Path, samples: list[Sample], archive: Archive) -> None:
    """Up to 16 spectrograms, time to the right and low bands at the bottom, with key and labels, as a PNG."""
    figure = Figure(figsize=(4 * PICTURE_COLUMNS, 2.4 * PICTURE_ROWS), layout="constrained")
    for place, sample in enumerate(samples[: PICTURE_ROWS * PICTURE_COLUMNS]):
        axes = figure.add_subplot(PICTURE_ROWS, PICTURE_COLUMNS, place + 1)
        seconds = len(sample.spectrogram) / archive.frames_per_second
        axes.imshow(
            sample.spectrogram.T.astype(np.float32),
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(0, seconds, 0, sample.spectrogram.shape[1]),
        )
        names = ", ".join(archive.label_name(label) for label in sample.labels.tolist())
        axes.set_title(f"{sample.key[:36]}\n{names[:40]}", fontsize=8, parse_math=False)  # $ begins no formula
    FigureCanvasAgg(figure).print_png(str(path))


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.data.inspect") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("archive_dir", metavar="ARCHIVE_DIR", type=given_path, help="folder of shards")
    parser.add_argument(
        "--picture",
        metavar="PNG",
        type=given_path,
        default=Path("contact_sheet.png"),
        help="where to write the picture of random clips",
    )
    parser.add_argument("--clips", type=int, default=CLIPS_READ, help="clips to read for labels and mel statistics")
    parser.add_argument("--seed", type=int, default=0, help="seed that selects the clips")
    args = parser.parse_args(arguments)
    if args.clips < 1:
        raise SystemExit(f"inspect: --clips must be at least 1, got {args.clips}")
    if args.seed < 0:
        raise SystemExit(f"inspect: --seed must not be negative, got {args.seed}")
    try:
        archive = Archive(args.archive_dir)
        rng = np.random.default_rng(args.seed)
        numbers = rng.choice(len(archive), min(args.clips, len(archive)), replace=False)
        samples = list(tqdm(archive.read(numbers), total=len(numbers), desc="reading", unit="clip", delay=2))
        if not samples:
            raise ArchiveError(
                f"no clip of {args.archive_dir} can be read; the first: "
                f"{archive.problems[0] if archive.problems else 'it is empty'}"
            )
        print(describe(archive, samples))
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        save_contact_sheet(args.picture, [samples[i] for i in rng.permutation(len(samples))], archive)
    except BrokenPipeError:  # the reader of the output went away; quiet_exit ends the command
        raise
    except (ArchiveError, OSError) as error:
        raise SystemExit(f"inspect: {error}")
    print(f"\n{args.picture}: random clips")


if __name__ == "__main__":
    with quiet_exit():
        main()
