"""
Short mode: documentation and examples as they stand, with everything that takes long made small.

What is replaced while :func:`short_mode` is on, and nothing else:

- ``DreamerV2(...)``: the arguments are checked against the real signature, then the sizes of networks, batches and buffer, the
  warm-up, the train ratio, the horizon and the device become those of ``tests/small.py``. Everything else (policy, spaces,
  losses, schedules, storage, exploration, encoder classes) stays as it was written. Where there is no GPU, the options that
  need one are left out.
- ``learn(n)`` of ``DreamerV2``, ``DreamerV3`` and ``PPO`` makes at most ``STEPS`` environment steps; ``PPO`` has short
  rollouts.
- ``train_offline(n)`` makes at most ``UPDATES`` updates.
- ``open_loop`` is shown at most two steps: the episodes of untrained agents are short.
- ``evaluate_policy`` plays at most ``EPISODES`` episodes, and ``EvalCallback`` and the checkpoint callbacks fire within the
  shortened run.
"""

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import stable_baselines3.common.callbacks
import stable_baselines3.common.evaluation
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy

import sb3_dreamer.dream
from sb3_dreamer import DreamerV2, DreamerV3
from sb3_dreamer.callbacks import ResumableCheckpointCallback, VideoPredictionCallback
from tests.small import LEARN, SMALL, SMALL_POLICY

STEPS, UPDATES, EPISODES, EVERY = 40, 2, 1, 30
#: In place of what is written; ``SMALL_POLICY`` likewise, of ``policy_kwargs``
SIZES = {**SMALL, **LEARN, "gradient_steps": 1, "explore_until": STEPS // 2}
#: Latents of one size whatever their kind, layers of every part
NETWORK_SIZES = {**SMALL_POLICY, "stochastic_classes": 4}
GPU_ONLY = ("precision", "cuda_graphs", "overlap")
CALLBACKS: tuple[tuple[type, str], ...] = (
    (EvalCallback, "eval_freq"),
    (CheckpointCallback, "save_freq"),
    (ResumableCheckpointCallback, "save_freq"),
    (VideoPredictionCallback, "save_freq"),
)


def small_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """
    :param given: constructor arguments of ``DreamerV2`` by name
    :return: the same with other sizes
    """
    policy_kwargs = dict(given.get("policy_kwargs") or {})
    sizes = dict(NETWORK_SIZES)
    if policy_kwargs.get("latent") == "gaussian":
        del sizes["stochastic_classes"]
    small = {**SIZES, "policy_kwargs": {**policy_kwargs, **sizes}}
    if given.get("explore_until") is None:
        del small["explore_until"]
    left_out = () if th.cuda.is_available() else GPU_ONLY
    return {name: value for name, value in {**given, **small}.items() if name not in left_out}


def at_most(function: Any, **limits: int) -> Any:
    """
    :param function: to wrap
    :param limits: largest values of some of its arguments
    :return: the function, given no more than these
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, highest in limits.items():
            bound.arguments[name] = min(bound.arguments[name], highest)
        return function(*bound.args, **bound.kwargs)

    return wrapper


def _small_init(init: Any) -> Any:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        if given.get("_init_setup_model", True):  # a model that is loaded has its sizes in the file
            given = small_arguments(given)
        init(**given)

    return wrapper


@contextmanager
def short_mode() -> Iterator[None]:
    """See the top of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DreamerV2, "__init__", _small_init(DreamerV2.__init__))
        patch.setattr(DreamerV2, "train_offline", at_most(DreamerV2.train_offline, n_updates=UPDATES))
        for algorithm in (DreamerV2, DreamerV3, PPO):
            patch.setattr(algorithm, "learn", at_most(algorithm.learn, total_timesteps=STEPS))
        patch.setattr(sb3_dreamer.dream, "open_loop", at_most(sb3_dreamer.dream.open_loop, context=2))
        for callback, name in CALLBACKS:
            patch.setattr(callback, "__init__", at_most(vars(callback)["__init__"], **{name: EVERY}))
        patch.setattr(PPO, "__init__", at_most(PPO.__init__, n_steps=8, batch_size=8, n_epochs=1))
        for module in (stable_baselines3.common.evaluation, stable_baselines3.common.callbacks):
            patch.setattr(module, "evaluate_policy", at_most(evaluate_policy, n_eval_episodes=EPISODES))
        yield
