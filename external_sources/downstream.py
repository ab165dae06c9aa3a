"""Train the downstream heads of one model, for every task and ten seeds, in parallel (downstream_experiments.sh)."""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, cast

from tqdm import tqdm

from audio_mamba.config_names import stored_name
from audio_mamba.data.audio_files import is_hidden
from audio_mamba.external_sources import layout, sources, task_files, worker
from audio_mamba.external_sources.grid import parse_grid
from audio_mamba.external_sources.origin import stale_heads
from audio_mamba.external_sources.task_files import read_json
from audio_mamba.system import machine
from audio_mamba.system.terminal import given_path, quiet_exit

# Measured: the kit and its libraries take 0.6 GB; it keeps several copies of a task's embeddings.
PROCESS_BYTES = 600 * 2**20
COPIES_OF_EMBEDDINGS = 4
PROCESSES_PER_GPU = 4  # not measured; each has its own CUDA context


class Job(NamedTuple):
    """One head to train: the folder of a task in the folder of a seed."""

    task: Path
    seed: int

    def is_done(self) -> bool:
        """Whether the results are complete."""
        return layout.is_done(self.task)

    def embedding_bytes(self) -> int:
        """Size of the embeddings of all splits."""
        return sum(file.stat().st_size for file in self.task.glob("*.embeddings.npy"))


def find_jobs(directory: Path, config: str, seeds: Sequence[int], tasks: str = "*", hidden: bool = False) -> list[Job]:
    """All tasks of a model for the given seeds. Embeddings without downstream folders are linked first.

    Args:
        directory: OUTPUT_DIR of extract_features.sh, or its todo_audioset.
        config: X, configs.X, configs.poc.X, hear_configs.X (published), or the name of another module.
        seeds: downstream seeds.
        tasks: patterns of the names of tasks.
        hidden: take tasks of hidden, trash or system names too; otherwise a line on stderr counts them.

    Raises:
        SystemExit: no such folder, model, seed, or task, or its embeddings are incomplete.
    """
    runs = directory if directory.name == layout.RUNS else directory / layout.RUNS
    if not runs.is_dir():
        raise SystemExit(f"OUTPUT_DIR: {runs} is not a folder; extract_features.sh makes it")
    names = [name for name in os.listdir(runs) if not is_hidden(name)]
    known = {run.module for run in map(layout.parse_run_name, names) if run}
    module = next((name for name in _module_names(config) if name in known), None)
    if module is None:
        raise SystemExit(
            f"CONFIG: {runs} has no runs of {config}; it has runs of {', '.join(sorted(known)) or 'no model'}"
        )
    jobs, folders = [], []
    for seed in seeds:
        layout.link_run(runs.parent, module, seed, hidden)
        folder = runs / layout.run_name(module, seed)
        if not folder.is_dir():
            raise SystemExit(f"SEEDS: {folder} does not exist, and there are no embeddings of {module} to make it from")
        jobs += [Job(task.absolute(), seed) for task in layout.task_folders(folder, tasks, hidden)]
        folders.append(folder)
    chosen = sources.choose({entry.name: entry for folder in folders for entry in folder.iterdir()}, tasks)
    if incomplete := layout.incomplete_embeddings(chosen.values()):
        raise SystemExit(f"OUTPUT_DIR: {incomplete} is incomplete; run extract_features.sh again")
    note = None if hidden else layout.hidden_note(folders)
    if note:
        print(note, file=sys.stderr)
    if not jobs:
        raise SystemExit(f"TASKS: {tasks} matches no task of {module} in {runs}")
    return jobs


def _module_names(config: str) -> list[str]:
    name = stored_name(config).removeprefix("configs.")
    return [config, f"configs.{name}", f"hear_configs.{name}"]


def parse_seeds(text: str) -> list[int]:
    """`10` means the seeds 0 to 9; `0,3,7` (with a comma) is a list of seeds.

    Raises:
        ValueError: anything else.
    """
    try:
        seeds = [int(part) for part in text.split(",") if part.strip()] if "," in text else list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        raise ValueError(f"SEEDS: {text!r} must be a number of seeds, such as 10, or a list with commas, such as 0,3,7")
    return list(dict.fromkeys(seeds))


def check_embeddings(jobs: Sequence[Job]) -> None:
    """Refuse embeddings of a task whose files have changed.

    Raises:
        SystemExit: names the first such task.
    """
    by_note = {(job.task / task_files.NOTE).resolve(): job.task for job in jobs}  # once for all seeds
    for task in by_note.values():
        if why := task_files.why_stale(task):
            raise SystemExit(
                f"TASKS_DIR: {why} since {task.name} was embedded; REDO=1 ./extract_features.sh embeds it again"
            )


def check_settings(jobs: Sequence[Job], grid: str | dict[str, list], redo: bool = False) -> list[Job]:
    """Refuse to add to results that were trained with another grid, or on other embeddings than the present ones.

    Args:
        jobs: finished jobs.
        grid: of `parse_grid`.
        redo: do not refuse results on other embeddings, but return them.

    Returns:
        The jobs to train again. Results of the published scripts, which store no settings, are accepted.

    Raises:
        SystemExit: names the first task that is refused.
    """
    stale = []
    for job in jobs:
        if not (job.task / worker.SETTINGS).is_file():
            continue
        if read_json(job.task / worker.SETTINGS, dict).get("grid") != grid:
            raise SystemExit(
                f"GRID: {job.task} was trained with another grid (see {worker.SETTINGS} there); "
                "choose another OUTPUT_DIR, or remove its downstream folders"
            )
        if why := stale_heads(job.task):
            if not redo:
                raise SystemExit(f"{why}; REDO=1 trains it again, or choose another OUTPUT_DIR")
            stale.append(job)
    return stale


def requested_threads(default: int) -> int:
    """OMP_NUM_THREADS if it is set, else a default.

    Raises:
        SystemExit: OMP_NUM_THREADS is not a number of threads.
    """
    text = os.environ.get("OMP_NUM_THREADS", str(default))
    if not text.isdecimal() or int(text) < 1:
        raise SystemExit(f"OMP_NUM_THREADS: {text!r} must be a number of threads")
    return int(text)


def run_jobs(
    jobs: Sequence[Job], grid: str | dict[str, list], at_once: int | None = None
) -> tuple[list[Job], list[Job]]:
    """Run each job in its own process, as many in parallel as cores and memory allow.

    Processes are forked from one that has imported the kit, since the import takes longer than many tasks. On machines
    with GPUs, where forking is not safe, each process starts from scratch.

    Args:
        jobs: at least one.
        grid: of `parse_grid`.
        at_once: processes in parallel, in place of what the machine allows.

    Returns:
        The jobs that failed, and those that another process is working on.
    """
    import torch

    gpus = torch.cuda.device_count()
    # The longest first, so that none of them runs alone at the end.
    waiting = sorted(jobs, key=lambda job: (-job.embedding_bytes(), job.seed))
    memory_each = PROCESS_BYTES + COPIES_OF_EMBEDDINGS * waiting[0].embedding_bytes()
    threads = requested_threads(default=1)  # a head is too small to gain from more
    if at_once is None:
        by_cores = max(1, machine.usable_cores() // threads)
        at_once = min(by_cores, machine.processes_that_fit(memory_each), PROCESSES_PER_GPU * gpus or len(waiting))
    at_once = min(len(waiting), at_once)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the new processes
    context: SpawnContext | ForkServerContext
    if gpus:
        context = multiprocessing.get_context("spawn")
    else:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["audio_mamba.external_sources.predictions"])

    slots = list(range(at_once))
    running: dict[int, tuple[BaseProcess, Job, int]] = {}
    failed: list[Job] = []
    in_use: list[Job] = []
    print(f"{len(waiting)} runs, {at_once} in parallel with {threads} thread{'s' * (threads > 1)} each")
    try:
        with tqdm(total=len(waiting), unit="run", desc="seeds x tasks") as bar:
            while waiting or running:
                while waiting and slots:
                    job, slot = waiting.pop(0), slots.pop(0)
                    process: BaseProcess = context.Process(
                        target=worker.run, args=(job.task, job.seed, grid, threads, slot % gpus if gpus else None)
                    )
                    process.start()
                    running[process.sentinel] = (process, job, slot)
                for sentinel in cast(list[int], wait(list(running))):
                    process, job, slot = running.pop(sentinel)
                    process.join()
                    slots.append(slot)
                    if process.exitcode:
                        (in_use if process.exitcode == worker.IN_USE else failed).append(job)
                    bar.update()
                    bar.set_postfix(failed=len(failed))
    finally:
        for process, _, _ in running.values():
            process.kill()
            process.join()
    return failed, in_use


def main(argv: list[str] | None = None, prog: str = "downstream_experiments.sh") -> None:
    """Command line of downstream_experiments.sh."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "config",
        metavar="CONFIG",
        help="model whose embeddings were extracted: X, configs.X, configs.poc.X or the name of another module",
    )
    parser.add_argument(
        "output_dir",
        metavar="OUTPUT_DIR",
        type=given_path,
        help="OUTPUT_DIR of extract_features.sh, or its todo_audioset",
    )
    parser.add_argument(
        "--seeds",
        default="10",
        help="number of seeds, or a list with commas (in the script: SEEDS=); default: %(default)s",
    )
    parser.add_argument(
        "--grid",
        default="published",
        help="published; small, for tasks of fewer than about a thousand training clips; a grid of heareval (default, "
        "fast, faster); or JSON, in a file or inline, whose lists replace "
        "those of the published grid (in the script: GRID=); default: %(default)s",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        help="runs in parallel (in the script: JOBS=); default: as many as cores and memory allow, and at most "
        f"{PROCESSES_PER_GPU} on each GPU",
    )
    parser.add_argument(
        "--tasks",
        default="*",
        metavar="PATTERNS",
        help="only tasks with matching names, such as 'drum* guitar*' (in the script: TASKS=)",
    )
    parser.add_argument("--hidden", action="store_true", help="take tasks of hidden, trash and system names too")
    parser.add_argument(
        "--redo",
        action="store_true",
        help="train again the heads whose embeddings have been replaced (in the script: REDO=1); default: refuse them",
    )
    args = parser.parse_args(argv)
    if args.jobs is not None and args.jobs < 1:
        raise SystemExit(f"JOBS: {args.jobs} must be at least 1")
    try:
        grid, seeds = parse_grid(args.grid), parse_seeds(args.seeds)
    except ValueError as error:
        raise SystemExit(str(error)) from None

    jobs = find_jobs(args.output_dir, args.config, seeds, args.tasks, args.hidden)
    check_embeddings(jobs)
    finished = [job for job in jobs if job.is_done()]
    try:
        stale = check_settings(finished, grid, args.redo)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    for job in stale:
        finished.remove(job)
        for name in (layout.DONE_PREDICTIONS, layout.SCORES):
            (job.task / name).unlink(missing_ok=True)
    todo = [job for job in jobs if job not in finished]
    print(f"{len(finished)} of {len(jobs)} runs are already finished")
    failed, in_use = run_jobs(todo, grid, args.jobs) if todo else ([], [])
    lines = ["failed:", *(str(job.task / worker.LOG) for job in failed)] if failed else []
    if in_use:
        lines += ["skipped, because another process is working there:", *(str(job.task) for job in in_use)]
    if lines:
        raise SystemExit("\n".join(lines))


if __name__ == "__main__":
    with quiet_exit():
        main()
