"""Demo audio and a small HEAR task made from nothing, the same for the same seed.

    python -m audio_mamba.data.synthetic OUT_DIR [--minutes 10]

writes OUT_DIR/audio/<kind>/*.wav, ten-second clips of eight kinds of sound, and OUT_DIR/tasks/, a HEAR task to tell the
kinds apart.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from audio_mamba.data.labels import HEAR_METADATA
from audio_mamba.front_end import PUBLISHED
from audio_mamba.system.atomic_files import atomic_write
from audio_mamba.system.terminal import given_path, quiet_exit

SAMPLE_RATE = PUBLISHED.sample_rate
CLIP_SECONDS = 10.0
TASK = "demo_sounds"
SPLIT_CLIPS = {"train": 12, "valid": 6, "test": 8}  # clips of each kind in the demo task
SCALE = np.array([0, 2, 4, 7, 9])  # pentatonic, in semitones

Sound = Callable[[np.random.Generator, float], np.ndarray]


# ---------------------------------------------------------------- kinds of sound: (generator, seconds) -> [n]


def _time(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _repeat(rng: np.random.Generator, seconds: float, period: float, event: Callable[[], np.ndarray]) -> np.ndarray:
    """Mix `event()` in every `period` seconds, and begin at a random moment of the first period."""
    audio = np.zeros(round((seconds + period) * SAMPLE_RATE) + 1)
    for start in np.arange(0, seconds + period, period):
        place = audio[round(start * SAMPLE_RATE) :]
        sound = event()[: len(place)]
        place[: len(sound)] += sound
    first = round(rng.uniform(0, period) * SAMPLE_RATE)
    return audio[first : first + round(seconds * SAMPLE_RATE)]


def _harmonics(frequency: float, seconds: float, decay: float) -> np.ndarray:
    """A plucked note: harmonics that fall by 1/k and fade, `decay` times per second for the first."""
    t = _time(seconds)
    harmonics = (
        np.sin(2 * np.pi * k * frequency * t) * np.exp(-decay * k * t) / k
        for k in range(1, 6)
        if k * frequency < SAMPLE_RATE / 2
    )
    return sum(harmonics, start=np.zeros_like(t))


def _bandpass(noise: np.ndarray, low: float, high: float) -> np.ndarray:
    spectrum = np.fft.rfft(noise)
    hertz = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    return np.fft.irfft(spectrum * ((hertz >= low) & (hertz < high)), len(noise))


def tone(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """One steady note with harmonics."""
    return _harmonics(rng.uniform(110, 880), seconds, decay=0.0)


def chirp_up(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Sweeps that rise by one to three octaves."""
    low, octaves, period = rng.uniform(150, 600), rng.uniform(1, 3), rng.uniform(0.4, 0.9)
    t = _time(0.8 * period)
    phase = low * (2 ** (octaves * t / t[-1]) - 1) * t[-1] / (octaves * np.log(2))
    sweep = np.sin(2 * np.pi * phase) * np.hanning(len(t))
    return _repeat(rng, seconds, period, lambda: sweep)


def chirp_down(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """The same sweeps backwards: only their order in time tells them from `chirp_up`."""
    return chirp_up(rng, seconds)[::-1]


def siren(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A tone whose pitch swings up and down."""
    t = _time(seconds)
    centre, rate, depth = rng.uniform(400, 1200), rng.uniform(0.5, 3), rng.uniform(0.1, 0.4)
    return np.sin(2 * np.pi * centre * t + depth * centre / rate * np.sin(2 * np.pi * rate * t))


def noise_bursts(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Bursts of noise from one band of frequencies."""
    low = rng.uniform(200, 4000)
    length = rng.uniform(0.1, 0.4)

    def burst() -> np.ndarray:
        noise = _bandpass(rng.standard_normal(len(_time(length))), low, 1.8 * low)
        return 2 * noise * np.hanning(len(noise))

    return _repeat(rng, seconds, length + rng.uniform(0.1, 0.4), burst)


def pulses(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A train of clicks."""
    click = np.exp(-np.arange(80) / 12) * np.cos(np.arange(80) * rng.uniform(0.3, 2.5))
    return _repeat(rng, seconds, 1 / rng.uniform(6, 30), lambda: click)


def melody(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Plucked notes of a pentatonic scale that wander."""
    beat, step = rng.uniform(0.15, 0.35), rng.integers(5, 15)
    root = rng.uniform(130, 260)

    def note() -> np.ndarray:
        nonlocal step
        step = np.clip(step + rng.integers(-2, 3), 0, 14)
        semitones = 12 * (step // len(SCALE)) + SCALE[step % len(SCALE)]
        return _harmonics(root * 2 ** (semitones / 12), 2 * beat, decay=3.0)

    return _repeat(rng, seconds, beat, note)


def drums(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A bar of kick, snare and hi-hat, over and over."""
    t = _time(0.25)
    kick = np.sin(2 * np.pi * (50 * t + 8 * (1 - np.exp(-30 * t)))) * np.exp(-12 * t)
    snare = _bandpass(rng.standard_normal(len(t)), 800, 5000) * np.exp(-20 * t)
    hat = 0.5 * _bandpass(rng.standard_normal(len(t)), 5500, 8000) * np.exp(-50 * t)
    step = rng.uniform(0.1, 0.16)
    pattern: list[tuple[np.ndarray, Iterable[int]]] = [
        (kick, rng.integers(0, 16, 4)),
        (snare, [4, 12]),
        (hat, range(0, 16, rng.integers(1, 3))),
    ]
    bar = np.zeros(round(16 * step * SAMPLE_RATE) + len(t))
    for sound, hits in pattern:
        for hit in hits:
            start = round(hit * step * SAMPLE_RATE)
            bar[start : start + len(t)] += sound
    return _repeat(rng, seconds, 16 * step, lambda: bar)


KINDS: dict[str, Sound] = {
    sound.__name__: sound for sound in (tone, chirp_up, chirp_down, siren, noise_bursts, pulses, melody, drums)
}


def make_clip(kind: str, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """One clip of a kind, at a random level over a little noise: float32 [seconds * 16000] within [-1, 1]."""
    audio = KINDS[kind](rng, seconds)
    audio = 10 ** rng.uniform(-1.0, -0.1) * audio / np.abs(audio).max()
    audio = audio + 10 ** rng.uniform(-3.5, -2.0) * rng.standard_normal(len(audio))
    return np.clip(audio, -1, 1).astype(np.float32)


# ---------------------------------------------------------------- folders of audio


def write_audio(directory: Path, minutes: float, seed: int = 0) -> int:
    """Ten-second clips in one folder per kind, as many of each, about `minutes` in all. Returns their number."""
    per_kind = max(1, round(minutes * 60 / CLIP_SECONDS / len(KINDS)))
    names = [(kind, number) for number in range(per_kind) for kind in KINDS]
    for kind, number in tqdm(names, desc="making audio", unit="clip", delay=2):
        rng = np.random.default_rng((seed, list(KINDS).index(kind), number))
        _write_wav(directory / kind / f"{kind}_{number:04d}.wav", make_clip(kind, CLIP_SECONDS, rng))
    return len(names)


def _write_wav(path: Path, audio: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, SAMPLE_RATE, subtype="PCM_16")


# ---------------------------------------------------------------- a HEAR task, in the layout that heareval reads


def write_scene_task(tasks_dir: Path, clips: dict[str, int] = SPLIT_CLIPS, seconds: float = 2.0, seed: int = 0) -> Path:
    """Tell the kinds apart, with train, valid and test splits of `clips` clips per kind. Returns the task's folder."""
    task, rng = Path(tasks_dir) / f"{TASK}-v1-small", np.random.default_rng(seed)
    for split, count in clips.items():
        table = {}
        for number, kind in enumerate(count * list(KINDS)):
            file_name = f"{split}_{number:04d}.wav"
            _write_wav(task / str(SAMPLE_RATE) / split / file_name, make_clip(kind, seconds, rng))
            table[file_name] = [kind]
        (task / f"{split}.json").write_text(json.dumps(table, indent=1))
    with open(task / "labelvocabulary.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["idx", "label"])
        writer.writerows(enumerate(KINDS))
    metadata = {
        "task_name": TASK,
        "version": "v1",
        "mode": "small",
        "sample_duration": seconds,
        "splits": list(clips),
        "nlabels": len(KINDS),
        "evaluation_params": {},
        "split_mode": "trainvaltest",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "evaluation": ["top1_acc"],
    }
    with atomic_write(task / HEAR_METADATA) as file:  # the last one: a task that has it is complete
        file.write(json.dumps(metadata, indent=1).encode())
    return task


# ---------------------------------------------------------------- the command


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.data.synthetic") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", type=given_path, help="folder for audio/ and tasks/")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of audio")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other sounds of the same kinds")
    args = parser.parse_args(arguments)
    if not args.minutes > 0:
        raise SystemExit(f"synthetic: --minutes is {args.minutes}; it must be above 0")
    if args.seed < 0:
        raise SystemExit(f"synthetic: --seed must not be negative, got {args.seed}")
    try:
        clips = write_audio(args.out_dir / "audio", args.minutes, args.seed)
        task = write_scene_task(args.out_dir / "tasks", seed=args.seed)
    except OSError as error:
        raise SystemExit(f"synthetic: {error}")
    print(f"{args.out_dir / 'audio'}: {clips} clips of {CLIP_SECONDS:.0f} s, {len(KINDS)} kinds of sound; {task}")


if __name__ == "__main__":
    with quiet_exit():
        main()
