"""Worker processes that exit with their parent."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess


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
