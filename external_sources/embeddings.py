"""Extract the HEAR embeddings of every task for a list of models (extract_features.sh)."""

import argparse
import functools
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audio_mamba.config_names import import_named, is_missing, stored_name
from audio_mamba.external_sources import layout, sources, task_files
from audio_mamba.external_sources.compat import patch_device_name, stand_ins
from audio_mamba.external_sources.origin import Origin, check_origin, find_origin, note_origin
from audio_mamba.external_sources.resample import at_rate
from audio_mamba.external_sources.task_check import check_task
from audio_mamba.external_sources.task_files import TaskError, TaskFiles
from audio_mamba.schema import LAYOUTS, POOLINGS
from audio_mamba.system.shares import Share
from audio_mamba.system.terminal import given_path, quiet_exit

DEFAULT_CONFIGS = ["ssast_tiny_200_16x4", "ssam_tiny_200_16x4"]


def resolve_module(name: str) -> str:
    """Import the HEAR module a user means and return its stored name: `configs.<name>` before any other `<name>`.

    Raises:
        SystemExit: nothing of that name can be imported, or it is not a HEAR module.
    """
    module_name = stored_name(name)
    try:
        module = import_named(module_name)
    except ModuleNotFoundError as error:
        if not is_missing(module_name, error):
            raise
    else:
        if not hasattr(module, "load_model"):
            raise SystemExit(
                f"CONFIG: {module_name} has no load_model; a config gets it and the rest of the HEAR API "
                "by audio_mamba.hear_api.api.hear_functions, as configs.ssam_tiny_200_16x4 does"
            )
        return module_name
    raise SystemExit(
        f"CONFIG: no module {name} can be imported; accepted are a config of this project, such as "
        "ssam_tiny_200_16x4, and any module with the HEAR API that python can find"
    )


def extract(origin: Origin, tasks: list[Path], embeddings_dir: Path, cache: Path, name: str | None = None) -> list[str]:
    """Write embeddings_dir/<name>/<task> for every task that has none yet, with the kit's own runner.

    Args:
        origin: of `find_origin`. Check existing embeddings with `check_origin` first.
        tasks: task folders.
        embeddings_dir: OUTPUT_DIR/audioset.
        cache: for audio that is resampled to the model's rate, if a task has none.
        name: of the folder; default: the module's name.

    Returns:
        One sentence for each task that failed; its traceback is printed.
    """
    module, results = origin.module, name or origin.module
    pending = [task for task in tasks if not (embeddings_dir / results / task.name / layout.DONE_EMBEDDINGS).exists()]
    print(f"{results}: {len(tasks) - len(pending)} of {len(tasks)} tasks are already extracted")
    if not pending:
        return []
    with stand_ins():
        from heareval.embeddings import runner as kit
    patch_device_name()

    class NamedEmbedding(kit.Embedding):
        """The kit's model; its name is that of the results folder."""

        name = results

    try:
        # By its file, so that all tasks have the same weights even if newer ones appear.
        embedding = NamedEmbedding(import_named(module).__name__, origin.file or origin.model)
    except (OSError, ValueError, RuntimeError) as error:  # missing or unsuitable weights; anything else is a bug
        return [f"{module}: the model cannot be loaded: {error}"]
    features = origin.scene_layout, origin.scene_pooling, origin.overlap
    if features != (None, None, None):
        if not hasattr(embedding.model, "choose_features"):
            return [f"{module}: its model has no layouts, pooling or overlap to choose from"]
        try:
            embedding.model.choose_features(*features)
        except ValueError as error:
            return [f"{module}: {error}"]
    kits_own = kit.Embedding, kit.task_embeddings
    kit.Embedding = lambda *args: embedding  # load the model once, not for each task
    failures = []
    try:
        for number, source in enumerate(pending, start=1):
            print(f"{results}: {source.name} ({number} of {len(pending)})")
            try:
                check_task(source, task_files.source_rate(source, embedding.sample_rate))
                files = task_files.read_files(source, embedding.sample_rate)  # first: later changes are noticed
                kit.task_embeddings = functools.partial(_embed_and_note, kits_own[1], origin, files)
                task = at_rate(source, embedding.sample_rate, cache)
                kit.runner(
                    [
                        "--tasks-dir",
                        str(task.parent),
                        "--task",
                        task.name,
                        "--embeddings-dir",
                        str(embeddings_dir),
                        module,
                    ],
                    standalone_mode=False,
                )
            except TaskError as error:
                failures.append(f"{results} on {source.name}: {error}")
            except Exception as error:  # a damaged task must not stop the others
                traceback.print_exc()
                failures.append(f"{results} on {source.name}: {type(error).__name__}: {error}")
    finally:
        kit.Embedding, kit.task_embeddings = kits_own
    return failures


def _embed_and_note(
    kits_own: Callable[..., None], origin: Origin, files: TaskFiles, embedding: Any, task: Path, folder: Path
) -> None:
    """The kit's `task_embeddings`, then our notes, before the kit marks the task as done: a done task has them."""
    kits_own(embedding, task, folder)
    task_files.write_note(folder, files)
    note_origin(folder, origin, files.digest())


def check_tasks(tasks: list[Path], embeddings: Path, redo: bool) -> None:
    """Refuse embeddings of tasks whose files have changed since, or have them made again.

    Args:
        tasks: task folders.
        embeddings: OUTPUT_DIR/audioset/<name>.
        redo: embed such tasks again instead.

    Raises:
        SystemExit: names the first such task.
    """
    for task in tasks:
        folder = embeddings / task.name
        if not (folder / layout.DONE_EMBEDDINGS).exists() or not (why := task_files.why_stale(folder, task)):
            continue
        if not redo:
            raise SystemExit(
                f"TASKS_DIR: {why} since {folder} was embedded; REDO=1 embeds it again, "
                "or choose another OUTPUT_DIR or NAME=..."
            )
        print(f"{task.name} is embedded again: {why}")
        (folder / layout.DONE_EMBEDDINGS).unlink()


def plain_name(text: str) -> str:
    """A name that can be that of a folder, for argparse."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be letters, digits and . _ -, and not start with . or -")
    return text


def _parse(argv: list[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "tasks_dir",
        metavar="TASKS_DIR",
        type=given_path,
        help="folder of HEAR tasks, at any sample rate, or of their tar.gz files",
    )
    parser.add_argument(
        "output_dir",
        metavar="OUTPUT_DIR",
        type=given_path,
        help="folder for audioset/ (embeddings) and todo_audioset/ (links to them, for ten downstream runs per model)",
    )
    parser.add_argument(
        "configs",
        metavar="CONFIG",
        nargs="*",
        default=DEFAULT_CONFIGS,
        help="config (X, configs.X or configs.poc.X) or any importable module with the HEAR API; "
        f"default: {' '.join(DEFAULT_CONFIGS)}",
    )
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="argument of load_model: a checkpoint, or whatever the module accepts (in the script: MODEL=); default: "
        "none, for which a config uses $PT_MAMBA_MODEL_DIR or the weights that come with the project",
    )
    parser.add_argument(
        "--name",
        type=plain_name,
        help="name of the results, for a single CONFIG; keeps several weights or poolings of it apart "
        "(in the script: NAME=); default: the module's name",
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="token layout of scene embeddings (in the script: LAYOUT=); default: the config's",
    )
    parser.add_argument(
        "--pooling",
        choices=list(POOLINGS),
        help="how scene embeddings are pooled over time (in the script: POOLING=); default: the config's",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="PART",
        help="share of each segment that is only read as context; layout bands only (in the script: OVERLAP=); "
        "default: the config's",
    )
    parser.add_argument(
        "--tasks",
        default="*",
        metavar="PATTERNS",
        help="only tasks with matching names, such as 'drum* guitar*' (in the script: TASKS=)",
    )
    parser.add_argument(
        "--share",
        metavar="I/N",
        help="embed the I-th of N parts of the tasks, for N machines that see the same folders "
        "(in the script: SHARE=); torchrun and srun set this by themselves",
    )
    parser.add_argument("--hidden", action="store_true", help="take tasks of hidden, trash and system names too")
    parser.add_argument(
        "--cache",
        type=given_path,
        metavar="DIR",
        help="folder for tasks that are unpacked from archives or resampled (in the script: CACHE=); "
        "default: TASKS_DIR.16k, beside TASKS_DIR",
    )
    parser.add_argument(
        "--redo",
        action="store_true",
        help="embed again the tasks whose files have changed (in the script: REDO=1); default: refuse them",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, prog: str = "extract_features.sh") -> None:
    """Command line of extract_features.sh."""
    args = _parse(argv, prog)
    modules = list(dict.fromkeys(resolve_module(name) for name in args.configs))
    if args.name and len(modules) > 1:
        raise SystemExit(f"NAME: {args.name} needs one CONFIG only, got {len(modules)}")
    if not args.tasks_dir.is_dir():
        raise SystemExit(f"TASKS_DIR: {args.tasks_dir} is not a folder")
    if (args.tasks_dir / layout.METADATA).is_file():
        task = args.tasks_dir.absolute()
        raise SystemExit(
            f"TASKS_DIR: {args.tasks_dir} is a task itself; give the folder above it, {task.parent}, "
            f"with TASKS={task.name}"
        )
    try:
        share = Share.of_process(args.share)
    except ValueError as error:
        raise SystemExit(f"SHARE: {error}") from None
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(share.gpu(torch.cuda.device_count()))  # the kit moves models to "cuda"
    cache = args.cache or sources.default_cache(args.tasks_dir)
    tasks = sources.find_tasks(args.tasks_dir, args.tasks, cache, args.hidden, share)

    embeddings_dir = args.output_dir / layout.EMBEDDINGS
    origins = [find_origin(module, args.model, args.layout, args.pooling, args.overlap) for module in modules]
    for origin in origins:
        check_origin(embeddings_dir / (args.name or origin.module), origin, args.hidden)
        check_tasks(tasks, embeddings_dir / (args.name or origin.module), args.redo)

    failures = []
    for origin in origins:
        failures += extract(origin, tasks, embeddings_dir, cache, args.name)
        for seed in layout.SEEDS:
            layout.link_run(args.output_dir, args.name or origin.module, seed, args.hidden)
    if failures:
        raise SystemExit("\n".join(["not extracted:", *failures]))


if __name__ == "__main__":
    with quiet_exit():
        main()
