"""Embed audio, pretrain encoders and evaluate them.

This is the command `audio-mamba`. Each of its subcommands is also a module with the same options, such as
`python -m audio_mamba.hear_api.embed`.
"""

import argparse
import sys
from collections.abc import Callable

from audio_mamba import __version__
from audio_mamba.system.terminal import quiet_exit

COMMANDS = {
    "embed": "audio files -> embeddings",
    "listen": "live audio -> a line of novelty, and the speed",
    "probe": "how good embeddings are for your labels, models side by side",
    "export": "a model -> safetensors, torch.export program or ONNX",
    "convert": "a checkpoint of SSAMBA or AuM -> a model of this project",
    "prepare": "audio folder -> archive of log-mels",
    "index": "index archives that were made by other tools",
    "verify": "check every sample of an archive",
    "inspect": "summarise an archive: counts, hours, labels, statistics",
    "train": "pretrain an encoder on archives",
    "finetune": "train a classifier on labelled clips, from an encoder",
    "predict": "audio files -> labels, by a fine-tuned classifier",
    "report": "compare training runs in one HTML page",
    "hear": "HEAR and X-ARES evaluation: extract, heads, table, xares, validate",
}

HEAR_COMMANDS = {
    "extract": "embed every task (extract_features.sh)",
    "heads": "train downstream heads with ten seeds (downstream_experiments.sh)",
    "table": "scores -> tables and figure (stats_aggregation_v2.py)",
    "xares": "X-ARES scores of one model (evaluate_xares.sh)",
    "validate": "check a module against the HEAR API",
}

# What a command needs beyond the package itself: an extra, and for the kit a file of requirements.
EXTRAS = {
    "probe": "probe",
    "export": "export",
    "prepare": "train",
    "index": "train",
    "verify": "train",
    "inspect": "train",
    "train": "train",
    "finetune": "train",
    "report": "train",
    "hear": "hear",
}

Main = Callable[[list[str], str], None]  # main(arguments, prog)


def load(command: str) -> Main:
    """The main function of a command. Only the module of that command is imported."""
    main: Main
    match command:
        case "embed":
            from audio_mamba.hear_api.embed import main
        case "listen":
            from audio_mamba.hear_api.listen import main
        case "probe":
            from audio_mamba.hear_api.probe.__main__ import main
        case "export":
            from audio_mamba.hear_api.export import main
        case "convert":
            from audio_mamba.hear_api.convert import main
        case "prepare":
            from audio_mamba.data.prepare import main
        case "index":
            from audio_mamba.data.index import main
        case "verify":
            from audio_mamba.data.verify import main
        case "inspect":
            from audio_mamba.data.inspect import main
        case "train":
            from audio_mamba.train import main
        case "finetune":
            from audio_mamba.finetune import main
        case "predict":
            from audio_mamba.hear_api.predict import main
        case "report":
            from audio_mamba.training.report import main
        case _:
            main = hear
    return main


def load_hear(command: str) -> Main:
    """The main function of a command of `audio-mamba hear`."""
    main: Main
    match command:
        case "extract":
            from audio_mamba.external_sources.embeddings import main
        case "heads":
            from audio_mamba.external_sources.downstream import main
        case "table":
            from audio_mamba.stats_aggregation_v2 import main
        case "xares":
            from audio_mamba.external_sources.xares_run import main
        case _:
            from audio_mamba.external_sources.validate import main
    return main


def hear(arguments: list[str], prog: str) -> None:
    """HEAR evaluation by the code of the three published scripts; X-ARES and hear-validator."""
    command, rest = choose(HEAR_COMMANDS, prog, str(hear.__doc__), arguments)
    load_hear(command)(rest, f"{prog} {command}")


def choose(commands: dict[str, str], prog: str, description: str, arguments: list[str]) -> tuple[str, list[str]]:
    """Split `arguments` into the command that comes first and the rest. Exits on --help and for unknown commands."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} COMMAND ...",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:<10}{text}" for name, text in commands.items())
        + f"\n\nRun {prog} COMMAND --help for the options of a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", metavar="COMMAND", choices=commands, help=argparse.SUPPRESS)
    return parser.parse_args(arguments[:1]).command, arguments[1:]


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the first argument names with the other arguments."""
    description, prog = str(__doc__).splitlines()[0], "audio-mamba"
    with quiet_exit():
        command, rest = choose(COMMANDS, prog, description, sys.argv[1:] if arguments is None else arguments)
        try:
            load(command)(rest, f"{prog} {command}")
        except ModuleNotFoundError as error:
            if command not in EXTRAS or str(error.name).partition(".")[0] == "audio_mamba":
                raise
            raise SystemExit(f"{prog} {command}: {error}; {advice(EXTRAS[command])}") from None


def advice(extra: str) -> str:
    """How to install an extra."""
    kit = ", then requirements-hear.txt with --no-deps" if extra == "hear" else ""
    return f'install it with pip install "audio-mamba[{extra}]", in a checkout pip install ".[{extra}]"{kit}'


if __name__ == "__main__":
    main()
