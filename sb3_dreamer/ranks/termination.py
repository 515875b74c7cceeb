"""Signals that announce the end of a process: SIGTERM, and SIGUSR1 as SLURM and others send it some time before."""

import signal
import threading
from types import FrameType
from typing import Any

from sb3_dreamer.ranks.distributed import joined


class TerminationNotice:
    """
    Notes a signal instead of ending at once, from :meth:`listen` to the end of the context that it is. Outside of the main
    thread, where Python takes no signals, it notes none.
    """

    def __init__(self) -> None:
        #: Number of the signal, None before it came
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Note signals from now on; handlers of the user's own stay."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.received = None
        for number in (signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)):
            before = signal.getsignal(number)
            if number not in self._before and (before is signal.SIG_DFL or joined() is not None):
                self._before[number] = before
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        ranks, before = joined(), self._before.get(number)
        if ranks is not None and callable(before) and ranks.heartbeat.is_broken:  # the launcher ends what is left of the run
            before(number, frame)
        self.received = number

    def __enter__(self) -> "TerminationNotice":
        return self

    def __exit__(self, *error: object) -> None:
        """Restore the handlers that were there before."""
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, before)

    def leave(self) -> None:
        """
        End the process, if a signal has come.

        :raises SystemExit: with the usual status for this signal
        """
        if self.received is not None:
            number, self.received = self.received, None
            raise SystemExit(128 + number)
