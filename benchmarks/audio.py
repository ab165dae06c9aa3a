"""How fast recordings are read, in seconds of sound per second, beside another checkout.

    python -m benchmarks.audio [--minutes 10] [--against DIR]

Every number is the best of three reads of one file, made here, in CPU time of one core, which other programs disturb
least. DIR is a checkout of this project, such as one that
`git worktree add DIR COMMIT` makes; the ratio is that of its time to ours.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile

ROOT = Path(__file__).resolve().parents[1]
RATE = 44100
READ = """
import sys, time
from audio_mamba.data.audio import stream_audio
best = float("inf")
for _ in range(3):
    start = time.process_time()
    for block in stream_audio(sys.argv[1]):
        pass
    best = min(best, time.process_time() - start)
print(best)
"""


def write(path: Path, minutes: float) -> None:
    """Stereo noise of changing loudness, minute by minute."""
    generator = np.random.default_rng(0)
    second = (generator.standard_normal((RATE, 2)) * np.linspace(0.01, 0.2, RATE)[:, None]).astype(np.float32)
    seconds = round(60 * minutes)
    if path.suffix == ".m4a":
        with av.open(str(path), "w", format="ipod") as container:
            stream = container.add_stream("aac", rate=RATE, layout="stereo")
            for i in range(seconds):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(second.T), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = RATE, i * RATE
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return
    with soundfile.SoundFile(path, "w", RATE, 2) as file:
        for _ in range(seconds):
            file.write(second)


def read_seconds(path: Path, checkout: Path) -> float | None:
    """Seconds that reading takes with the code of a checkout; None where it cannot read the file."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    result = subprocess.run(
        [sys.executable, "-c", READ, str(path)], cwd=checkout, env=environment, capture_output=True, text=True
    )
    return float(result.stdout) if result.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the files")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout")
    args = parser.parse_args()
    print("| kind | seconds of sound a second | there | ratio of times |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("wav", "flac", "mp3", "ogg", "m4a"):
            path = Path(folder) / f"long.{suffix}"
            write(path, args.minutes)
            ours = read_seconds(path, ROOT)
            theirs = read_seconds(path, args.against.resolve()) if args.against else None
            speeds = [f"{60 * args.minutes / seconds:.0f}" if seconds else "-" for seconds in (ours, theirs)]
            ratio = f"{theirs / ours:.2f}" if ours and theirs else "-"
            print(f"| {suffix} | {' | '.join(speeds)} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
