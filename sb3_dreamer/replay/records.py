"""What one arrival record holds, and the door where transitions are checked before they become records."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim

from sb3_dreamer.common.preprocessing import (
    OBSERVATION_KEY,
    ImageSize,
    NumpyObs,
    action_size,
    stored_spaces,
    to_stored,
)
from sb3_dreamer.replay.storage import Field

OBSERVATION_PREFIX = "observation/"  # a user's key may be called "action"


class RecordFormat:
    """
    Shapes and dtypes of a record, and what they ask of the arguments of ``ReplayBuffer.add``.

    :param observation_space: Box (image or vector) or a Dict of these
    :param action_space: Discrete or Box
    :param n_envs: number of environments
    :param image_size: (height, width) of stored frames; None keeps their size
    :raises ValueError: if a space is not supported
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, n_envs: int, image_size: ImageSize
    ) -> None:
        action_size(action_space)  # refuses unsupported spaces
        self._action_space = action_space
        self._action_dim = get_action_dim(action_space)
        self._n_envs = n_envs
        self._native = stored_spaces(observation_space, None)  # as the environment gives them, but vectors float32
        self._stored = stored_spaces(observation_space, image_size)

    @property
    def observation_keys(self) -> list[str]:
        """Keys of the stored observations, in the space's own order."""
        return list(self._stored)

    def is_image(self, key: str) -> bool:
        """
        :param key: one of :attr:`observation_keys`
        :return: whether it holds frames
        """
        return self._stored[key].dtype == np.uint8

    def fields(self) -> dict[str, Field]:
        """
        :return: what a storage has to hold
        """
        discrete = isinstance(self._action_space, spaces.Discrete)
        fields = {OBSERVATION_PREFIX + key: Field(box.shape, np.dtype(box.dtype)) for key, box in self._stored.items()}
        fields["action"] = Field((self._action_dim,), np.dtype(np.int64 if discrete else np.float32))
        fields["reward"] = Field((), np.dtype(np.float32))
        return fields | {name: Field((), np.dtype(bool)) for name in ("done", "timeout", "episode_start")}

    def start_records(self, obs: NumpyObs, envs: np.ndarray) -> dict[str, np.ndarray]:
        """
        Records of observations after a reset: no action led to them, and they brought no reward.

        :param obs: observations of all environments, (n_envs, *shape) or a dict
        :param envs: the environments that were reset, (n,)
        :return: one array (n, *shape) per field
        :raises ValueError: as for :meth:`arrival_records`
        """
        records = self._observations(obs, envs, "obs")
        for name, field in self.fields().items():
            if name not in records:
                records[name] = np.zeros((len(envs), *field.shape), dtype=field.dtype)
        records["episode_start"][:] = True
        return records

    def arrival_records(
        self,
        next_obs: NumpyObs,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> dict[str, np.ndarray]:
        """
        Records of one step of every environment.

        :param next_obs: observations after the step, (n_envs, *shape) or a dict
        :param action: buffer actions: Discrete indices, Box values scaled to [-1, 1]
        :param reward: (n_envs,)
        :param done: (n_envs,)
        :param infos: one dict for each environment
        :return: one array (n_envs, *shape) per field
        :raises ValueError: if something has the wrong shape or dtype or is not finite, naming environment, key and value
        """
        if len(infos) != self._n_envs:
            raise ValueError(f"infos has {len(infos)} entries, expected one for each of {self._n_envs} environments.")
        records = self._observations(next_obs, np.arange(self._n_envs), "next_obs")
        records["action"] = self._actions(action)
        records["reward"] = self._finite(self._shaped(reward, (), "reward"), np.arange(self._n_envs), "reward")
        records["done"] = self._shaped(done, (), "done").astype(bool)
        records["timeout"] = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        records["episode_start"] = np.zeros(self._n_envs, dtype=bool)
        return records

    def differences(self, other: "RecordFormat") -> list[str]:
        """
        Where two formats disagree. Bounds of observations do not matter; those of actions do, since buffer actions are
        relative to them.

        :param other: the format that is expected
        :return: one phrase per difference, naming both sides
        """

        def layout(boxes: Mapping[str, spaces.Box]) -> dict[str, str]:
            return {key: f"{box.dtype} {box.shape}" for key, box in boxes.items()}

        pairs = {
            "observations": (layout(self._native), layout(other._native)),
            "observations resized to image_size": (layout(self._stored), layout(other._stored)),
            "action space": (self._action_space, other._action_space),
            "n_envs": (self._n_envs, other._n_envs),
        }
        return [f"{name}: buffer has {ours}, expected {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]

    def _observations(self, obs: NumpyObs, envs: np.ndarray, name: str) -> dict[str, np.ndarray]:
        """Checked and stored form of some environments' observations, under the names of their fields."""
        parts = obs if isinstance(obs, dict) else {OBSERVATION_KEY: obs}
        if not set(self._native) <= set(parts):
            raise ValueError(f"{name} has the keys {sorted(parts)}, expected {sorted(self._native)}.")
        chosen = {}
        for key, box in self._native.items():
            value = self._shaped(parts[key], box.shape, f"{name} '{key}'")
            if self.is_image(key) and value.dtype != np.uint8:
                raise ValueError(f"{name} '{key}' has dtype {value.dtype}, expected uint8, as images have.")
            chosen[key] = value[envs] if self.is_image(key) else self._finite(value[envs], envs, f"{name} '{key}'")
        return {OBSERVATION_PREFIX + key: value for key, value in to_stored(chosen, self._stored).items()}

    def _actions(self, action: np.ndarray) -> np.ndarray:
        value, envs = np.asarray(action), np.arange(self._n_envs)
        if value.size != self._n_envs * self._action_dim:
            raise ValueError(f"action has shape {value.shape}, expected {(self._n_envs, self._action_dim)}.")
        value = value.reshape(self._n_envs, self._action_dim)
        if not isinstance(self._action_space, spaces.Discrete):
            return self._finite(value, envs, "action")
        wrong = (value < 0) | (value >= self._action_space.n)
        if value.dtype.kind not in "iu" or wrong.any():
            raise ValueError(
                f"action of environment {int(wrong.any(axis=1).argmax())} is {value[wrong.any(axis=1).argmax()]} "
                f"({value.dtype}), expected an integer from 0 to {self._action_space.n - 1}."
            )
        return value.astype(np.int64)

    def _shaped(self, value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
        array, expected = np.asarray(value), (self._n_envs, *shape)
        if array.shape != expected or array.dtype.kind not in "biuf":
            raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, expected numbers of shape {expected}.")
        return array

    @staticmethod
    def _finite(value: np.ndarray, envs: np.ndarray, name: str) -> np.ndarray:
        """As float32, in which a large float64 may be infinite."""
        if value.dtype.kind not in "biuf":
            raise ValueError(f"{name} has dtype {value.dtype}, expected numbers.")
        with np.errstate(over="ignore"):
            result = value.astype(np.float32)
        wrong = ~np.isfinite(result)
        if wrong.any():
            place = tuple(np.argwhere(wrong)[0])
            raise ValueError(
                f"{name} of environment {envs[place[0]]} is {value[place]}"
                f"{f' at index {int(place[1])}' if len(place) > 1 else ''}, expected a finite float32."
            )
        return result
