"""Runs of a benchmark as child processes with one thread each, several at a time."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")


class Cost(NamedTuple):
    """What a process took, in seconds."""

    wall: float
    cpu: float


def run_python(arguments: Sequence[str]) -> Cost:
    """
    Run this Python with one thread, and the top of the checkout as its import path.

    :param arguments: of the interpreter
    :return: seconds that it took
    :raises RuntimeError: with the end of its output, if it fails
    """
    with tempfile.TemporaryFile("w+") as output:
        wall = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - wall
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(arguments)} ended with {child.returncode}:\n{output.read()[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def attempt_all(perform: Callable[[Item], object], items: Iterable[Item], jobs: int) -> list[str]:
    """
    Perform all items; one that fails does not stop the others.

    :param perform: called with each item, in a thread; fails with a ``RuntimeError``
    :param items: in order
    :param jobs: items at a time
    :return: what failed
    """
    failures: list[str] = []

    def attempt(item: Item) -> None:
        try:
            perform(item)
        except RuntimeError as error:
            failures.append(str(error))
            print(error, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(attempt, items))
    return failures
