"""From the world model's features back to observations in the environment's own space."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage, is_vecenv_wrapped

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.distributions import Distribution
from sb3_dreamer.common.functional import flatten_time
from sb3_dreamer.common.observations import (
    OBSERVATION_KEY,
    BinaryPart,
    ClassPart,
    FloatImagePart,
    ImagePart,
    ObservationPart,
    split_space,
)
from sb3_dreamer.common.preprocessing import NumpyObs, resize_tensor


class ObservationDecoder:
    """
    Brings decoded observations into the space that the environment itself has.

    Pictures are resized from the model's size, rounded and clipped to bytes; numbers get their own units back
    (``normalize_observations`` and ``VecNormalize``) and are clipped to their bounds; of classes and bits the most likely
    one is taken.

    :param model: a trained algorithm
    :param keys: of a Dict space, None for all
    :param vec_normalize: statistics in whose units the model has learned; None takes those of the model's environment
    :param channels_last: whether pictures have their channels last, as gymnasium's do; None looks at the model's environment,
        and is True if it has none
    :raises ValueError: if a key is not reconstructed, or statistics are missing
    """

    def __init__(
        self,
        model: SequenceOffPolicyAlgorithm,
        keys: list[str] | None = None,
        vec_normalize: VecNormalize | None = None,
        channels_last: bool | None = None,
    ) -> None:
        self.world_model = model.policy.world_model
        format_ = model.policy.observations
        self.keys = format_.chosen(keys, "keys")
        self._is_dict = format_.is_dict
        missing = [key for key in self.keys if key not in self.world_model.decoder_keys]
        if missing or not self.keys:
            raise ValueError(
                f"The model does not reconstruct {missing or 'any of these keys'}, only {self.world_model.decoder_keys}. "
                "Ask for keys=[...] of these, or train with policy_kwargs=dict(decoder_keys=None)."
            )
        self.vec_normalize = vec_normalize if vec_normalize is not None else model.get_vec_normalize_env()
        self._check_statistics(model)
        self._parts = {key: format_.parts[key] for key in self.keys}
        self.channels_last = has_channels_last(model.env) if channels_last is None else channels_last
        parts = split_space(unnormalized_space(model, self.vec_normalize))
        own = {key: self._own_space(self._parts[key], parts[key]) for key in self.keys}
        #: The space of the environment
        self.observation_space: spaces.Space = spaces.Dict(own) if self._is_dict else own[OBSERVATION_KEY]
        self._spaces = own

    def _check_statistics(self, model: SequenceOffPolicyAlgorithm) -> None:
        if self.vec_normalize is not None:
            return
        seen, original = (as_dict(obs) for obs in (model._last_obs, model._last_original_obs))
        if any(key in seen and not np.array_equal(seen[key], original[key]) for key in original):
            raise ValueError(
                "The model was trained behind VecNormalize, without whose statistics its observations have no units. Pass "
                "vec_normalize=VecNormalize.load('vecnormalize.pkl', env), or load the model with its env."
            )

    def _own_space(self, part: ObservationPart, space: spaces.Space) -> spaces.Space:
        if not (isinstance(part, ImagePart) and self.channels_last):
            return space
        assert isinstance(space, spaces.Box)
        low, high = (np.moveaxis(bound, 0, -1) for bound in (space.low, space.high))
        return spaces.Box(low, high, dtype=np.uint8)

    def kind(self, key: str) -> str:
        """
        :param key: one of :attr:`keys`
        :return: ``"picture"`` for frames of bytes, ``"classes"`` for classes and bits, else ``"numbers"``
        """
        part = self._parts[key]
        if isinstance(part, ImagePart):
            return "picture"
        return "classes" if isinstance(part, ClassPart | BinaryPart) else "numbers"

    def channels_first(self, frames: np.ndarray) -> np.ndarray:
        """
        :param frames: of a picture in its own space, (..., *shape)
        :return: (..., C, height, width)
        """
        return np.moveaxis(frames, -1, -3) if self.channels_last else frames

    def predicted(self, features: th.Tensor) -> dict[str, np.ndarray]:
        """
        What the world model believes to be seen in some states.

        :param features: (n, F)
        :return: per key (n, *shape), in the environment's own spaces
        """
        predictions: Mapping[str, Distribution] = self.world_model.decoder(features)
        return self.own({key: predictions[key].mode for key in self.keys})

    def own(self, encoded: Mapping[str, th.Tensor]) -> dict[str, np.ndarray]:
        """
        From the networks' units to the environment's.

        :param encoded: per key (n, *encoded shape), as ``WorldModel.encode`` returns them
        :return: per key (n, *shape)
        """
        values = {key: self._native(key, encoded[key]) for key in self.keys}
        for key in self._normalized_keys():
            statistics = self._statistics(key)
            values[key] = values[key] * np.sqrt(statistics.var + self.vec_normalize.epsilon) + statistics.mean  # type: ignore[union-attr]
        return {key: self._finished(key, value) for key, value in values.items()}

    def stored(self, observations: Mapping[str, th.Tensor]) -> dict[str, np.ndarray]:
        """
        Recorded observations in the environment's own space; pictures lose what resizing them to the model's size has cost.

        :param observations: of a ``SequenceBatch``, per key (T, B, *stored shape)
        :return: per key (T, B, *shape)
        """
        time = len(next(iter(observations.values())))
        encoded = self.world_model.encode({key: flatten_time(observations[key]) for key in observations})
        return {key: value.reshape(time, -1, *value.shape[1:]) for key, value in self.own(encoded).items()}

    def row(self, values: dict[str, np.ndarray], index: int) -> dict[str, Any]:
        """
        :param values: per key (n, *shape)
        :param index: of a row
        :return: a copy of it, per key (*shape); classes as numbers, as gymnasium has them
        """
        discrete = {key: isinstance(self._spaces[key], spaces.Discrete) for key in values}
        return {key: value[index] if discrete[key] else value[index, ...].copy() for key, value in values.items()}

    def as_observation(self, values: dict[str, np.ndarray]) -> NumpyObs:
        """
        :param values: by key
        :return: the dict itself for a Dict space, else the one array in it
        """
        return values if self._is_dict else values[OBSERVATION_KEY]

    def _native(self, key: str, values: th.Tensor) -> np.ndarray:
        """Undo the encoding of a part: (n, *encoded shape) to float32 or integer (n, *native shape)."""
        part, normalizer = self._parts[key], self.world_model.normalizer
        if normalizer is not None and key in normalizer.shapes:
            values = normalizer.inverse(key, values)
        if isinstance(part, ImagePart):
            return resize_tensor((values + 0.5) * 255.0, part.native_shape[1:]).cpu().numpy()
        if isinstance(part, FloatImagePart):
            native = part.native_shape[1:] if part.channels_first else part.native_shape[:2]
            frames = resize_tensor(values, native)
            return (frames if part.channels_first else frames.movedim(-3, -1)).cpu().numpy()
        if isinstance(part, ClassPart):
            blocks = th.stack([block.argmax(-1) for block in values.split(part.blocks, dim=-1)], dim=-1)
            return blocks.cpu().numpy().reshape(-1, *part.native_shape) + part.start
        return values.cpu().numpy().reshape(-1, *part.native_shape)

    def _finished(self, key: str, values: np.ndarray) -> np.ndarray:
        """Round, clip and cast to what the space contains."""
        space, part = self._spaces[key], self._parts[key]
        if isinstance(part, BinaryPart):
            return (values > 0.5).astype(space.dtype)
        if isinstance(part, ImagePart) and self.channels_last:
            values = np.moveaxis(values, 1, -1)
        if isinstance(space, spaces.Box):
            values = np.rint(values) if np.issubdtype(space.dtype, np.integer) else values.astype(space.dtype)
            values = np.clip(values, space.low, space.high)
        return np.ascontiguousarray(values, dtype=space.dtype)

    def _normalized_keys(self) -> list[str]:
        if self.vec_normalize is None or not self.vec_normalize.norm_obs:
            return []
        named = self.vec_normalize.norm_obs_keys if self._is_dict else [OBSERVATION_KEY]
        return [key for key in named or [] if key in self.keys]

    def _statistics(self, key: str) -> Any:
        assert self.vec_normalize is not None
        return self.vec_normalize.obs_rms[key] if self._is_dict else self.vec_normalize.obs_rms  # type: ignore[index]


def as_dict(obs: Any) -> dict[str, np.ndarray]:
    """
    :param obs: of a VecEnv, or None
    :return: by key, nothing for None
    """
    return obs if isinstance(obs, dict) else {} if obs is None else {OBSERVATION_KEY: obs}


def has_channels_last(env: VecEnv | None) -> bool:
    """
    :param env: of a model, perhaps wrapped by SB3 to move the channels of pictures to the front
    :return: whether the environment itself has them last, as is gymnasium's custom
    """
    return env is None or is_vecenv_wrapped(env, VecTransposeImage)


def unnormalized_space(model: SequenceOffPolicyAlgorithm, vec_normalize: VecNormalize | None) -> spaces.Space:
    """
    ``VecNormalize`` gives what it normalizes other bounds; the environment's own ones are below it.

    :param model: whose space it is
    :param vec_normalize: around its environment
    :return: the observation space without normalization, pictures channel first as in the model's
    """
    venv = None if vec_normalize is None or not vec_normalize.norm_obs else vars(vec_normalize).get("venv")
    if venv is None:  # read from a file without an environment: but for pictures the spaces are the same
        return model.observation_space
    if not isinstance(model.observation_space, spaces.Dict):
        return venv.observation_space
    inner = split_space(venv.observation_space)
    chosen = {key: inner[key] for key in vec_normalize.norm_obs_keys or []}  # type: ignore[union-attr]
    return spaces.Dict({**model.observation_space.spaces, **chosen})
