"""Embeddings of audio files, from the command line.

    python -m hear_api.embed INPUT... [--config NAME] [--weights DIR] [--out FILE]

Exit status: 0 if every file was embedded, 3 if some could not be (a table at the end says which and why), 1 for a
command that cannot be carried out, 130 after Ctrl-C. An interrupted run, even a killed one, goes on with --resume.
"""

import argparse
import hashlib
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from audio_mamba.hear_api.ahead import run_ahead
from audio_mamba.hear_api.bulk import BulkEmbedder
from audio_mamba.hear_api.command_line import add_device_argument, add_weights_arguments
from audio_mamba.hear_api.journal import Entry, Journal, check_settings
from audio_mamba.hear_api.pieces import decode, start_worker
from audio_mamba.hear_api.resolve import ModelSource, resolve
from audio_mamba.hear_api.runtime import KINDS, RuntimeSSAST, build_runtime
from audio_mamba.hear_api.sources import list_audio
from audio_mamba.hear_api.writers import failures_path, read_failures, read_settings, write_failures, writer_for
from audio_mamba.models.encoder import LAYOUTS
from audio_mamba.models.precision import PRECISIONS
from audio_mamba.system.atomic_files import remove_partials, sha256
from audio_mamba.system.machine import usable_cores

FAILED_STATUS = 3
FILES_AHEAD = 8  # per worker
PROGRESS = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class StrictError(ValueError):
    """A file failed and --strict was asked for."""


def _parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 2)[2])
    add = parser.add_argument
    add("inputs", metavar="INPUT", nargs="+", help="file, folder, glob in quotes, or .csv list with a column path")
    add_weights_arguments(parser)
    add_device_argument(parser)
    add(
        "--precision",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="default: auto, float16 on CUDA and float32 elsewhere",
    )
    add(
        "--out",
        default=Path("embeddings.npz"),
        metavar="FILE",
        type=Path,
        help=".npz, .parquet, or a name without suffix for a folder of .npy files (default: %(default)s)",
    )
    add("--kind", choices=KINDS, default="scene", help="one embedding per file (default), or one per 40 ms")
    add("--layout", choices=LAYOUTS, help="of scene embeddings (default: the config's)")
    add("--workers", type=int, default=usable_cores(), help="processes that decode files (default: %(default)s)")
    add("--resume", action="store_true", help="take an interrupted run up where it was")
    add("--strict", action="store_true", help="stop at the first file that fails")
    return parser.parse_args(arguments)


def embed(args: argparse.Namespace) -> list[Entry]:
    """The command's work; returns the files that failed."""
    write = writer_for(args.out)
    if args.workers < 1:
        raise ValueError(f"--workers {args.workers}: at least 1 is needed")
    if args.out.exists() and not args.resume:
        raise ValueError(f"{args.out} exists already; remove it or choose another name")
    files = list_audio(args.inputs)
    pool = ProcessPoolExecutor(args.workers, initializer=start_worker)
    pool.submit(int).result()  # the workers start from a process whose threads have not begun to work
    try:
        source = resolve(args.config, args.weights, args.layout)
        runtime = build_runtime(source, args.precision, args.device)
        settings = _settings(args, files, runtime, source)
        folder = args.out.with_name(args.out.name + ".partial")
        if args.out.exists() and args.resume:
            return _complete_already(args.out, settings, folder)
        journal = Journal(folder, settings, runtime.scene_embedding_size, args.resume)
        try:
            if args.out.exists():
                journal.remove()
                raise ValueError(f"{args.out} exists already; another run has completed it meanwhile")
            _run(args, files, pool, runtime, journal)
            remove_partials(args.out)  # of a run that was killed while it wrote
            step = runtime.step_ms / 1000 if args.kind == "timestamps" else 0.0
            failed = [entry for entry in journal.entries if entry.error]
            write_failures(args.out, failed)
            write(args.out, journal, step, settings)
            journal.remove()
        finally:
            journal.close()
        return failed
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _settings(args: argparse.Namespace, files: list[Path], runtime: RuntimeSSAST, source: ModelSource) -> dict:
    """What the result follows from, the same in every copy of the project: weights are known by their bytes, not by
    where and since when they lie there."""
    listed = hashlib.sha256(b"\0".join(map(os.fsencode, files))).hexdigest()
    digest = source.weights and f"SHA-256 {sha256(source.weights)[:16]}"
    return {
        "model": source.label,
        "weights file": digest,
        "kind": args.kind,
        "layout": runtime.scene_layout if args.kind == "scene" else "bands",
        "precision": runtime.working_precision,
        "device": args.device,
        "list of files": f"{len(files)} files, {listed[:16]}",
    }


def _complete_already(out: Path, settings: dict, folder: Path) -> list[Entry]:
    """The files that failed when `out` was made. ValueError where it follows from other settings."""
    if before := read_settings(out):
        check_settings(f"{out} was made", before, settings)
    shutil.rmtree(folder, ignore_errors=True)  # a kill came just before it was done
    tqdm.write(f"{out} is complete already", file=sys.stderr)
    return read_failures(out)


def _run(
    args: argparse.Namespace, files: list[Path], pool: ProcessPoolExecutor, runtime: RuntimeSSAST, journal: Journal
) -> None:
    left = files[len(journal.entries) :]
    decoded = run_ahead(pool, decode, ((path,) for path in left), FILES_AHEAD * args.workers)
    started, seconds = time.perf_counter(), 0.0
    with tqdm(
        desc="embedding",
        unit="file",
        total=len(files),
        initial=len(files) - len(left),
        smoothing=0.05,
        bar_format=PROGRESS,
    ) as bar:

        def progress(new_seconds: float, new_files: float) -> None:
            nonlocal seconds
            seconds += new_seconds
            bar.set_postfix_str(f"{seconds / (time.perf_counter() - started):.0f} s of audio per s", refresh=False)
            bar.update(new_files)

        def fail(entry: Entry) -> None:
            if args.strict:
                raise StrictError(f"{entry.path}: {entry.error} (--strict)")

        BulkEmbedder(runtime, args.kind, journal, fail, progress).run(left, decoded)
        bar.update(len(journal.entries) - bar.n)


def _print_failures(failed: list[Entry], out: Path) -> None:
    width = max(len(entry.path) for entry in failed)
    files = "1 file" if len(failed) == 1 else f"{len(failed)} files"
    print(f"\n{files} could not be embedded (this list: {failures_path(out)}):", file=sys.stderr)
    for entry in failed:
        print(f"  {entry.path:<{width}}  {entry.error}", file=sys.stderr)


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.hear_api.embed") -> None:
    args = _parse(arguments, prog)
    try:
        failed = embed(args)
    except KeyboardInterrupt:
        print("embed: interrupted; the same command with --resume goes on", file=sys.stderr)
        sys.exit(130)
    except BrokenProcessPool:
        raise SystemExit(
            "embed: a decoding process was killed, perhaps for lack of memory; go on with --resume and fewer --workers"
        )
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"embed: {error}")
    if failed:
        _print_failures(failed, args.out)
        sys.exit(FAILED_STATUS)


if __name__ == "__main__":
    main()
