"""Commands that end without a traceback when the user presses Ctrl-C or the reader of their output goes away."""

import contextlib
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def quiet_exit() -> Iterator[None]:
    """Wrap the main function of a command: Ctrl-C and a closed output, as by `| head`, end it without a traceback.

    Both end with the status that shells expect: Ctrl-C by SIGINT (130), a closed output by exit status 141. A command
    that was started without standard output or standard error (`2>&-`) runs without them.
    """
    replace_missing_streams()
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.excepthook = lambda *_: None  # Python still ends itself by SIGINT, so that scripts around it stop as well
        raise
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        if not closed:  # another pipe broke, such as one to a worker process
            raise
        for stream in closed:
            discard(stream)
        raise SystemExit(128 + signal.SIGPIPE)


def replace_missing_streams() -> None:
    """Open the null device in place of standard streams that were closed before the program started.

    Python has None for them, on which progress bars and `isatty` fail, and the system would give their numbers to the
    next files that are opened, so that a message of a C library ended up in a checkpoint.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # as standard streams are
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))


def discard(stream: TextIO) -> None:
    """Send everything that is written to a standard stream from now on to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class OutputHandler(logging.StreamHandler):
    """Logs to standard output. If its reader goes away, says so once on stderr and lets the program continue."""

    def __init__(self):
        super().__init__(sys.stdout)

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], BrokenPipeError):
            return super().handleError(record)
        discard(sys.stdout)
        try:
            print("standard output was closed; continuing without it", file=sys.stderr)
        except BrokenPipeError:  # as after 2>&1
            discard(sys.stderr)


def _is_closed(stream: TextIO) -> bool:
    """Whether a standard stream is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
