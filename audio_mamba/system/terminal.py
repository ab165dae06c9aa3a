"""Commands: options in the published spelling, and empty paths, Ctrl-C and closed outputs without a traceback."""

import argparse
import contextlib
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


def not_empty(text: str) -> str:
    """The `type` of an argument that names a file, folder or model. Empty text, as from a variable of a script that is
    not set, would be the current folder or the default model."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; is a shell variable unset?")
    return text


def given_path(text: str) -> Path:
    """`not_empty`, as a Path."""
    return Path(not_empty(text))


def hyphenated(arguments: list[str] | None) -> list[str]:
    """Rewrite published options such as `--num_workers` as `--num-workers`; None for the arguments of the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    names = (argument.partition("=") for argument in arguments)
    return [
        name.replace("_", "-") + equals + value if name.startswith("--") else name + equals + value
        for name, equals, value in names
    ]


@contextlib.contextmanager
def quiet_exit() -> Iterator[None]:
    """Wrap the main function of a command: Ctrl-C and a closed output, as by `| head`, end it without a traceback.

    Both end with the status that shells expect: Ctrl-C by SIGINT (130), a closed output by exit status 141. Standard
    streams that are closed from the start, as by `2>&-`, become the null device. Characters that standard output cannot
    encode are written as escapes.
    """
    open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
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


def open_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed.

    Progress bars cannot write to a closed one. Worse, the next file to be opened would get its number, and whatever a
    library writes to the stream would end up in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


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
