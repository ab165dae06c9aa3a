"""Live embeddings of an audio file or of audio on stdin, shown as a line of novelty, with the speed at the end.

    audio-mamba listen recording.wav --config NAME --weights PATH
    arecord -t raw -f S16_LE -r 16000 -c 1 | audio-mamba listen - --config NAME --weights PATH
    ffmpeg -i URL -f wav - | audio-mamba listen - --config NAME --weights PATH

Novelty is the distance of an embedding from the average of the last second. The command uses one CPU core. With the
default --overlap 0.5 and segments of 2 s, each segment begins one second after the one before it, and its first second
only gives context.
"""

import argparse
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from audio_mamba.data.audio import stream_audio
from audio_mamba.data.pcm_stream import stream_pcm
from audio_mamba.front_end import FrontEnd
from audio_mamba.hear_api.command_line import add_channel_argument, add_device_argument, add_weights_arguments
from audio_mamba.hear_api.inputs import InputError, fault_in_values
from audio_mamba.hear_api.resolve import resolve
from audio_mamba.hear_api.runtime import build_runtime
from audio_mamba.hear_api.streaming import MODES, StreamingSSAM
from audio_mamba.system.terminal import not_empty, quiet_exit

PIECE_SECONDS = 0.04  # a typical sound-card buffer
RECENT_STEPS = 25  # of the average that novelty is measured from: 1 s with the paper's configs
LONG_TERM_STEPS = 250
LONG_TERM_SEGMENTS = 50
LEVELS = " .:-=+*#%@"
LINE_MS = 2000  # of audio per line of output
MEASURED_STEPS = 90_000  # the last ones, of which times are kept: an hour with the paper's configs


class Novelty:
    """1 - cosine between an embedding and the average of the recent ones, both relative to the long-term average.

    An embedding also depends on its step of the segment. The mean embedding at each step is tracked over segments, and
    its offset from the mean over all steps is subtracted first; otherwise novelty peaks where segments start.

    Args:
        steps_per_segment: number of different steps.
    """

    def __init__(self, steps_per_segment: int):
        self._counts = [0] * steps_per_segment  # segments averaged at each step
        self._step_means = self._mean = self._recent = torch.empty(0)

    def __call__(self, embedding: Tensor, step: int) -> float:
        """The novelty of the next embedding [width], at a step of its segment: from 0 to 2; 0 for the first."""
        if not any(self._counts):
            self._mean, self._recent = embedding.clone(), torch.zeros_like(embedding)
            self._step_means = embedding.expand(len(self._counts), -1).clone()
        embedding = embedding - self._offset(embedding, step)
        self._mean += (embedding - self._mean) / LONG_TERM_STEPS
        centred = embedding - self._mean
        novelty = 1 - torch.cosine_similarity(centred, self._recent, dim=0).item() if self._recent.any() else 0.0
        self._recent += (centred - self._recent) / RECENT_STEPS
        return novelty

    def _offset(self, embedding: Tensor, step: int) -> Tensor:
        """The mean embedding at a step minus that over all steps; 0 before the second segment. Updates the mean with
        this embedding."""
        seen, count = torch.tensor([count > 0 for count in self._counts]), self._counts[step]
        means = self._step_means
        offset = means[step] - means[seen].mean(dim=0) if count > 1 else torch.zeros_like(embedding)
        self._counts[step] = min(count + 1, LONG_TERM_SEGMENTS)
        means[step] += (embedding - means[step]) / self._counts[step]
        return offset


def read_pieces(source: str, sample_rate: int, channel: str) -> Iterator[Tensor]:
    """Float32 samples [n] at a sample rate, in small pieces, from an audio file or from "-": stdin, with a wav file or
    raw 16-bit mono PCM at that rate (see `data.pcm_stream`)."""
    if source == "-":
        pieces = stream_pcm(sys.stdin.buffer, "stdin", sample_rate, PIECE_SECONDS, channel)
        yield from map(torch.from_numpy, pieces)
    else:
        for block in stream_audio(source, sample_rate, channel):
            yield from torch.from_numpy(block).split(round(PIECE_SECONDS * sample_rate))


def checked(pieces: Iterator[Tensor], source: str, front_end: FrontEnd) -> Iterator[Tensor]:
    """The pieces of a source. InputError with its name for values that cannot be samples, or too few samples in all."""
    name, count = "stdin" if source == "-" else source, 0
    for piece in pieces:
        if fault := fault_in_values(piece):
            raise InputError(f"{name}: {fault}")
        count += len(piece)
        yield piece
    if count < front_end.min_samples:
        raise InputError(
            f"{name}: too short, {count} samples at {front_end.sample_rate} Hz; {front_end.min_samples} are needed"
        )


def listen(streaming: StreamingSSAM, pieces: Iterator[Tensor]) -> dict[str, float]:
    """Print novelty until the audio ends or Ctrl-C stops it.

    Returns:
        `steps`; `median_ms` and `p95_ms` of computing time per step, of the last MEASURED_STEPS; `real_time_factor`,
        computing time divided by the duration of the audio.
    """
    novelty = Novelty(streaming.runtime.steps_per_segment)
    samples, busy, steps = 0, 0.0, 0
    latencies: deque[float] = deque(maxlen=MEASURED_STEPS)
    line = -1

    def show(rows: Tensor, times: Tensor) -> None:
        nonlocal line
        for row, start in zip(rows, times.tolist()):
            if start // LINE_MS > line:
                line = start // LINE_MS
                print(f"\n{start / 1000:7.1f} s |", end="")
            step = round(start / streaming.runtime.step_ms)
            level = int(novelty(row, streaming.runtime.cut.place(step)) / 2 * len(LEVELS))
            print(LEVELS[min(level, len(LEVELS) - 1)], end="", flush=True)

    def count(rows: Tensor, started: float) -> None:
        nonlocal busy, steps
        spent = time.perf_counter() - started
        busy += spent
        if len(rows):
            latencies.append(1000 * spent / len(rows))
        steps += len(rows)

    try:
        for piece in pieces:
            samples += len(piece)
            started = time.perf_counter()
            rows, times = streaming.feed(piece)
            count(rows, started)
            show(rows, times)
        started = time.perf_counter()
        rows, times = streaming.finish()
        count(rows, started)
        show(rows, times)
    except KeyboardInterrupt:
        pass  # the usual way to end live audio
    print()
    measured = list(latencies) or [float("nan")]
    return {
        "steps": steps,
        "median_ms": float(np.median(measured)),
        "p95_ms": float(np.percentile(measured, 95)),
        "real_time_factor": busy * streaming.runtime.sample_rate / max(samples, 1),
    }


def _statistics(text: str) -> str | tuple[float, float]:
    if text in MODES:
        return text
    try:
        mean, std = map(float, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither MEAN,STD nor one of {', '.join(MODES)}") from error
    return mean, std


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.hear_api.listen") -> None:
    """The listen command."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        metavar="FILE_OR_-",
        type=not_empty,
        help="audio file, or - for stdin: a wav file, read as its header says, or raw 16-bit mono samples at the "
        "model's rate (16 kHz)",
    )
    add_weights_arguments(parser)
    add_device_argument(parser)
    add_channel_argument(parser)
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="PART",
        default=0.5,
        help="share of each segment that is read again as context, so that novelty does not show where segments start "
        "(default: %(default)s; 0 takes less time)",
    )
    parser.add_argument(
        "--statistics",
        type=_statistics,
        help="statistics that normalise the log-mel, unless the model has its own: running (default), warmup (those of "
        "the first 2 s), or MEAN,STD after an equals sign: --statistics=-8.5,3.2",
    )
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    logging.basicConfig(format="\n%(message)s")  # which would otherwise stand within a line of novelty
    try:
        source = resolve(args.config, args.weights, scene_layout="bands", overlap=args.overlap)
        runtime = build_runtime(source, "float32", args.device)
        print(f"{source.label} on {args.device}, one thread")
        pieces = read_pieces(args.source, runtime.sample_rate, args.channel)
        speed = listen(StreamingSSAM(runtime, args.statistics), checked(pieces, args.source, runtime.front_end))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the output has gone; `quiet_exit` ends the command
        raise
    except (ValueError, OSError) as error:
        raise SystemExit(f"listen: {error}")
    if not speed["steps"]:
        print("0 steps: the audio is shorter than one")
        return
    print(
        f"{speed['steps']} steps of {runtime.step_ms:g} ms; computing time per step {speed['median_ms']:.1f} ms "
        f"(median), {speed['p95_ms']:.1f} ms (95%); real-time factor {speed['real_time_factor']:.3f}"
    )


if __name__ == "__main__":
    with quiet_exit():
        main()
