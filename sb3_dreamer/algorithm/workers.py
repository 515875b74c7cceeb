"""What SB3's vectorized environments leave to be done: workers that end are noticed, last observations are copied."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from multiprocessing.connection import wait
from typing import Any, SupportsFloat

import gymnasium as gym
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv


class _Watched:
    """
    Connection to a worker. A forked worker inherits the connections of those before it, so that their end closes nothing: the
    process itself is watched, too.

    :param connection: of ``SubprocVecEnv``
    :param process: at its other end
    """

    def __init__(self, connection: Any, process: Any) -> None:
        self._connection, self._process = connection, process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def recv(self) -> Any:
        """Receive an answer; an ``EOFError`` if the process has ended without one."""
        if self._connection in wait([self._connection, self._process.sentinel]):
            return self._connection.recv()
        self._process.join()
        raise EOFError(f"process {self._process.pid} ended with exit code {self._process.exitcode}")


class _CopiesLast:
    """
    Takes the place of an environment's ``step`` and copies the last observation of an episode. ``DummyVecEnv`` keeps a
    reference to it, and an environment that returns the same array again and again overwrites it in the reset that follows.

    :param env: whose method is replaced
    """

    def __init__(self, env: gym.Env) -> None:
        self._step = env.step

    def __call__(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._step(action)
        return deepcopy(observation) if terminated or truncated else observation, reward, terminated, truncated, info


@contextmanager
def watched_workers(env: VecEnv | None, step: Callable[[], int]) -> Iterator[None]:
    """
    Context in which an environment makes steps.

    :param env: any
    :param step: tells the number of the step, for the error's text
    :raises RuntimeError: if a process of a ``SubprocVecEnv`` has ended
    """
    workers = None if env is None else env.unwrapped
    if isinstance(workers, DummyVecEnv):
        for one in workers.envs:
            if not isinstance(one.step, _CopiesLast):
                one.step = _CopiesLast(one)  # type: ignore[method-assign]
    if not isinstance(workers, SubprocVecEnv):
        yield
        return
    if not isinstance(workers.remotes[0], _Watched):
        pairs = zip(workers.remotes, workers.processes, strict=True)
        workers.remotes = tuple(_Watched(remote, process) for remote, process in pairs)  # type: ignore[assignment]
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise RuntimeError(
            f"An environment process ended in step {step()} (its own error is printed above): {error!r}. Model and replay "
            "buffer are those of the last step: save them, or continue training after set_env()."
        ) from error
