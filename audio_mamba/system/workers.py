"""What every worker process owes to the process that started it."""

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """End with the parent, however that ends, and leave Ctrl-C to it; a worker process calls this first.

    Ctrl-C reaches all processes of a terminal, and the main one knows how to end its workers. A killed one cannot tell
    anybody anything, so a thread of the worker waits for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
