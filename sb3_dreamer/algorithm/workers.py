"""What SB3's vectorized environments leave to be done: dead workers are noticed, rewards checked, last observations copied."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from multiprocessing.connection import wait
from typing import Any, SupportsFloat

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv


class WorkerError(RuntimeError):
    """A process of ``SubprocVecEnv`` has ended."""


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


class _CheckedStep:
    """
    Takes the place of an environment's ``step``. It refuses rewards that are no numbers, which ``DummyVecEnv`` would convert,
    and copies the last observation of an episode: ``DummyVecEnv`` keeps a reference to it, and an environment that returns the
    same array again and again overwrites it in the reset that follows.

    :param env: whose method is replaced
    :param index: of the environment, for errors
    """

    def __init__(self, env: gym.Env, index: int) -> None:
        self._step, self._index = env.step, index

    def __call__(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._step(action)
        if not _is_number(reward):
            raise ValueError(
                f"The reward of environment {self._index} is {reward!r} ({type(reward).__name__}), expected a number."
            )
        return deepcopy(observation) if terminated or truncated else observation, reward, terminated, truncated, info


def _is_number(value: Any) -> bool:
    """Whether it is one real number; NumPy's strings and complex numbers have ``__float__``, too."""
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    if not hasattr(value, "__float__") or kind not in "biuf":
        return False
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):  # several numbers
        return False
    return True


def check_steps(env: VecEnv | None) -> None:
    """
    Let the environments of a ``DummyVecEnv`` check their rewards and copy their last observations, from now on.

    :param env: any; others stay as they are
    """
    vectorized = None if env is None else env.unwrapped
    for index, outermost in enumerate(vectorized.envs if isinstance(vectorized, DummyVecEnv) else []):
        layers = [outermost]
        while isinstance(layers[-1], gym.Wrapper):
            layers.append(layers[-1].env)
        # A Monitor sums up rewards, so they are checked inside of it, too
        for one in (outermost, *(layer.env for layer in layers if isinstance(layer, Monitor))):
            if not isinstance(one.step, _CheckedStep):
                one.step = _CheckedStep(one, index)  # type: ignore[method-assign]


@contextmanager
def watched_workers(env: VecEnv | None, step: Callable[[], int]) -> Iterator[None]:
    """
    Context in which an environment makes steps.

    :param env: any
    :param step: tells the number of the step, for the error's text
    :raises WorkerError: if a process of a ``SubprocVecEnv`` has ended
    """
    workers = None if env is None else env.unwrapped
    if not isinstance(workers, SubprocVecEnv):
        yield
        return
    if not isinstance(workers.remotes[0], _Watched):
        pairs = zip(workers.remotes, workers.processes, strict=True)
        workers.remotes = tuple(_Watched(remote, process) for remote, process in pairs)  # type: ignore[assignment]
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise WorkerError(
            f"An environment process ended in step {step()} (its own error is printed above): {error!r}. Model and replay "
            "buffer are those of the last step: save them, or continue training after set_env()."
        ) from error
