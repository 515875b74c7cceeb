"""Who of the ranks still lives, and who makes progress: told to one another through the launcher's key-value store."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

#: Seconds between two signs of life
INTERVAL = 1.0
KEY = "sb3_dreamer"
CHECKPOINT = "The last checkpoint, if one was written, can be loaded."


class RankError(RuntimeError):
    """
    The ranks cannot work together, or no longer.

    :param message: for the user
    :param cause: what is told to the other ranks, without the name of this one
    """

    def __init__(self, message: str, cause: str | None = None):
        super().__init__(message)
        self.cause = cause or message


class Sign(NamedTuple):
    """A sign of life."""

    beats: int
    progress: int
    is_free: bool  # waits, or runs callbacks: no progress is expected


class Heartbeat:
    """
    A thread that gives signs of life, and what the others' signs mean.

    A rank is lost if nothing comes from it for ``timeout`` seconds, or if it has made no step in that time though it was
    neither waiting nor in a callback. An evaluation may take as long as it likes.

    :param store: PyTorch's key-value store of the job
    :param rank: of this process
    :param size: number of ranks
    :param timeout: seconds
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float):
        self._store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self.progress, self._free, self._beats = 0, 1, 0
        #: Set while it is found out who is lost
        self.is_losing = False
        self._last: dict[int, Sign] = {}
        self._heard: dict[int, float] = {}
        self._moved: dict[int, float] = {}
        self._ended = threading.Event()
        self._give_sign()
        self._thread = threading.Thread(target=self._run, name="sb3_dreamer heartbeat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(min(INTERVAL, self.timeout / 5.0)):
            with suppress(RuntimeError):  # the store has gone: whoever waits will notice
                self._give_sign()

    def _give_sign(self) -> None:
        self._beats += 1
        self._store.set(f"{KEY}/{self.rank}", f"{self._beats} {self.progress} {int(self._free > 0)}")

    def stop(self) -> None:
        """Give no more signs."""
        self._ended.set()
        self._thread.join()

    @contextmanager
    def working(self) -> Iterator[None]:
        """From here on steps are expected."""
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """No steps are expected here."""
        self._free += 1
        try:
            yield
        finally:
            self._free -= 1

    def check(self) -> None:
        """
        Look at the others' signs.

        :raises RankError: if one of them is lost, or has told why it ends
        """
        now = time.monotonic()
        told = self._told()
        if told is not None:
            raise self._error(told)
        for other in range(self.size):
            sign = None if other == self.rank else self._sign_of(other)
            if sign is None:
                continue
            last = self._last.get(other)
            if last is None or last.beats != sign.beats:
                self._heard[other] = now
            if last is None or last.progress != sign.progress or sign.is_free:
                self._moved[other] = now
            self._last[other] = sign
            if now - self._heard[other] > self.timeout:
                raise self._error(f"nothing has been heard of rank {other} for {self.timeout:g} s")
            if now - self._moved[other] > self.timeout:
                raise self._error(f"rank {other} has made no step for {self.timeout:g} s: an environment may hang")

    def lost(self, error: BaseException) -> RankError:
        """
        :param error: of the connection
        :return: one that says who is lost
        """
        self.is_losing = True  # the launcher may tell this process to end in the meantime
        told = self._told() or (f"rank {1 - self.rank} has ended without a word (killed?)" if self.size == 2 else None)
        if told is None:
            before = {other: self._sign_of(other) for other in range(self.size)}
            self._ended.wait(3.0 * INTERVAL)
            silent = [str(other) for other, sign in before.items() if other != self.rank and self._sign_of(other) == sign]
            named = f"rank {', '.join(silent)}" if silent else "a rank"
            told = self._told() or f"{named} has ended without a word (killed?)"
        return self._error(f"{told} ({(str(error).splitlines() or [''])[0]})")

    def ended(self) -> RankError:
        """What it means that the launcher tells this process to end."""
        self.is_losing = True
        return self._error(self._told() or "told to end (SIGTERM), as launchers do when another rank has died")

    def tell(self, error: BaseException) -> None:
        """
        Tell the others why this rank ends; only the first to do so is believed.

        :param error: the reason
        """
        text = error.cause if isinstance(error, RankError) else f"rank {self.rank} ended with {type(error).__name__}: {error}"
        with suppress(RuntimeError):
            self._store.compare_set(f"{KEY}/failure", "", text)

    def _told(self) -> str | None:
        """Why the first rank that failed did so, None if nobody has."""
        with suppress(RuntimeError):
            if self._store.check([f"{KEY}/failure"]):
                return self._store.get(f"{KEY}/failure").decode(errors="replace")
        return None

    def _sign_of(self, other: int) -> Sign | None:
        try:
            if self._store.check([f"{KEY}/{other}"]):
                beats, progress, is_free = self._store.get(f"{KEY}/{other}").split()
                return Sign(int(beats), int(progress), is_free == b"1")
        except RuntimeError as error:
            raise self._error("the launcher's store has gone, and with it the rank or agent that held it") from error
        return None

    def _error(self, text: str) -> RankError:
        return RankError(f"Rank {self.rank} of {self.size} stops: {text}. {CHECKPOINT}", text)
