"""Worker processes that exit with their parent, and pools of them that can be stopped."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event

_stop: Event  # of each worker of a `stoppable_pool`


class Stopped(Exception):
    """The main process has asked its workers to stop."""


@contextmanager
def stoppable_pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple = ()
) -> Iterator[ProcessPoolExecutor]:
    """Processes that exit with their parent. After an exception in the block no new call starts, and running ones end
    at their next `check_stop`.

    initializer: called with `initargs` at the start of each process.
    """
    stop = multiprocessing.Event()
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(stop, initializer, initargs)) as pool:
        try:
            yield pool
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def check_stop() -> None:
    """In a worker of a `stoppable_pool`: raises Stopped once the main process has asked for that."""
    if _stop.is_set():
        raise Stopped


def _start_worker(stop: Event, initializer: Callable[..., None] | None, initargs: tuple) -> None:
    global _stop
    _stop = stop
    exit_with_parent()
    if initializer:
        initializer(*initargs)


def exit_with_parent() -> None:
    """Make this worker process exit when its parent does, and ignore Ctrl-C. Call it first in a worker.

    A terminal sends Ctrl-C to all processes, but ending the workers is the parent's task. A killed parent cannot do
    that, so a thread of the worker waits for the parent's end.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("exit_with_parent is for processes that multiprocessing has started")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
