"""From the world model's features back to observations in the environment's own space."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize, VecTransposeImage, is_vecenv_wrapped

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.distributions import Distribution
from sb3_dreamer.common.functional import flatten_time
from sb3_dreamer.common.observations import OBSERVATION_KEY, split_space
from sb3_dreamer.common.preprocessing import NumpyObs


class ObservationDecoder:
    """
    Brings decoded observations into the space that the environment itself has.

    Images are resized from the model's size, rounded and clipped to bytes. Numbers get their own units back
    (``normalize_observations`` and ``VecNormalize``) and are clipped to their bounds. Of classes and bits the most likely one
    is taken.

    :param model: a trained algorithm
    :param keys: of a Dict space, None for all
    :param vec_normalize: statistics in whose units the model has learned; None takes those of the model's environment
    :param channels_last: whether images have their channels last, as gymnasium's do; None looks at the model's environment,
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
        observations = model.policy.observations
        self._is_dict, self.keys = observations.is_dict, observations.chosen(keys, "keys")
        self._check_keys()
        self.vec_normalize = vec_normalize if vec_normalize is not None else model.get_vec_normalize_env()
        self._check_statistics(model)
        self._parts = {key: observations.parts[key] for key in self.keys}
        #: How each key is drawn and compared: ``"image"`` (frames of bytes), ``"numbers"`` or ``"classes"`` (and bits)
        self.kinds = {key: part.kind for key, part in self._parts.items()}
        if channels_last is None:  # SB3 has moved the channels of the model's environment to the front, if they were last
            channels_last = model.env is None or is_vecenv_wrapped(model.env, VecTransposeImage)
        self.channels_last = channels_last
        given = split_space(_unnormalized_space(model, self.vec_normalize))
        self._spaces = {key: part.own_space(given[key], channels_last) for key, part in self._parts.items()}
        #: The space of the environment
        self.observation_space = spaces.Dict(self._spaces) if self._is_dict else self._spaces[OBSERVATION_KEY]

    def _check_keys(self) -> None:
        decoded = self.world_model.decoder_keys
        missing = [key for key in self.keys if key not in decoded]
        if missing or not self.keys:
            raise ValueError(
                f"The model does not reconstruct {missing or 'any of these keys'}, only {decoded}. "
                "Ask for keys=[...] of these, or train with policy_kwargs=dict(decoder_keys=None)."
            )

    def _check_statistics(self, model: SequenceOffPolicyAlgorithm) -> None:
        """Without ``VecNormalize`` the model must have seen what its environment gave."""
        if self.vec_normalize is not None or model._last_obs is None:
            return
        pairs: Any = (model._last_obs, model._last_original_obs)
        seen, original = (obs if isinstance(obs, dict) else {OBSERVATION_KEY: obs} for obs in pairs)
        if any(not np.array_equal(seen[key], original[key]) for key in seen if original.get(key) is not None):
            raise ValueError(
                "The model was trained behind VecNormalize, without whose statistics its observations have no units. Pass "
                "vec_normalize=VecNormalize.load('vecnormalize.pkl', env), or load the model with its env."
            )

    def predicted(self, features: th.Tensor) -> dict[str, np.ndarray]:
        """
        Decode what the world model expects to be seen in some states.

        :param features: (n, F)
        :return: per key (n, *shape), in the environment's own spaces
        """
        predictions: Mapping[str, Distribution] = self.world_model.decoder(features)
        return self._own({key: predictions[key].mode for key in self.keys})

    def _own(self, encoded: Mapping[str, th.Tensor]) -> dict[str, np.ndarray]:
        """From the networks' units, per key (n, *encoded shape), to the environment's, (n, *shape)."""
        results, statistics = {}, self._statistics()
        for key, part in self._parts.items():
            values = part.decode(self.world_model.restore(key, encoded[key]), self.channels_last)
            if key in statistics:
                scale = np.sqrt(statistics[key].var + self.vec_normalize.epsilon)  # type: ignore[union-attr]
                values = values * scale + statistics[key].mean
            results[key] = part.finish(values, self._spaces[key])
        return results

    def _statistics(self) -> dict[str, RunningMeanStd]:
        """Statistics of each key that ``VecNormalize`` normalizes."""
        normalize = self.vec_normalize
        if normalize is None or not normalize.norm_obs:
            return {}
        statistics = normalize.obs_rms if isinstance(normalize.obs_rms, dict) else {OBSERVATION_KEY: normalize.obs_rms}
        return {key: statistics[key] for key in self.keys if key in statistics}

    def stored(self, observations: Mapping[str, th.Tensor]) -> dict[str, np.ndarray]:
        """
        Convert recorded observations to the environment's own space; images lose what resizing to the model's size has cost.

        :param observations: of a ``SequenceBatch``, per key (T, B, *stored shape)
        :return: per key (T, B, *shape)
        """
        time = len(next(iter(observations.values())))
        encoded = self.world_model.encode({key: flatten_time(observations[key]) for key in observations})
        return {key: value.reshape(time, -1, *value.shape[1:]) for key, value in self._own(encoded).items()}

    def copied(self, values: dict[str, np.ndarray], rows: int | slice = slice(None)) -> NumpyObs:
        """
        Copy observations in the form of the space.

        :param values: per key (n, *shape)
        :param rows: one of them or several
        :return: a dict for a Dict space, else the one array in it; a single class is a number, as in gymnasium
        """
        copies = {key: value[rows, ...].copy() for key, value in values.items()}
        for key, copy in copies.items():
            copies[key] = copy[()] if isinstance(self._spaces[key], spaces.Discrete) else copy
        return copies if self._is_dict else copies[OBSERVATION_KEY]


def _unnormalized_space(model: SequenceOffPolicyAlgorithm, vec_normalize: VecNormalize | None) -> spaces.Space:
    """The model's space, but with the bounds below ``VecNormalize`` for what that normalizes; images channel first."""
    venv = None if vec_normalize is None or not vec_normalize.norm_obs else vars(vec_normalize).get("venv")
    if venv is None:  # statistics from a file, without an environment: then only the bounds are unknown
        return model.observation_space
    if not isinstance(model.observation_space, spaces.Dict):
        return venv.observation_space
    inner = split_space(venv.observation_space)
    chosen = {key: inner[key] for key in vec_normalize.norm_obs_keys or []}  # type: ignore[union-attr]
    return spaces.Dict({**model.observation_space.spaces, **chosen})
