"""Several ranks on this machine: forked from the test, which has imported everything already, or under torchrun itself."""

import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th

from sb3_dreamer.ranks import distributed

Job = Callable[[int], Any]


class Outcome(NamedTuple):
    """How a rank ended."""

    result: Any  # of its job
    error: str  # type and text of its exception, "" for none
    exit_code: int | None  # negative: killed by this signal; None: still running when the time was over


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells a process."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()}


def run_ranks(job: Job, size: int = 2, limit: float = 90.0, **environment: str) -> list[Outcome]:
    """
    :param job: carried out by every rank, given its number; what it returns is pickled
    :param size: number of ranks
    :param limit: seconds after which those that are left are killed
    :param environment: further variables
    """
    context, port = multiprocessing.get_context("fork"), free_port()
    pipes, processes = [], []
    for rank in range(size):
        receiver, sender = context.Pipe(duplex=False)
        variables = rank_environment(rank, size, port) | {"SB3_DREAMER_TIMEOUT": "20"} | environment
        process = context.Process(target=_carry_out, args=(job, rank, variables, sender), daemon=True)
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    return _outcomes(processes, pipes, time.monotonic() + limit)


def _outcomes(processes: list[Any], pipes: list[Any], until: float) -> list[Outcome]:
    outcomes = []
    for process, pipe in zip(processes, pipes, strict=True):
        result, error = None, ""
        try:
            if pipe.poll(max(until - time.monotonic(), 0.0)):
                result, error = pickle.loads(pipe.recv_bytes())
        except EOFError:  # killed
            pass
        process.join(max(until - time.monotonic(), 5.0))
        outcomes.append(Outcome(result, error, process.exitcode))
        if process.is_alive():
            process.kill()
            process.join()
    return outcomes


def _carry_out(job: Job, rank: int, environment: dict[str, str], sender: Any) -> None:
    th.set_num_threads(1)  # threads of the forked process did not come along, and would be waited for
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    result, error = None, ""
    try:
        result = job(rank)
    except BaseException as raised:
        error = f"{type(raised).__name__}: {raised}"
        if "-s" in sys.argv:
            traceback.print_exc()
    sender.send_bytes(pickle.dumps((result, error)))
    sender.close()
    if not error:
        distributed.leave()
    os._exit(1 if error else 0)


def results(outcomes: list[Outcome]) -> list[Any]:
    """What all ranks returned; none of them may have failed."""
    assert all(outcome.error == "" and outcome.exit_code == 0 for outcome in outcomes), outcomes
    return [outcome.result for outcome in outcomes]
