"""Embeddings of audio files, from the command line.

    audio-mamba embed INPUT... [--config NAME] [--weights PATH] [--out FILE]

Exit status: 0 if every file was embedded, 3 if some failed (a table at the end lists them), 1 if the command cannot
run, 130 after Ctrl-C. Run the same command with --resume to continue an interrupted run, even after kill -9.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from audio_mamba.hear_api.clips import Clip, Failure
from audio_mamba.hear_api.command_line import (
    add_channel_argument,
    add_device_argument,
    add_feature_arguments,
    add_file_run_arguments,
    add_inputs_argument,
    add_precision_argument,
    add_weights_arguments,
    ending_in_one_line,
    feature_choices,
)
from audio_mamba.hear_api.file_runs import (
    FAILED_STATUS,
    Decoder,
    decode_sources,
    decoding_pool,
    drop_changed,
    list_digest,
    print_failures,
    run_groups,
    say,
)
from audio_mamba.hear_api.journal import Entry, Journal
from audio_mamba.hear_api.output import Output
from audio_mamba.hear_api.resolve import ModelSource, resolve
from audio_mamba.hear_api.runtime import KINDS, RuntimeSSAST, build_runtime
from audio_mamba.hear_api.sources import Source, by_share, digest_of_versions, list_audio, list_sources
from audio_mamba.system.atomic_files import sha256
from audio_mamba.system.machine import usable_cores
from audio_mamba.system.shares import Share
from audio_mamba.system.terminal import given_path, quiet_exit

PROGRESS = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def _parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 2)[2])
    add = parser.add_argument
    add_inputs_argument(parser)
    add_weights_arguments(parser)
    add_device_argument(parser)
    add_precision_argument(parser)
    add(
        "--out",
        default=Path("embeddings.npz"),
        metavar="FILE",
        type=given_path,
        help=".npz, .parquet, or a name without suffix for a folder of .npy files (default: %(default)s)",
    )
    add(
        "--kind",
        choices=KINDS,
        default="scene",
        help="one embedding per file (default), or one per patch step (40 ms with the paper's configs)",
    )
    add_feature_arguments(parser)
    add_channel_argument(parser, each="every channel separately")
    add(
        "--share",
        metavar="I/N",
        help="embed part I of N, for N machines that see the same folders; the process that completes the last part "
        "writes the whole result (torchrun and srun set this by themselves)",
    )
    add_file_run_arguments(parser, done="embedded")
    args = parser.parse_args(arguments)
    try:
        args.share = Share.of_process(args.share)
    except ValueError as error:
        raise SystemExit(f"embed: --share: {error}") from None
    if args.workers is None:
        args.workers = max(1, usable_cores() // args.share.local_count)
    if args.workers < 1:
        raise SystemExit(f"embed: --workers must be at least 1, got {args.workers}")
    for name in ("layout", "pooling"):
        if args.kind == "timestamps" and (value := getattr(args, name)):
            raise SystemExit(f"embed: --{name} {value}: it applies to scene embeddings, but --kind is timestamps")
    return args


def embed(args: argparse.Namespace, output: Output) -> list[Entry]:
    """Embed the files of a command line; returns the entries of those that failed."""
    files, share = list_audio(args.inputs, args.hidden), args.share
    with decoding_pool(args.workers) as pool:
        # Time steps are in true time order in either layout of scenes, so none stands in the way of an overlap.
        layout = {"scene_layout": "bands"} if args.kind == "timestamps" else {}
        source = resolve(args.config, args.weights, **feature_choices(args) | layout)
        runtime = build_runtime(source, args.precision, _own_device(args.device, share))
        settings = _settings(args, files, runtime, source)
        sources = list_sources(files, args.channel, pool)
        if output.is_complete(settings, digest_of_versions(sources)):
            tqdm.write(f"{output.path} is complete already", file=sys.stderr)
            return output.read_failures()
        step_seconds = runtime.step_ms / 1000 if args.kind == "timestamps" else 0.0
        with output.journal(settings, runtime.width_of(args.kind), share) as journal:
            parts = by_share(sources, share.count)
            own = parts[share.number]
            decode = partial(decode_sources, pool, args.workers, runtime.front_end, args.channel)
            drop_changed(journal, own, decode, "embed", "embedded")
            _embed_sources(args, own, decode, runtime, journal)
            if share.count == 1:
                return output.finish(journal, step_seconds)
            failed = output.finish_share(journal, step_seconds, share, parts)
        if failed is None:
            _say_share(output, share, parts)
        return failed or []


def _own_device(device: str, share: Share) -> str:
    """The GPU of a process, if several were told to use "cuda"."""
    if device == "cuda" and share.count > 1 and torch.cuda.is_available():
        return f"cuda:{share.gpu(torch.cuda.device_count())}"
    return device


def _say_share(output: Output, share: Share, parts: list[list[Source]]) -> None:
    """Say what became of the result after a share was completed, and which shares nobody works on."""
    if output.path.exists():
        return
    missing = ", ".join(f"{other.number + 1}" for other in output.missing_shares(share, parts))
    say(
        "embed",
        f"share {share} is complete; the process that completes the last one writes {output.path}"
        + (
            ". Not complete (or their files have changed since), and nobody works on them now: "
            f"{missing}; start them with --resume"
            if missing
            else ""
        ),
    )


def _settings(args: argparse.Namespace, files: list[Path], runtime: RuntimeSSAST, source: ModelSource) -> dict:
    """What the result depends on. Weights are identified by their bytes, not by path or time, so the settings are the
    same in every copy of the project."""
    digest = source.weights and f"SHA-256 {sha256(source.weights)[:16]}"
    return {
        "model": source.label,
        "weights file": digest,
        "kind": args.kind,
        "layout": runtime.layout_of(args.kind),
        "channel": args.channel,
        **({"pooling": runtime.scene_pooling} if args.kind == "scene" else {}),
        "overlap": runtime.overlap,
        "precision": runtime.working_precision,
        "device": args.device,
        "list of files": list_digest(files),
    }


def _embed_sources(
    args: argparse.Namespace,
    sources: Sequence[Source],
    decode: Decoder,
    runtime: RuntimeSSAST,
    journal: Journal,
) -> None:
    """Embed what the journal lacks."""
    with tqdm(
        desc="embedding" if args.share.count == 1 else f"embedding share {args.share}",
        unit="channel" if args.channel == "each" else "file",
        total=len(sources),
        initial=len(journal.entries),
        smoothing=0.05,
        bar_format=PROGRESS,
    ) as bar:
        started, seconds = time.perf_counter(), 0.0

        def embed_group(group: Sequence[Clip | Failure]) -> Iterator[tuple[int, np.ndarray]]:
            nonlocal seconds
            for number, rows, fraction in runtime.embed_group(group, args.kind):
                yield number, rows.numpy()
                seconds += fraction * group[number].seconds
                bar.set_postfix_str(f"{seconds / (time.perf_counter() - started):.0f} s of audio/s", refresh=False)
                bar.update(fraction)

        run_groups(embed_group, sources, decode, journal, bar, args.strict)


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.hear_api.embed") -> None:
    """The embed command."""
    args = _parse(arguments, prog)
    with ending_in_one_line("embed"):
        output = Output(args.out, args.resume)
        failed = embed(args, output)
    if failed:
        print_failures(failed, output, "embedded")
        sys.exit(FAILED_STATUS)


if __name__ == "__main__":
    with quiet_exit():
        main()
