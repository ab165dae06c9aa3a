"""Evaluate a model on X-ARES tasks, with a linear head (MLP) and with k nearest neighbours (evaluate_xares.sh)."""

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import shutil
import sys
import traceback
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from audio_mamba.config_names import import_named
from audio_mamba.external_sources import layout, sources, task_files, unpack, xares_kit, xares_table, xares_tasks
from audio_mamba.external_sources.downstream import requested_threads
from audio_mamba.external_sources.embeddings import plain_name, resolve_module
from audio_mamba.external_sources.origin import Origin, difference_of, find_origin, origin_in
from audio_mamba.external_sources.task_files import TaskError, TaskFiles
from audio_mamba.system import machine
from audio_mamba.system.atomic_files import PARTIAL_SUFFIX, atomic_write
from audio_mamba.system.folder_lock import FolderInUseError, lock_folder
from audio_mamba.system.terminal import given_path, quiet_exit

SETTINGS = "xares-settings.json"  # beside the scores: the origin of the embeddings
ALL_TASKS = "*"
LOG = "xares.log"  # beside the scores: what xares printed


class Place(NamedTuple):
    """Where xares keeps the files of one task and one encoder."""

    task: Path  # OUTPUT_DIR/<task>, with the archives of audio
    embeddings: Path
    results: Path

    def is_embedded(self) -> bool:
        """Whether the embeddings are complete."""
        return (self.embeddings / ".encoded_tar_ready").exists()


def place_of(output_dir: Path, task: str, encoder: str) -> Place:
    """The folders of a task and an encoder, by its class name, as xares lays them out."""
    task_dir = output_dir / task
    return Place(task_dir, task_dir / "embeddings" / encoder, task_dir / "checkpoints" / encoder)


def load_encoder(origin: Origin, name: str) -> xares_kit.HearEncoder:
    """The model of an origin as an encoder that xares accepts.

    Raises:
        SystemExit: the weights are missing or unsuitable, or xares' checker rejects the encoder.
    """
    from xares.audio_encoder_checker import check_audio_encoder

    weights = origin.file or origin.model
    try:
        model = import_named(origin.module).load_model(*([weights] if weights else []))
    except (OSError, ValueError, RuntimeError) as error:  # anything else is a bug
        raise SystemExit(f"{origin.module}: the model cannot be loaded: {error}") from None
    encoder = xares_kit.make_encoder(name, origin.module, model)
    with _output_to(io.StringIO()) as printed:
        accepted = check_audio_encoder(encoder)
    if not accepted:
        raise SystemExit(f"{origin.module}: xares rejects the encoder: {printed.getvalue().strip()}")
    return encoder


def evaluate(config: Any, source: Path, place: Place, origin: Origin, redo: bool = False) -> None:
    """Run xares on one task: embed its audio, then train and test. What is finished is not repeated.

    Args:
        config: `xares.task.TaskConfig`.
        source: folder of the task: a HEAR task, or archives.
        place: of the results, which xares writes to `mlp_score.txt` and `knn_score.txt`.
        origin: of the encoder.
        redo: replace results of other weights or other files, which are refused otherwise.

    Raises:
        TaskError: damaged files, or results of other weights or files.
        folder_lock.FolderInUseError: another process works on this task.
    """
    if place.task.resolve() == source.resolve() and not _is_hear(source):  # links would replace the archives
        raise TaskError(f"OUTPUT_DIR: {place.task} has the archives themselves; choose a folder other than TASKS_DIR")
    for folder in (place.embeddings, place.results):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(place.task):
        if why := _why_stale(config, source, place, origin):
            if not redo:
                raise TaskError(f"{why}; REDO=1 evaluates it again, or choose another OUTPUT_DIR or NAME=...")
            for folder in (place.embeddings, place.results):
                shutil.rmtree(folder)
                folder.mkdir()
        if _is_done(config, place):
            return
        if not (place.results / "mlp_score.txt").exists():  # xares would take heads of interrupted training
            for checkpoint in (*place.results.glob("*.pt"), *place.results.glob("*.ckpt")):
                checkpoint.unlink()
        with open(place.results / LOG, "a") as log, _output_to(log):
            try:
                _run(config, source, place, origin)
            except Exception:
                traceback.print_exc(file=log)
                raise


def _is_done(config: Any, place: Place) -> bool:
    """Whether all scores are there. A score that was not written to its end is removed."""
    wanted = xares_table.SCORES if config.do_knn else xares_table.SCORES[:1]
    for file in place.results.glob("*_score.txt"):
        if xares_table.read_score(file) is None:
            file.unlink()
    return all((place.results / f"{kind.lower()}_score.txt").is_file() for kind in wanted)


def _why_stale(config: Any, source: Path, place: Place, origin: Origin) -> str | None:
    """Why embeddings or scores that are there do not belong to these files and weights, in words."""
    if not place.is_embedded() and not list(place.results.glob("*_score.txt")):
        return None
    noted = task_files.read_note(place.results)
    if noted is None or not (place.results / SETTINGS).is_file():
        return f"OUTPUT_DIR: {place.results} has results of unknown weights"
    noted_origin = origin_in(task_files.read_json(place.results / SETTINGS, dict), origin)
    if difference := difference_of(noted_origin, origin):
        variable, then, now = difference
        return f"{variable}: {place.task} was embedded with {then}, not with {now}"
    if changed := task_files.changed_files(noted, source):
        return f"TASKS_DIR: {source / changed[0]} changed since it was embedded"
    if not _is_hear(source):  # the files of a HEAR task are listed in those that were compared
        present = {archive.name for found in xares_tasks.archives(config, source).values() for archive in found}
        if added := sorted(present - noted.files.keys()):
            return f"TASKS_DIR: {source / added[0]} was added since {place.task} was embedded"
    return None


def _is_hear(source: Path) -> bool:
    return (source / layout.METADATA).is_file()


def _run(config: Any, source: Path, place: Place, origin: Origin) -> None:
    from xares.task import XaresTask

    if not place.is_embedded():
        shutil.rmtree(place.embeddings)  # of an interrupted run
        place.embeddings.mkdir()
        for pattern in config.audio_tar_name_of_split.values():
            for archive in list(place.task.glob(pattern)):  # of another TASKS_DIR, or of an earlier version
                archive.unlink()
        if _is_hear(source):
            files = task_files.read_files(source, config.encoder.sampling_rate)
            xares_tasks.write_archives(source, config, place.task)
        else:
            files = _link_archives(config, source, place.task)
        task_files.write_note(place.results, files)
        with atomic_write(place.results / SETTINGS) as file:
            file.write(json.dumps(origin._asdict(), indent=2).encode())
    (place.task / config.xares_settings.audio_ready_filename).touch()  # so that xares downloads nothing
    config.env_root, config.num_encoder_workers = str(place.task.parent), 0
    task = XaresTask(config)
    threads = requested_threads(default=machine.usable_cores())
    torch.set_num_threads(threads)
    task.make_encoded_tar()
    _check_all_embedded(config, place)
    torch.set_num_threads(min(threads, config.torch_num_threads))  # heads are small
    torch.manual_seed(config.seed)  # as xares has done, before embedding drew from it
    task.run_mlp()
    if config.do_knn:
        task.run_knn()


def _link_archives(config: Any, source: Path, directory: Path) -> TaskFiles:
    """Link the archives of a task into the folder where xares looks for them, and return their state."""
    archives = [archive for found in xares_tasks.archives(config, source).values() for archive in found]
    names = [path.name for path in archives]
    files = dict(zip(names, task_files.file_states(source, names), strict=True))
    for archive in archives:
        (directory / archive.name).symlink_to(archive.absolute())
    return TaskFiles(str(source.absolute()), 0, files)


def _check_all_embedded(config: Any, place: Place) -> None:
    """Refuse embeddings that lack clips: xares skips what it cannot read, with a warning."""
    encoded = {str(split): pattern for split, pattern in config.encoded_tar_name_of_split.items()}
    for split, archives in xares_tasks.archives(config, place.task).items():
        clips = sum(xares_tasks.count_samples(archive, xares_tasks.AUDIO) for archive in archives)
        rows = sum(xares_tasks.count_samples(tar, ("npy",)) for tar in place.embeddings.glob(encoded[split]))
        if clips == 0 or rows < clips:  # of a long clip there may be several crops
            (place.embeddings / config.xares_settings.encoded_ready_filename).unlink()
            raise TaskError(f"split {split}: {clips - rows} of {clips} clips cannot be read; see {place.results / LOG}")


@contextlib.contextmanager
def _output_to(stream: Any) -> Iterator[Any]:
    """Send what xares and its progress bars print to a stream."""
    from loguru import logger
    from xares.common import setup_global_logger

    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        try:
            setup_global_logger()  # it keeps the stream of this moment
            yield stream
        finally:
            logger.remove()
            logging.captureWarnings(False)


def download(tasks_dir: Path, patterns: str, encoder: Any) -> None:
    """Download archives of xares' own tasks from Zenodo, with its own code, to `tasks_dir/<task>`.

    A folder appears once its archives are complete; what is there is not downloaded again.

    Raises:
        SystemExit: the patterns are the default, which all tasks match, or a download fails.
    """
    from xares.utils import download_zenodo_record

    if patterns == ALL_TASKS:
        raise SystemExit("DOWNLOAD: TASKS must say which tasks to download, such as TASKS='esc50 gtzan_genre'")
    configs = {config.name: config for config in (make(encoder) for make in xares_tasks.kits_tasks())}
    wanted = {name: config for name, config in sources.choose(configs, patterns).items() if config.zenodo_id}
    if not wanted:
        return
    tasks_dir.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(tasks_dir):
            for name, config in wanted.items():
                if (tasks_dir / name).is_dir():
                    continue
                partial = tasks_dir / f".{name}{PARTIAL_SUFFIX}"
                shutil.rmtree(partial, ignore_errors=True)  # of a killed process
                try:
                    partial.mkdir()
                    download_zenodo_record(config.zenodo_id, str(partial))
                    partial.rename(tasks_dir / name)
                except (OSError, zipfile.BadZipFile) as error:
                    raise SystemExit(f"DOWNLOAD: {name}: {error}") from None
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    except FolderInUseError as error:
        raise SystemExit(f"DOWNLOAD: {error}") from None


def main(argv: list[str] | None = None, prog: str = "evaluate_xares.sh") -> None:
    """Command line of evaluate_xares.sh."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="config (X, configs.X or configs.poc.X) or any importable module with the HEAR API",
    )
    parser.add_argument(
        "tasks_dir",
        metavar="TASKS_DIR",
        type=given_path,
        help="folder of tasks: X-ARES archives in folders by the names of its tasks (esc50/wds-audio-fold-1-*.tar), "
        "or HEAR tasks",
    )
    parser.add_argument(
        "output_dir", metavar="OUTPUT_DIR", type=given_path, help="folder for embeddings, heads and scores"
    )
    parser.add_argument("--model", metavar="PATH", help="argument of load_model (in the script: MODEL=)")
    parser.add_argument("--name", type=plain_name, help="name of the results (in the script: NAME=); default: CONFIG")
    parser.add_argument(
        "--tasks",
        default=ALL_TASKS,
        metavar="PATTERNS",
        help="only tasks with matching names, such as 'esc50 gtzan*' (in the script: TASKS=)",
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="download the archives of the tasks in TASKS that TASKS_DIR lacks (in the script: DOWNLOAD=1)",
    )
    parser.add_argument(
        "--redo", action="store_true", help="replace results of other weights or files (in the script: REDO=1)"
    )
    args = parser.parse_args(argv)
    if importlib.util.find_spec("xares") is None:
        raise SystemExit("xares is not installed; pip install --no-deps -r requirements-hear.txt")
    if not args.tasks_dir.is_dir() and not args.download:
        raise SystemExit(f"TASKS_DIR: {args.tasks_dir} is not a folder")
    module = resolve_module(args.config)
    origin = find_origin(module, args.model, None)._replace(scene_layout=None)  # timestamps have only one layout
    name = args.name or module.removeprefix("configs.")
    with xares_kit.stand_ins():
        encoder = load_encoder(origin, name)
        failures = evaluate_all(encoder, origin, args)
    table = xares_table.write_table(args.output_dir)
    if table:
        print(table)
    if failures:
        raise SystemExit("\n".join(["not evaluated:", *failures]))


def evaluate_all(encoder: xares_kit.HearEncoder, origin: Origin, args: argparse.Namespace) -> list[str]:
    """Evaluate an encoder on the chosen tasks; one sentence for each that failed.

    Raises:
        SystemExit: there is no task, or none matches.
    """
    with _output_to(io.StringIO()):
        if args.download:
            download(args.tasks_dir, args.tasks, encoder)
            if not args.tasks_dir.is_dir():
                raise SystemExit(f"TASKS: {args.tasks} matches no task of X-ARES that can be downloaded")
        found = xares_tasks.find_tasks(args.tasks_dir, encoder)
    for archive in unpack.archives(args.tasks_dir):
        print(f"skipped {archive}: HEAR tasks must be unpacked, as extract_features.sh does in CACHE", file=sys.stderr)
    if not found:
        raise SystemExit(f"TASKS_DIR: {args.tasks_dir} has no folder with the name of an X-ARES task, and no HEAR task")
    chosen = sources.choose(found, args.tasks)
    if not chosen:
        raise SystemExit(f"TASKS: {args.tasks} matches none of {', '.join(found)}")
    failures = []
    for number, (task, make) in enumerate(chosen.items(), start=1):
        print(f"{type(encoder).__name__}: {task} ({number} of {len(chosen)})", flush=True)
        place = place_of(args.output_dir, task, type(encoder).__name__)
        try:
            with _output_to(io.StringIO()):
                config = make()
            if config.pretrained_dependencies:
                raise TaskError("it needs a language model, which is not supported")
            evaluate(config, args.tasks_dir / task, place, origin, args.redo)
        except (TaskError, FolderInUseError) as error:
            failures.append(f"{task}: {error}")
        except Exception as error:  # a damaged task must not stop the others
            failures.append(f"{task}: {type(error).__name__}: {error}; see {place.results / LOG}")
    return failures


if __name__ == "__main__":
    with quiet_exit():
        main()
