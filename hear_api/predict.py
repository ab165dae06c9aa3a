"""Labels of audio files by a fine-tuned classifier, from the command line.

    audio-mamba predict INPUT... --weights RUN [--window 2 --hop 1] [--out FILE]

Probabilities are calibrated by one temperature, fitted on the validation clips of the training. Exit status: 0 if every
file was labelled, 3 if some failed (a table at the end lists them), 1 if the command cannot run, 130 after Ctrl-C. Run
the same command with --resume to continue an interrupted run, even after kill -9.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from audio_mamba.hear_api.classifier import AudioClassifier, load_classifier
from audio_mamba.hear_api.clips import Clip, Failure
from audio_mamba.hear_api.command_line import (
    add_channel_argument,
    add_device_argument,
    add_file_run_arguments,
    add_inputs_argument,
    add_precision_argument,
    ending_in_one_line,
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
)
from audio_mamba.hear_api.journal import Entry, Journal
from audio_mamba.hear_api.label_files import FORMATS, Labelling, format_for
from audio_mamba.hear_api.output import Output
from audio_mamba.hear_api.runtime import pick_device
from audio_mamba.hear_api.sources import Source, digest_of_versions, list_audio, list_sources
from audio_mamba.hear_api.weights import WEIGHTS_NAME
from audio_mamba.system.atomic_files import sha256
from audio_mamba.system.machine import usable_cores
from audio_mamba.system.terminal import given_path, not_empty, quiet_exit


def _parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0], epilog=__doc__.split("\n\n", 2)[2])
    add = parser.add_argument
    add_inputs_argument(parser)
    add(
        "--weights",
        metavar="PATH",
        type=not_empty,
        required=True,
        help="work folder of finetune.py, or its folder classifier",
    )
    add_device_argument(parser)
    add_precision_argument(parser)
    add("--window", type=float, metavar="SECONDS", help="label windows of this length (default: whole files)")
    add("--hop", type=float, metavar="SECONDS", help="from one window to the next (default: the window)")
    add(
        "--top",
        type=int,
        metavar="K",
        help="the K most likely labels (default, without --threshold: 1 if a clip has one label)",
    )
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="labels of at least this probability (default, without --top: 0.5 if a clip may have several labels)",
    )
    add(
        "--out",
        default=Path("predictions.csv"),
        metavar="FILE",
        type=given_path,
        help=".csv, .jsonl, or with --format audacity or raven a folder (default: %(default)s)",
    )
    add("--format", choices=FORMATS, help="default: that of the suffix of --out")
    add_channel_argument(parser, each="labels of every channel")
    add_file_run_arguments(parser, done="labelled")
    args = parser.parse_args(arguments)
    if args.workers is None:
        args.workers = usable_cores()
    if args.workers < 1:
        raise SystemExit(f"predict: --workers must be at least 1, got {args.workers}")
    if args.hop is not None and args.window is None:
        raise SystemExit("predict: --hop needs --window")
    return args


def predict(args: argparse.Namespace, output: Output, classifier: AudioClassifier, labelling: Labelling) -> list[Entry]:
    """Label the files of a command line; returns the entries of those that failed."""
    files = list_audio(args.inputs, args.hidden)
    with decoding_pool(args.workers) as pool:
        classifier.to(pick_device(args.device))
        settings = {
            "model": f"SHA-256 {sha256(classifier.folder / WEIGHTS_NAME)[:16]}",
            **labelling.settings(),
            "channel": args.channel,
            "precision": classifier.runtime.working_precision,  # which the device decides
            "device": args.device,
            "list of files": list_digest(files),
        }
        sources = list_sources(files, args.channel, pool)
        if output.is_complete(settings, digest_of_versions(sources)):
            tqdm.write(f"{output.path} is complete already", file=sys.stderr)
            return output.read_failures()
        with output.journal(settings, len(classifier.classes)) as journal:
            decode = partial(decode_sources, pool, args.workers, classifier.front_end, args.channel)
            drop_changed(journal, sources, decode, "predict", "labelled")
            _label_sources(args, sources, decode, classifier, labelling, journal)
            return output.finish(journal, labelling.hop_seconds)


def _label_sources(
    args: argparse.Namespace,
    sources: list[Source],
    decode: Decoder,
    classifier: AudioClassifier,
    labelling: Labelling,
    journal: Journal,
) -> None:
    """Label the files that the journal lacks."""

    def label_group(group: Sequence[Clip | Failure]) -> Iterator[tuple[int, np.ndarray]]:
        numbers = [number for number, clip in enumerate(group) if not isinstance(clip, Failure)]
        for number, rows in zip(numbers, labelling.rows(classifier, group), strict=True):
            yield number, rows.numpy()

    unit = "channel" if args.channel == "each" else "file"
    with tqdm(desc="labelling", unit=unit, total=len(sources), initial=len(journal.entries)) as bar:
        run_groups(label_group, sources, decode, journal, bar, args.strict)


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.hear_api.predict") -> None:
    """The predict command."""
    args = _parse(arguments, prog)
    with ending_in_one_line("predict"):
        classifier = load_classifier(args.weights, "cpu", precision=args.precision)
        labelling = Labelling.for_classifier(classifier, args.window, args.hop, args.top, args.threshold)
        output = Output(args.out, args.resume, format_for(args.out, args.format, labelling))
        failed = predict(args, output, classifier, labelling)
    if failed:
        print_failures(failed, output, "labelled")
        sys.exit(FAILED_STATUS)


if __name__ == "__main__":
    with quiet_exit():
        main()
