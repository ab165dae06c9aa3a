"""Does live novelty peak where segments start? A table by sound and overlap.

    python -m experiments.seams TASKS_DIR --out seams.md

Noise is synthetic; music and speech are recordings of HEAR tasks, cut at random and joined, so that their own
beginnings are not tied to the segments. Counted are the steps with the 2% highest novelty: how many of them are the
first of a segment, divided by how many would be by chance. Each interval is a bootstrap over segments.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import audio_mamba
from audio_mamba.data.audio import find_audio, load_audio
from audio_mamba.hear_api.listen import Novelty

STARTS = 500  # of segments, that are measured for each sound and overlap
TOP = 0.02  # of the steps: those with the highest novelty
OVERLAPS = (0.0, 0.25, 0.5)


def noise(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless pieces of white noise."""
    while True:
        yield rng.normal(0, 0.1, 16000).astype(np.float32)


def recordings(task: Path, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless recordings of a task at random, each without a random part of its beginning."""
    files = find_audio(task)
    while True:
        audio = load_audio(files[rng.integers(len(files))])
        yield audio[rng.integers(len(audio) // 3 + 1) :]


def clip(pieces: Iterator[np.ndarray], seconds: float) -> torch.Tensor:
    """Joined pieces at 16 kHz, [n]."""
    samples = round(seconds * 16000)
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < samples:
        parts.append(next(pieces))
    return torch.from_numpy(np.concatenate(parts)[:samples])


def novelties(runtime: audio_mamba.AudioEncoder, audio: torch.Tensor) -> list[np.ndarray]:
    """Novelty of each step [t] with one mean for all steps of a segment, and with one for each (as `listen`
    shows it); and whether a step is the first of a segment. The first segment is left out."""
    ((rows, _),) = runtime.embed(audio, kind="timestamps", output="torch")
    cut = runtime.cut
    places = [cut.place(step) for step in range(len(rows))]
    one, each = Novelty(cut.length), Novelty(cut.length)
    plain = np.array([one(row, 0) for row in rows])
    by_step = np.array([each(row, place) for row, place in zip(rows, places)])
    return [values[cut.length :] for values in (plain, by_step, np.array(places) == cut.before)]


def enrichment(values: np.ndarray, starts: np.ndarray) -> float:
    """The share of starts among the steps with the highest values, divided by that among all steps: 1 is chance."""
    top = np.argsort(-values, kind="stable")[: round(TOP * len(values))]
    return starts[top].mean() / starts.mean()


def enrichment_and_interval(
    values: np.ndarray, starts: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float]:
    """`enrichment`, and the ends of its 95% interval over resampled segments."""
    segments = np.split(np.arange(len(values)), np.flatnonzero(starts)[1:])
    drawn = []
    for _ in range(300):
        chosen = np.concatenate([segments[i] for i in rng.integers(len(segments), size=len(segments))])
        drawn.append(enrichment(values[chosen], starts[chosen]))
    return enrichment(values, starts), *np.quantile(drawn, [0.025, 0.975])


def measure(model: str, tasks: Path) -> Iterator[str]:
    """The lines of the table."""
    yield "| sound | overlap | starts | steps that are starts | one mean | a mean for each step of a segment |"
    yield "| --- | --- | --- | --- | --- | --- |"
    sounds = ["noise", *sorted(task.name for task in tasks.iterdir() if task.is_dir())]
    for sound, overlap in tqdm(list(product(sounds, OVERLAPS))):
        runtime = audio_mamba.load_model(model, device="cpu", layout="bands", overlap=overlap)
        rng = np.random.default_rng(0)
        pieces = noise(rng) if sound == "noise" else recordings(tasks / sound / "16000", rng)
        seconds = ((STARTS + 1) * runtime.cut.stride + runtime.cut.length) * runtime.step_ms / 1000
        *measured, starts = novelties(runtime, clip(pieces, seconds))
        cells = []
        for values in measured:
            ratio, low, high = enrichment_and_interval(values, starts, np.random.default_rng(0))
            cells.append(f"{ratio:.2f} ({low:.2f} to {high:.2f})")
        yield f"| {sound} | {overlap} | {starts.sum()} | {starts.mean():.3f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks_dir", metavar="TASKS_DIR", type=Path)
    parser.add_argument("--model", default="ssam_tiny_free_audio", help="of list_models() (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="file for the table, in Markdown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.write_text("\n".join(measure(args.model, args.tasks_dir)) + "\n")


if __name__ == "__main__":
    main()
