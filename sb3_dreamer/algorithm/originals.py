"""Observations as the environment gives them, where ``VecNormalize`` stands between it and the agent."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from weakref import WeakSet

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_dreamer.common.preprocessing import NumpyObs

#: Where infos keep the last observation of an episode as the environment gave it
ORIGINAL = "original_terminal_observation"

#: Those of which a warning has said that last observations are estimated
_ESTIMATED: WeakSet[VecNormalize] = WeakSet()


class _KeepsOriginals:
    """
    Takes the place of a method inside of ``VecNormalize``, which clips the last observation of an episode and keeps no other.
    A wrapper would do, but SB3's evaluation expects the same wrappers around both environments.

    :param venv: environment whose ``step_wait`` is replaced
    """

    def __init__(self, venv: VecEnv) -> None:
        self._step_wait = venv.step_wait

    def __call__(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self._step_wait()
        for i in np.flatnonzero(dones):
            if "terminal_observation" in infos[i]:
                infos[i][ORIGINAL] = infos[i]["terminal_observation"]
        return observations, rewards, dones, infos


def keep_originals(normalize: VecNormalize | None) -> None:
    """
    Let ``VecNormalize`` pass on terminal observations as they were before it.

    :param normalize: of the environment
    """
    if normalize is not None and normalize.norm_obs and not isinstance(normalize.venv.step_wait, _KeepsOriginals):
        normalize.venv.step_wait = _KeepsOriginals(normalize.venv)  # type: ignore[method-assign]


@contextmanager
def first_reset(normalize: VecNormalize | None, is_counted: bool) -> Iterator[None]:
    """
    Context of the reset with which training begins.

    :param normalize: of the environment
    :param is_counted: whether its statistics have the first observation already, as those of a checkpoint that was written at
        the end of an episode do
    """
    keep_originals(normalize)
    if normalize is None or not is_counted:
        yield
        return
    training, normalize.training = normalize.training, False
    try:
        yield
    finally:
        normalize.training = training


def _before_normalization(normalize: VecNormalize, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """The parts of a terminal observation that ``VecNormalize`` has changed, as they were before."""
    if not normalize.norm_obs:
        return {}
    if ORIGINAL not in info and normalize not in _ESTIMATED:
        _ESTIMATED.add(normalize)
        warnings.warn(
            f"The last observation of an episode is stored as {type(normalize).__name__} has clipped it, to "
            f"{normalize.clip_obs} standard deviations: the environment's own could not be captured. Either a wrapper outside "
            "of it replaces infos, or it does not call step_wait() of the environment inside."
        )
    parts = _by_key(info[ORIGINAL] if ORIGINAL in info else normalize.unnormalize_obs(info["terminal_observation"]))
    return {key: parts[key] for key in normalize.norm_obs_keys or parts}


def original_observations(normalize: VecNormalize | None, observations: NumpyObs) -> NumpyObs:
    """
    Undo ``VecNormalize`` for the observations of the last step or reset.

    :param normalize: of the environment
    :param observations: as the agent sees them
    :return: the same, with the keys that ``VecNormalize`` changes as they were before it
    """
    if normalize is None or not normalize.norm_obs:
        return observations
    originals = normalize.get_original_obs()
    if isinstance(observations, dict):
        return observations | {key: originals[key] for key in normalize.norm_obs_keys or ()}  # type: ignore[call-overload]
    return originals


def check_wrappers(normalize: VecNormalize | None, observations: NumpyObs, originals: NumpyObs) -> None:
    """
    Check that wrappers outside of ``VecNormalize`` leave shapes alone.

    :param normalize: of the environment
    :param observations: as the agent sees them
    :param originals: of :func:`original_observations`
    :raises ValueError: if the shapes differ: the originals are then not what the agent sees
    """
    if normalize is None:
        return
    before = _by_key(originals)
    for key, seen in _by_key(observations).items():
        if seen.shape != before[key].shape:
            name, shapes = f" '{key}'" if key else "", (before[key].shape[1:], seen.shape[1:])
            raise ValueError(
                f"The observations{name} have shape {shapes[0]} in VecNormalize, but {shapes[1]} after "
                "the wrappers outside of it, such as VecFrameStack. Put VecNormalize around them. In RL Zoo, where "
                "frame_stack comes around normalize, leave one of them out: "
                "policy_kwargs=dict(normalize_observations=True) normalizes, and the latent state remembers."
            )


def arrived_observations(
    normalize: VecNormalize | None, originals: NumpyObs, dones: np.ndarray, infos: list[dict[str, Any]]
) -> NumpyObs:
    """
    Put the last observation of an episode in the place of the first of the next one.

    :param normalize: of the environment
    :param originals: of :func:`original_observations`, after a step
    :param dones: whether it ended an episode, (n_envs,)
    :param infos: of the step, with the last observation of an episode that ended
    :return: the observations that the actions led to, a copy where an episode has ended
    """
    if not np.any(dones):
        return originals
    next_obs = deepcopy(originals)
    for i in np.flatnonzero(dones):
        last = infos[i].get("terminal_observation")
        if last is None:
            continue
        given = _by_key(last) if normalize is None else _by_key(last) | _before_normalization(normalize, infos[i])
        for key, target in _by_key(next_obs).items():
            value = np.asarray(given[key])
            if value.shape != target[i].shape:  # which a VecEnv of SB3 has repeated until it fits
                name = f" '{key}'" if key else ""
                raise ValueError(
                    f"The terminal observation{name} of environment {i} has shape {value.shape}, expected {target[i].shape}: "
                    "the environment returns other shapes than its observation_space says."
                )
            off = target.dtype.kind in "biu" and value.dtype.kind == "f"  # VecNormalize has made rounding errors
            target[i] = np.rint(value) if off else value
    return next_obs


def _by_key(observations: NumpyObs) -> dict[str, np.ndarray]:
    return observations if isinstance(observations, dict) else {"": observations}
