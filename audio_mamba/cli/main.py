"""The command `audio-mamba`: one front for the commands of the project.

Each is also a module with the same options, such as `python -m audio_mamba.hear_api.embed`.
"""

import argparse
import sys
from collections.abc import Callable

from audio_mamba import __version__

COMMANDS = {
    "embed": "audio files -> embeddings",
    "listen": "live audio -> embeddings",
    "export": "a model -> safetensors, torch.export program or ONNX",
    "prepare": "audio folder -> archive of log-mels",
    "index": "write the indexes that archives from elsewhere lack",
    "verify": "check every sample of an archive",
    "inspect": "what an archive holds: counts, hours, labels, statistics",
    "train": "pretrain an encoder on archives",
    "report": "compare trainings in one HTML page",
    "hear": "HEAR evaluation: extract, heads, table, validate",
}

HEAR_COMMANDS = {
    "extract": "embeddings of every task (extract_features.sh)",
    "heads": "downstream heads on ten seeds (downstream_experiments.sh)",
    "table": "scores -> tables and figure (stats_aggregation_v2.py)",
    "validate": "check a module against the HEAR API",
}


def load(command: str) -> Callable[[list[str], str], None]:
    """The `main(arguments, prog)` of a command; only its own module is imported."""
    match command:
        case "embed":
            from audio_mamba.hear_api.embed import main
        case "listen":
            from audio_mamba.hear_api.listen import main
        case "export":
            from audio_mamba.hear_api.export import main
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
        case "report":
            from audio_mamba.training.report import main
        case "hear":
            main = hear
    return main


def hear(arguments: list[str], prog: str) -> None:
    """HEAR evaluation: the Python of the three published scripts, and hear-validator."""
    command, rest = choose(HEAR_COMMANDS, prog, hear.__doc__, arguments)
    match command:
        case "extract":
            from audio_mamba.external_sources.embeddings import main
        case "heads":
            from audio_mamba.external_sources.downstream import main
        case "table":
            from audio_mamba.stats_aggregation_v2 import main
        case "validate":
            from audio_mamba.external_sources.validate import main
    main(rest, f"{prog} {command}")


def choose(commands: dict[str, str], prog: str, description: str, arguments: list[str]) -> tuple[str, list[str]]:
    """The command that the first argument names, and the other arguments. Exits with a list of commands on --help."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} COMMAND ...",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:<10}{text}" for name, text in commands.items())
        + f"\n\n{prog} COMMAND --help explains each.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", metavar="COMMAND", choices=commands, help=argparse.SUPPRESS)
    return parser.parse_args(arguments[:1]).command, arguments[1:]


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the first argument names with the other arguments."""
    description, prog = __doc__.splitlines()[0], "audio-mamba"
    command, rest = choose(COMMANDS, prog, description, sys.argv[1:] if arguments is None else arguments)
    load(command)(rest, f"{prog} {command}")


if __name__ == "__main__":
    main()
