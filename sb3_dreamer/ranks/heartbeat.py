"""Detects ranks that died or hang: signs of life and progress, exchanged through the launcher's key-value store."""

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

#: Seconds between two signs of life
_INTERVAL = 1.0
#: Seconds that a rank waits for the store when it ends anyway
_PATIENCE = 5.0
#: Prefix of all keys in the store
_KEY = "sb3_dreamer"


class RankError(RuntimeError):
    """
    The ranks cannot start, or cannot continue, to work together.

    :param message: for the user
    :param cause: what the other ranks are told, without this rank's prefix; None: the message
    """

    def __init__(self, message: str, cause: str | None = None):
        super().__init__(message)
        self.cause = cause or message


def first_line(error: BaseException) -> str:
    """
    First line of an error's text, for messages that quote it.

    :param error: its text may have any number of lines
    :return: the line
    """
    return (str(error).splitlines() or [""])[0]


class Sign(NamedTuple):
    """A sign of life."""

    beats: int
    progress: int
    is_free: bool  # waits, or runs callbacks: no progress is expected


class Heartbeat:
    """
    Sends signs of life from a background thread, and interprets those of the other ranks.

    A rank is lost if it sends no sign for ``timeout`` seconds, or if it makes no step in that time although it is neither
    waiting nor in a callback. An evaluation may take any time. Only the background thread talks to the store, which may hang
    when the machine that holds it is frozen: then, too, everybody else stops after ``timeout`` seconds.

    :param store: PyTorch's key-value store of the job
    :param rank: of this process
    :param size: number of ranks
    :param timeout: seconds
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float):
        self._store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self.progress, self._free, self._beats = 0, 1, 0
        #: Whether this rank is already stopping because another one is lost
        self.is_losing = False
        #: Last sign of every other rank, and when it last sent one and last made progress
        self._others: dict[int, tuple[Sign, float, float]] = {}
        #: What the thread has read from the store: signs, the first failure, an error of the store, and when
        self._signs: dict[int, Sign] = {}
        self._failure: str | None = None
        self._store_error: RuntimeError | None = None
        self._read_at = time.monotonic()
        self._to_tell: str | None = None
        self._condition, self._rounds = threading.Condition(), 0
        self._ended = self._is_asked = False
        self._thread = threading.Thread(target=self._run, name="sb3_dreamer heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            try:
                self._exchange()
                self._store_error = None
            except RuntimeError as error:  # the store is gone: the thread that waits for the others raises the error
                self._store_error = error
            with self._condition:
                self._read_at = time.monotonic()
                self._rounds += 1
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._ended or self._is_asked, min(_INTERVAL, self.timeout / 5.0))
                self._is_asked = False

    def _exchange(self) -> None:
        """Talk to the store: the only place, in the background, where this may hang."""
        told, self._to_tell = self._to_tell, None
        if told is not None:
            self._store.compare_set(f"{_KEY}/failure", "", told)
        self._beats += 1
        self._store.set(f"{_KEY}/{self.rank}", f"{self._beats} {self.progress} {int(self._free > 0)}")
        for other in range(self.size):
            if other != self.rank and self._store.check([f"{_KEY}/{other}"]):
                beats, progress, is_free = self._store.get(f"{_KEY}/{other}").split()
                self._signs[other] = Sign(int(beats), int(progress), is_free == b"1")
        if self._store.check([f"{_KEY}/failure"]):
            self._failure = self._store.get(f"{_KEY}/failure").decode(errors="replace")

    def _ask(self) -> None:
        """Let the thread talk to the store now, and wait for a whole exchange, but not for ever."""
        with self._condition:
            wanted, self._is_asked = self._rounds + 2, True  # one exchange may be in progress
            self._condition.notify_all()
            end = time.monotonic() + _PATIENCE
            while self._rounds < wanted and self._thread.is_alive() and time.monotonic() < end:
                self._is_asked = True
                self._condition.notify_all()
                self._condition.wait(0.05)

    def stop(self) -> None:
        """Stop sending signs of life."""
        with self._condition:
            self._ended = True
            self._condition.notify_all()
        self._thread.join(_PATIENCE)

    def working(self) -> AbstractContextManager[None]:
        """Context in which this rank is expected to make progress."""
        return self._freer_by(-1)

    def waiting(self) -> AbstractContextManager[None]:
        """Context in which this rank may pause, inside :meth:`working`."""
        return self._freer_by(1)

    @contextmanager
    def _freer_by(self, change: int) -> Iterator[None]:
        self._free += change
        try:
            yield
        finally:
            self._free -= change

    def check(self) -> None:
        """
        Check the signs of the other ranks.

        :raises RankError: if a rank is lost, or has reported a failure
        """
        now = time.monotonic()
        if self._failure is not None:
            raise self._error(self._failure)
        if self._store_error is not None:
            raise self._error("the launcher's store is gone, and so is the rank or agent that held it") from self._store_error
        if now - self._read_at > self.timeout:
            raise self._error(f"the launcher's store has not answered for {self.timeout:g} s: its machine may be frozen")
        for other, sign in sorted(self._signs.items()):
            last, heard, moved = self._others.get(other, (sign, now, now))
            heard = now if last.beats != sign.beats else heard
            moved = now if last.progress != sign.progress or sign.is_free else moved
            self._others[other] = sign, heard, moved
            if now - heard > self.timeout:
                raise self._error(f"rank {other} has sent no sign of life for {self.timeout:g} s")
            if now - moved > self.timeout:
                raise self._error(f"rank {other} has made no step for {self.timeout:g} s: an environment may hang")

    def lost(self, error: BaseException) -> RankError:
        """
        Find out which rank is lost.

        :param error: of the connection
        :return: an error that names the rank
        """
        self.is_losing = True  # the launcher may send SIGTERM in the meantime
        self._ask()
        lost = f"rank {1 - self.rank}"
        if self._failure is None and self.size > 2:
            before = dict(self._signs)
            time.sleep(3.0 * _INTERVAL)
            self._ask()
            silent = [str(other) for other, sign in sorted(before.items()) if self._signs[other] == sign]
            lost = f"rank {', '.join(silent)}" if silent else "a rank"
        return self._error(f"{self._failure or f'{lost} has ended without a message (killed?)'} ({first_line(error)})")

    @property
    def is_broken(self) -> bool:
        """Whether a rank has reported why it ended, or the store is gone."""
        return self._failure is not None or self._store_error is not None

    def ended(self) -> RankError:
        """Error for a SIGTERM from the launcher, with the reason if a rank has reported one."""
        self.is_losing = True
        self._ask()
        return self._error(self._failure or "received SIGTERM, which launchers send when another rank has died")

    def tell(self, error: BaseException) -> None:
        """
        Report to the other ranks why this one ends; only the first report counts.

        :param error: the reason
        """
        text = error.cause if isinstance(error, RankError) else f"rank {self.rank} ended with {type(error).__name__}: {error}"
        self._to_tell = text
        self._ask()

    def _error(self, text: str) -> RankError:
        hint = "The last checkpoint, if one was written, can be loaded."
        return RankError(f"Rank {self.rank} of {self.size} stops: {text}. {hint}", text)
