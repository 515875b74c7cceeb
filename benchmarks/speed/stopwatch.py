"""Where the time and the arithmetic of a running agent go, measured from outside: methods are wrapped, nothing is changed."""

import resource
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch as th
from torch.utils.flop_counter import FlopCounterMode


class _NoModules:
    """In place of the tracker of modules of PyTorch's counter."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        """Track nothing."""

    def __exit__(self, *_: object) -> None:
        """Track nothing."""


class OperationCounter(FlopCounterMode):
    """PyTorch's counter without hooks on modules, which would make the package take its plain paths and be counted there."""

    def __init__(self) -> None:
        super().__init__(display=False)
        self.mod_tracker = _NoModules()


class Stopwatch:
    """
    Adds up wall seconds, CPU seconds and floating-point operations by name.

    :param device: is waited for before and after everything that is timed
    """

    def __init__(self, device: th.device) -> None:
        self.device = device
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.flop: dict[str, int] = defaultdict(int)
        self.calls: dict[str, int] = defaultdict(int)
        self.counter: OperationCounter | None = None

    def clear(self) -> None:
        """Forget everything measured so far."""
        for numbers in (self.wall, self.cpu, self.flop, self.calls):
            numbers.clear()  # type: ignore[attr-defined]

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """
        Time a method from now on.

        :param owner: object or module
        :param method: its attribute
        :param name: under which it is added up
        """
        inner = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            result = inner(*args, **kwargs)
            for total, before, after in zip((self.wall, self.cpu, self.flop), start, self.now(), strict=True):
                total[name] += after - before  # type: ignore[index, assignment]
            self.calls[name] += 1
            return result

        owner.__dict__[method] = timed

    def now(self) -> tuple[float, float, int]:
        """
        :return: wall seconds, CPU seconds, floating-point operations
        """
        if self.device.type == "cuda":
            th.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time(), self.counter.get_total_flops() if self.counter else 0


def timed(action: Callable[[], Any], device: th.device) -> tuple[float, float]:
    """
    :param action: to be timed
    :param device: is waited for
    :return: wall and CPU seconds
    """
    watch = Stopwatch(device)
    wall, cpu, _ = watch.now()
    action()
    after = watch.now()
    return after[0] - wall, after[1] - cpu


def peak_rate(device: th.device, dtype: th.dtype = th.float32, size: int = 2048, seconds: float = 1.0) -> float:
    """
    What this machine can do at most: products of square matrices.

    :param device: where
    :param dtype: of the matrices
    :param size: of the matrices
    :param seconds: to measure for
    :return: best GFLOP/s of any product, by CPU time on CPUs with one thread and by wall time otherwise
    """
    a, b = (th.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    index, best, started = int(device.type == "cpu" and th.get_num_threads() == 1), float("inf"), time.perf_counter()
    a @ b
    while time.perf_counter() - started < seconds:
        best = min(best, timed(lambda: a @ b, device)[index])
    return 2.0 * size**3 / best / 1e9


def peak_memory(device: th.device) -> float:
    """
    :param device: cpu: the process' resident memory; cuda: what torch allocated
    :return: highest value so far, in MiB
    """
    if device.type == "cuda":
        return th.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak_memory(device: th.device) -> None:
    """
    :param device: cuda: :func:`peak_memory` begins anew; that of a CPU process cannot
    """
    if device.type == "cuda":
        th.cuda.reset_peak_memory_stats(device)
