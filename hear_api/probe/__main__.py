"""How good are frozen embeddings for my labels? Logistic regression and k-NN on them, models side by side.

    python -m audio_mamba.hear_api.probe SOURCE --model ssam_tiny_free_audio --model logmel --out probe

SOURCE is an audio folder (labels from --labels, or from its first folder level), a HEAR task of scenes, or an archive
of prepare. Nothing is trained but the classifiers; splits are those of the task or archive, or of
--fold-column; otherwise five folds are made.
"""

import argparse
import logging
import sys
from pathlib import Path

from audio_mamba.hear_api.command_line import (
    add_channel_argument,
    add_feature_arguments,
    add_hidden_argument,
    feature_choices,
)
from audio_mamba.system.terminal import given_path, not_empty, quiet_exit

logger = logging.getLogger(__name__)

DEFAULT_MODELS = ["ssam_tiny_free_audio", "logmel"]


def probe(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The command's work; returns the table, and the names of the files in --out."""
    from audio_mamba.hear_api.probe.classify import classify
    from audio_mamba.hear_api.probe.clips import read_clips
    from audio_mamba.hear_api.probe.features import embeddings, find_models
    from audio_mamba.hear_api.probe.report import check_folder, compare, markdown, write

    check_folder(args.out)
    models = find_models(args.model or DEFAULT_MODELS, **feature_choices(args))
    columns = {"fold_column": args.fold_column, "group_column": args.group_column}
    rate = max(model.sample_rate for model in models)  # the others resample
    clips = read_clips(args.source, args.labels, args.channel, args.hidden, **columns, sample_rate=rate)
    rounds = clips.rounds()
    (args.out / "embeddings").mkdir(parents=True, exist_ok=True)  # fails now, not after the work
    results = []
    for model in models:
        features = embeddings(model, clips, args.out / "embeddings", args.device)
        results += [(model.name, result) for result in classify(features, clips.targets(), rounds, clips.multi_label)]
    rows = compare(results, clips)
    written = write(args.out, rows, results, clips)
    return markdown(rows, results, clips), written


def main(arguments: list[str] | None = None, prog: str = "python -m audio_mamba.hear_api.probe") -> None:
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", type=given_path, help="audio folder, HEAR task, or archive")
    add(
        "--model",
        metavar="NAME",
        type=not_empty,
        action="append",
        help="a model of list_models(), a path of weights, NAME:untrained, or logmel (mean and standard deviation of "
        f"log-mels); give it several times to compare (default: {' and '.join(DEFAULT_MODELS)})",
    )
    add("--labels", metavar="CSV", type=given_path, help="table of labels, as for prepare")
    add(
        "--fold-column",
        metavar="NAME",
        help="column of --labels with the fold of each clip; or folder; or split, for HEAR tasks and Speech Commands",
    )
    add(
        "--group-column",
        metavar="NAME",
        help="column of --labels with what clips share (speaker, recording), or folder; a group stays in one fold",
    )
    add_channel_argument(parser)
    add_hidden_argument(parser)
    add_feature_arguments(parser)
    add("--device", help="torch device (default: a GPU if there is one)")
    add(
        "--out", metavar="DIR", type=given_path, default=Path("probe"), help="folder for results (default: %(default)s)"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        table, written = probe(args)
        sys.stdout.write(table + "\n")  # the result alone, for other tools; all else is logged to stderr
    except BrokenPipeError:  # the reader of the output has gone; `quiet_exit` ends the command
        raise
    except KeyboardInterrupt:
        logger.warning("probe: interrupted; finished embeddings are kept")
        sys.exit(130)
    except (ValueError, OSError) as error:
        raise SystemExit(f"probe: {error}") from None
    except ImportError as error:
        raise SystemExit(f'probe: {error}; install the extra: pip install "audio-mamba[probe]"') from None
    logger.info("written to %s: %s, and the embeddings", args.out, ", ".join(written))


if __name__ == "__main__":
    with quiet_exit():
        main()
