"""Observations as the environment gives them, where ``VecNormalize`` stands between it and the agent."""

from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.preprocessing import NumpyObs


def original_observations(normalize: VecNormalize | None, observations: NumpyObs) -> NumpyObs:
    """
    :param normalize: of the environment
    :param observations: of its last step or reset, as the agent sees them
    :return: the same, but for the parts that ``VecNormalize`` changes, which are as they were before it
    """
    if normalize is None or not normalize.norm_obs:
        return observations
    originals = normalize.get_original_obs()
    if isinstance(observations, dict):
        return observations | {key: originals[key] for key in normalize.norm_obs_keys or ()}  # type: ignore[call-overload]
    return originals


def check_wrappers(normalize: VecNormalize | None, observations: NumpyObs, originals: NumpyObs) -> None:
    """
    :param normalize: of the environment
    :param observations: as the agent sees them
    :param originals: of :func:`original_observations`
    :raises ValueError: if wrappers outside of ``VecNormalize`` change shapes: what it had before normalizing is then not what
        the agent sees
    """
    if normalize is None:
        return
    pairs: list[tuple[str, Any, Any]] = [("", observations, originals)]
    if isinstance(observations, dict) and isinstance(originals, dict):
        pairs = [(f" '{key}'", observations[key], originals[key]) for key in observations]
    for name, seen, original in pairs:
        if np.shape(seen) != np.shape(original):
            raise ValueError(
                f"The observations{name} have shape {np.shape(original)[1:]} in VecNormalize, but {np.shape(seen)[1:]} after "
                "the wrappers outside of it, such as VecFrameStack. Put VecNormalize around them. In RL Zoo, where "
                "frame_stack comes around normalize, leave one of them out: "
                "policy_kwargs=dict(normalize_observations=True) normalizes, and the latent state remembers."
            )


def arrived_observations(
    normalize: VecNormalize | None, originals: NumpyObs, dones: np.ndarray, infos: list[dict[str, Any]]
) -> NumpyObs:
    """
    :param normalize: of the environment
    :param originals: of :func:`original_observations`, after a step
    :param dones: whether it ended an episode, (n_envs,)
    :param infos: of the step, with the last observation of an episode that ended
    :return: what the actions led to: where an episode ended its last observation, not the first of the next
    """
    if not np.any(dones):
        return originals
    next_obs = deepcopy(originals)
    for i in np.flatnonzero(dones):
        last = infos[i].get("terminal_observation")
        if last is None:
            continue
        last = last if normalize is None else normalize.unnormalize_obs(last)
        pairs = [(next_obs[key], last[key]) for key in next_obs] if isinstance(next_obs, dict) else [(next_obs, last)]
        for target, value in pairs:
            off = target.dtype.kind in "biu" and np.asarray(value).dtype.kind == "f"  # by the rounding of VecNormalize
            target[i] = np.rint(value) if off else value  # type: ignore[arg-type]
    return next_obs
