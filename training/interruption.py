"""When a run saves and when it stops: the timer of the step checkpoints, and the signals that ask it to stop.

Schedulers announce the end of a job by SIGTERM or SIGUSR1; a person presses Ctrl-C. The run then finishes its step,
writes a checkpoint and exits with status 0. All processes do so at the same step, whichever of them got the signal.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from audio_mamba.training import distributed

logger = logging.getLogger(__name__)

SECONDS_TO_DIE = 0.2  # between the closing of a killed process's files and its end
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interruption:
    """A context in which signals are recorded instead of ending the process. A second Ctrl-C ends it at once.

    Args:
        minutes: time between two step checkpoints; 0 to write one only on a stop.
    """

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes if minutes else float("inf")
        self._saved_at = time.monotonic()
        self._signal: int | None = None
        self._announced = False
        self._agreement = distributed.Agreement(2)
        self.save_now = self.stop_now = False  # what all processes agree on

    def __enter__(self) -> "Interruption":
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_) -> None:
        if error is None:
            self._agreement.finish()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def ignore_further_signals(self) -> None:
        """If the run was asked to stop, ignore SIGTERM and SIGUSR1 from now on until the process ends.

        Schedulers repeat them, and the process still needs seconds to end. A second Ctrl-C still ends it.
        """
        if self.requested or self.stop_now:
            self._previous |= {signal.SIGTERM: signal.SIG_IGN, signal.SIGUSR1: signal.SIG_IGN}

    @property
    def requested(self) -> bool:
        """Whether this process got a signal to stop. The other processes may not know yet."""
        return self._signal is not None

    def poll(self) -> bool:
        """Agree with the other processes on `save_now` and `stop_now`; return `stop_now`.

        Every process must call this after the same steps.
        """
        asked = self.requested  # read once: a signal that comes later is announced, and voted on, after the next step
        if asked:
            self._announce()
        due = distributed.is_main() and time.monotonic() - self._saved_at > self._seconds
        self.save_now, self.stop_now = self._agreement.vote(due, asked)
        return self.stop_now

    def stop(self) -> None:
        """Set `stop_now` when the processes have agreed on it without `poll`, for example during a validation."""
        self.stop_now = True
        self._announce()

    def _announce(self) -> None:
        if self._signal is not None and not self._announced:
            self._announced = True
            logger.warning("%s: saving a checkpoint and stopping", signal.Signals(self._signal).name)

    def saved(self) -> None:
        """Restart the timer: a checkpoint was written."""
        self._saved_at = time.monotonic()
        self.save_now = False


class LostWorkerError(RuntimeError):
    """A data-loading worker was killed."""


class Shielded:
    """The batches of a DataLoader whose workers are left alone by SIGTERM, and leave the trainer alone when they die.

    Iterating raises LostWorkerError when a worker was killed.

    Workers are started with SIGTERM blocked in all their threads. `begin_worker` alone is too late for threads that a
    worker starts before it: torch's intra-op pool, once the trainer has called `torch.set_num_threads`. A SIGTERM
    delivered to one of those would end the worker.

    A lost worker is reported where the next batch is asked for. torch by itself raises an error wherever the main
    thread is when it hears of it, such as in the middle of writing a checkpoint.
    """

    _raise_if_lost: Callable[[int, None], None] | None = None  # torch's handler of SIGCHLD, one for all loaders

    def __init__(self, loader: Iterable):
        self._loader = loader

    def __iter__(self) -> Iterator:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a new process inherits it
        try:
            with _reporting_lost_workers():
                batches = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and str(handler.__module__).startswith("torch.utils.data."):
            Shielded._raise_if_lost = staticmethod(handler)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self._checked(batches)

    def _checked(self, batches: Iterator) -> Iterator:
        while True:
            with _reporting_lost_workers():
                self._check()
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except Exception:  # perhaps of the connection to a worker that is about to be dead
                    time.sleep(SECONDS_TO_DIE)
                    self._check()
                    raise
            yield batch

    def _check(self) -> None:
        if self._raise_if_lost is not None:
            self._raise_if_lost(signal.SIGCHLD, None)


@contextmanager
def _reporting_lost_workers() -> Iterator[None]:
    """Around what asks a DataLoader for something: say what the loss of a worker usually means."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise LostWorkerError(
            f"a data-loading process was lost ({str(error).splitlines()[0].strip(' .')}), probably for lack of memory; "
            "use fewer --num-workers"
        ) from error


def begin_worker(worker_id: int) -> None:
    """Leave signals, and the report of failures, to the trainer; the `worker_init_fn` of data-loading workers.

    Schedulers and terminals send signals to all processes, but the trainer still needs its workers until it stops. A
    worker ends by SIGTERM only if the trainer itself sent it. Errors of the data reach the trainer with the batches.
    """
    sys.excepthook = _report_unless_disconnected
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_the_trainer, args=(os.getppid(),), daemon=True).start()


def _report_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print no traceback when the trainer, in trouble of its own, hangs up while a worker hands it a batch.

    The thread of `multiprocessing` that serves shared memory gives such errors to `sys.excepthook`.
    """
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def _wait_for_the_trainer(trainer: int) -> None:
    if hasattr(signal, "sigwaitinfo"):
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
    else:  # macOS does not tell who sent a signal, so a SIGTERM to all processes ends the workers as well
        signal.sigwait({signal.SIGTERM})
    os._exit(0)
