"""What one arrival record holds, and how transitions are checked before they become records."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.observations import OBSERVATION_KEY, ObservationFormat, refuse
from sb3_dreamer.common.preprocessing import ImageSize, NumpyObs, action_blocks, action_dim, encode_actions
from sb3_dreamer.common.type_aliases import SequenceBatch

OBSERVATION_PREFIX = "observation/"  # a user's key may be called "action"


class RecordFormat:
    """
    Shapes and dtypes of records, and the checks of the arguments of ``ReplayBuffer.add`` that follow from them.

    :param observation_space: any that :class:`~sb3_dreamer.common.observations.ObservationFormat` takes
    :param action_space: Discrete, MultiDiscrete, MultiBinary or Box
    :param n_envs: number of environments
    :param image_size: (height, width) of stored frames; None keeps their size
    :param float_images: whether float Boxes of rank 3 are images
    :raises ValueError: if a space is not supported
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        n_envs: int,
        image_size: ImageSize,
        float_images: bool = False,
    ) -> None:
        self._action_space = action_space
        self._action_blocks = action_blocks(action_space)  # refuses unsupported spaces
        self._action_dim = action_dim(action_space)
        self._envs = np.arange(n_envs)
        self.observations = ObservationFormat(observation_space, image_size, float_images)
        parts = self.observations.parts.items()
        fields: list[Any] = [(OBSERVATION_PREFIX + key, part.stored_dtype, part.stored_shape) for key, part in parts]
        fields += [("action", np.float32 if self._action_blocks is None else np.int64, (self._action_dim,))]
        fields += [("reward", np.float32), ("done", bool), ("timeout", bool), ("episode_start", bool)]
        #: Names, dtypes and shapes of the fields of a record
        self.row = np.dtype(fields)

    def start_records(self, obs: NumpyObs, envs: np.ndarray) -> dict[str, np.ndarray]:
        """
        Make records of observations after a reset: no action led to them, and they brought no reward.

        :param obs: observations of all environments, (n_envs, *shape) or a dict
        :param envs: the environments that were reset, (n,)
        :return: one array (n, *shape) per field
        :raises ValueError: as for :meth:`arrival_records`
        """
        row = self.row
        records = {name: np.zeros((len(envs), *row[name].shape), dtype=row[name].base) for name in row.names or ()}
        records |= self._observations(obs, envs, "obs")
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
        Make records of one step of every environment.

        :param next_obs: this and all others as in :meth:`~sb3_dreamer.replay.buffer.SequenceReplayBuffer.add`
        :return: one array (n_envs, *shape) per field
        :raises ValueError: likewise
        """
        count = len(self._envs)
        if len(infos) != count:
            raise ValueError(f"infos has {len(infos)} entries, expected one for each of {count} environments.")
        records = self._observations(next_obs, self._envs, "next_obs")
        records["action"] = self._actions(action)
        records["reward"] = self._finite(self._numbers(reward, "reward"), "reward")
        records["done"] = self._numbers(done, "done").astype(bool)
        records["timeout"] = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        records["episode_start"] = np.zeros(count, dtype=bool)
        return records

    def batch(
        self,
        records: dict[str, np.ndarray],
        env: VecNormalize | None,
        to_device: Callable[[np.ndarray], th.Tensor],
        resets_first: bool = True,
    ) -> SequenceBatch:
        """
        Turn records into what the world model learns from.

        :param records: sub-sequences, one array (T, B, *shape) per field
        :param env: normalizes vector observations and rewards with its current statistics
        :param to_device: from arrays to tensors
        :param resets_first: whether the latent state of a sub-sequence begins at zero, even in the middle of an episode
        :return: (T, B, ...)
        """
        resets = records["episode_start"]
        resets[0] |= resets_first
        rewards = records["reward"] if env is None else env.normalize_reward(records["reward"])
        terminals = records["done"] & ~records["timeout"]
        episode_starts = to_device(resets)
        actions = encode_actions(to_device(records["action"]), self._action_space)
        observations = {key: records[OBSERVATION_PREFIX + key] for key in self.observations.parts}
        return SequenceBatch(
            observations={key: to_device(value) for key, value in self._normalized(observations, env).items()},
            actions=actions.masked_fill(episode_starts.unsqueeze(-1), 0.0),
            rewards=to_device(rewards),
            continues=to_device(1.0 - terminals.astype(np.float32)),
            episode_starts=episode_starts,
        )

    def check_compatible(self, expected: "RecordFormat") -> None:
        """
        Check that a buffer of this format, read from a file, can serve an algorithm.

        Bounds of observations do not matter; those of actions do, since buffer actions are relative to them.

        :param expected: format of the algorithm's records
        :raises ValueError: naming everything that differs
        """
        pairs = {
            "observations": (self._layout(False), expected._layout(False)),
            "observations resized to image_size": (self._layout(True), expected._layout(True)),
            "action space": (self._action_space, expected._action_space),
            "n_envs": (len(self._envs), len(expected._envs)),
        }
        found = [f"{name}: buffer has {ours}, expected {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
        if found:
            raise ValueError("The replay buffer does not fit the algorithm: " + "; ".join(found) + ".")

    @property
    def description(self) -> str:
        """Everything that records in one folder must have in common, as text."""
        return f"observations {self._layout(True)}, actions {self._action_space}"

    def _layout(self, stored: bool) -> dict[str, str]:
        parts = self.observations.parts.items()
        return {k: f"{p.stored_dtype} {p.stored_shape if stored else p.native_shape} -> {p.layout}" for k, p in parts}

    def _normalized(self, observations: dict[str, np.ndarray], env: VecNormalize | None) -> dict[str, np.ndarray]:
        """Vectors as ``VecNormalize`` gives them to the policy. Its statistics do not fit images, which were resized."""
        if env is None or not env.norm_obs:
            return observations
        keys = list(observations) if env.norm_obs_keys is None else env.norm_obs_keys
        parts = self.observations.parts
        images = [key for key in keys if parts[key].is_image and parts[key].stored_dtype == np.uint8]
        if images:
            raise ValueError(
                f"VecNormalize normalizes the images {images}, which the world model takes as uint8. Use norm_obs=False, "
                "or name the vectors in norm_obs_keys."
            )
        if self.observations.is_dict:
            normalized = env.normalize_obs({key: observations[key] for key in keys})
        else:
            normalized = env.normalize_obs(observations[OBSERVATION_KEY])
        by_key = normalized if isinstance(normalized, dict) else {OBSERVATION_KEY: normalized}
        return observations | {key: value.astype(np.float32) for key, value in by_key.items()}

    def _observations(self, obs: NumpyObs, envs: np.ndarray, name: str) -> dict[str, np.ndarray]:
        """Checked and stored form of some environments' observations, under the names of their fields."""
        given = obs if isinstance(obs, dict) else {OBSERVATION_KEY: obs}
        for key, value in given.items():
            if key in self.observations.parts and (np.ndim(value) == 0 or len(value) != len(self._envs)):
                rows = f"a row for each of {len(self._envs)} environments"
                raise ValueError(f"{name} '{key}' has shape {np.shape(value)}, expected {rows}.")
        stored = self.observations.to_stored(obs, name, envs)
        for key, value in stored.items():
            expected = self.observations.parts[key].stored_dtype
            if value.dtype != expected:
                found = np.asarray(given[key]).dtype
                raise ValueError(f"{name} '{key}' has dtype {found}, expected {expected}, as its space says.")
        return {OBSERVATION_PREFIX + key: value for key, value in stored.items()}

    def _actions(self, action: np.ndarray) -> np.ndarray:
        value, shape = np.asarray(action), (len(self._envs), self._action_dim)
        if value.size != shape[0] * shape[1]:
            raise ValueError(f"action has shape {value.shape}, expected {shape}.")
        value = value.reshape(shape)
        if self._action_blocks is None:
            return self._finite(value, "action")
        wrong = (value < 0) | (value >= np.array(self._action_blocks))
        if value.dtype.kind not in "biu" or wrong.any():
            row = int(wrong.any(axis=1).argmax())
            highest = ", ".join(str(count - 1) for count in self._action_blocks)
            raise ValueError(
                f"action of environment {row} is {value[row]} ({value.dtype}), expected an integer from 0 to {highest}."
            )
        return value.astype(np.int64)

    def _numbers(self, value: Any, name: str) -> np.ndarray:
        """One for each environment."""
        array, shape = np.asarray(value), self._envs.shape
        if array.shape != shape or array.dtype.kind not in "biuf":
            raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, expected numbers of shape {shape}.")
        return array

    def _finite(self, value: np.ndarray, name: str) -> np.ndarray:
        """As float32, in which a large float64 may be infinite."""
        if value.dtype.kind not in "biuf":
            raise ValueError(f"{name} has dtype {value.dtype}, expected numbers.")
        with np.errstate(over="ignore"):
            result = value.astype(np.float32)
        refuse(~np.isfinite(result), value, name, self._envs, "a finite float32")
        return result
