"""When a run saves and when it stops: the clock of the step checkpoints, and the signals that ask it to end.

Schedulers announce an end by SIGTERM or SIGUSR1, a person by Ctrl-C. The run then finishes its step, writes a
checkpoint and exits with status 0. All processes must do so at the same step, whichever of them was told.
"""

import logging
import os
import signal
import threading
import time
from types import FrameType

from audio_mamba.training import distributed

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Interruption:
    """A context in which signals do not end the process but are noted. A second Ctrl-C ends it at once.

    Args:
        minutes: between two step checkpoints; 0 for none but at a stop.
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

    @property
    def requested(self) -> bool:
        """Whether this process was told to stop; the others may not know it yet."""
        return self._signal is not None

    def ask(self) -> bool:
        """Call it in every process after the same steps: sets `save_now` and `stop_now`; returns `stop_now`."""
        if self._signal is not None and not self._announced:
            self._announced = True
            logger.warning("%s: the run saves and stops", signal.Signals(self._signal).name)
        due = distributed.is_main() and time.monotonic() - self._saved_at > self._seconds
        self.save_now, self.stop_now = self._agreement.vote(due, self._signal is not None)
        return self.stop_now

    def saved(self) -> None:
        """A checkpoint was written: the clock starts again."""
        self._saved_at = time.monotonic()
        self.save_now = False


def leave_signals_to_the_trainer(worker_id: int) -> None:
    """For data-loading workers: schedulers and terminals send signals to all processes, but the trainer still needs
    its workers for the steps until it stops. So they end by SIGTERM only where the trainer itself sends it."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_the_trainer, args=(os.getppid(),), daemon=True).start()


def _wait_for_the_trainer(trainer: int) -> None:
    if hasattr(signal, "sigwaitinfo"):
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
            pass
    else:  # macOS does not say who sent a signal: there a SIGTERM to all processes ends the workers as well
        signal.sigwait({signal.SIGTERM})
    os._exit(0)
