"""A trained world model as a vectorized environment: many dreams in one batch."""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn, tile_images

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.options import whole_number
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dream.decoding import ObservationDecoder
from sb3_dreamer.dream.drawing import draw_observation
from sb3_dreamer.dream.dynamics import DreamDynamics
from sb3_dreamer.dream.recording import Source, open_recording
from sb3_dreamer.dream.window import Window

RENDER_MODES = (None, "rgb_array", "human")
FPS = 15  # of a window
#: Starts whose states are inferred at once and kept until they are needed
POOL = 256


class DreamVecEnv(VecEnv):
    """
    A world model in the form of a ``VecEnv``, in which any algorithm of SB3 can be trained.

    A dream begins in a recorded step: the posterior state after ``context`` recorded frames. From then on the world model
    decides alone: s_t ~ p(s_t | s_{t-1}, a_{t-1}) (V2, eq. 1), and its heads predict observations, rewards and ends.
    Observations have the environment's own space, rewards its own units. After ``horizon`` steps a dream is truncated, as by
    a time limit (``infos[i]["TimeLimit.truncated"]``), since errors grow with every step.

    The environment of the model is neither needed nor touched. Torch's and NumPy's global random numbers are not used.

    :param model: a trained ``DreamerV2`` or ``DreamerV3``
    :param n_envs: number of dreams
    :param starts: experience in which dreams begin: None for the model's replay buffer, another one, the path of a saved one,
        or an environment in which the agent then plays ``start_steps`` steps
    :param horizon: steps after which a dream is cut off; None is the model's ``batch_length``, the length of the sequences
        with which it was trained
    :param context: recorded steps from which the first state is inferred
    :param start_at_reset: begin only where recorded episodes begin; otherwise anywhere in them
    :param termination: ``"threshold"``, ``"sample"`` or ``"never"``, see :class:`~sb3_dreamer.dream.dynamics.DreamDynamics`
    :param threshold: likewise
    :param transformed_rewards: rewards as the reward head learned them (tanh, symlog), instead of the environment's units
    :param keys: of a Dict space, to see only these; None for all
    :param vec_normalize: statistics with which the model was trained, if its environment is not loaded; without them
        normalized rewards (``norm_reward``) stay normalized
    :param channels_last: of images; None is as in the model's environment, True if it has none
    :param start_steps: to play, if ``starts`` is an environment
    :param seed: of everything random; ``seed()`` before ``reset()`` does the same
    :param render_mode: ``"rgb_array"``, ``"human"`` or None
    :raises ValueError: for impossible options, a model without decoder for a key, or without experience
    """

    def __init__(
        self,
        model: SequenceOffPolicyAlgorithm,
        n_envs: int = 1,
        starts: Source = None,
        horizon: int | None = None,
        context: int = 5,
        start_at_reset: bool = False,
        termination: str = "threshold",
        threshold: float = 0.5,
        transformed_rewards: bool = False,
        keys: list[str] | None = None,
        vec_normalize: VecNormalize | None = None,
        channels_last: bool | None = None,
        start_steps: int = 1000,
        seed: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if not isinstance(model, SequenceOffPolicyAlgorithm):
            raise ValueError(f"Dreams need a world model, but {type(model).__name__} has none.")
        horizon = model.batch_length if horizon is None else horizon
        numbers = {"n_envs": n_envs, "horizon": horizon, "context": context, "start_steps": start_steps}
        n_envs, horizon, context, start_steps = (whole_number(name, value, 1) for name, value in numbers.items())
        if render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode must be one of {RENDER_MODES}, but is {render_mode!r}.")
        self.horizon, self.context, self.start_at_reset = horizon, context, start_at_reset
        self.recording = open_recording(model, starts, vec_normalize, start_steps, seed)
        self.vec_normalize = self.recording.vec_normalize
        self.decoder = ObservationDecoder(model, keys, self.vec_normalize, channels_last)
        self._generator = th.Generator(device=model.device)
        self.dynamics = DreamDynamics(model, self._generator, termination, threshold, transformed_rewards)
        self.transformed_rewards = transformed_rewards
        self.render_mode = render_mode
        super().__init__(n_envs, self.decoder.observation_space, model.action_space)
        self._actions = np.zeros(0)
        self._states: LatentState | None = None
        self._window = Window(FPS)
        self._begun = time.time()
        self._seed_all(seed)

    def _seed_all(self, seed: int | None) -> None:
        """The choice of starts, and everything else, from one number."""
        self._random = np.random.default_rng(seed)
        self._generator.manual_seed(int(self._random.integers(2**63 - 1)))
        self._pool: LatentState | None = None

    def reset(self) -> VecEnvObs:
        if self._seeds[0] is not None:
            self._seed_all(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._states = self._draw_starts(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._returns = np.zeros(self.num_envs)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._seen = self._observe(self._states)
        return self.decoder.copied(self._seen)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Advance all dreams, and begin new ones in the place of those that have ended.

        :return: observations, the first of the next dream where one has ended; rewards; ends; infos with ``episode``,
            ``terminal_observation`` and ``TimeLimit.truncated`` there
        """
        rewards, terminated, truncated, _ = self.advance(self._actions)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(cut)} for cut in truncated]
        if dones.any():
            self._begin_again(np.flatnonzero(dones), infos)
        return self.decoder.copied(self._seen), rewards, dones, infos

    @th.no_grad()
    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """
        Advance all dreams without beginning new ones.

        :param actions: of the environment's action space, (n_envs, *shape)
        :return: rewards (n_envs,) float32; whether the episode has ended; whether the time was up, and it had not; the
            probability that it continues
        """
        self._states, step = self.dynamics.step(self.states, actions)
        as_learned = self.vec_normalize is None or self.transformed_rewards
        rewards = step.rewards if as_learned else self.vec_normalize.unnormalize_reward(step.rewards)  # type: ignore[union-attr]
        self._lengths += 1
        self._returns += rewards
        self._seen = self._observe(self._states)
        truncated = (self._lengths >= self.horizon) & ~step.terminated
        return rewards.astype(np.float32), step.terminated, truncated, step.continues

    def observation(self, index: int) -> Any:
        """
        Copy the current observation of one dream.

        :param index: of the dream
        :return: in the space of observations
        """
        return self.decoder.copied(self._seen, index)

    def _begin_again(self, ended: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """New starts in the place of dreams that have ended, whose last observation goes into the infos."""
        assert self._states is not None
        for index in ended.tolist():
            infos[index]["terminal_observation"] = self.observation(index)
            seconds = round(time.time() - self._begun, 6)
            infos[index]["episode"] = {"r": float(self._returns[index]), "l": int(self._lengths[index]), "t": seconds}
        fresh, places = self._draw_starts(len(ended)), th.as_tensor(ended, device=self._states.deterministic.device)
        self._states = LatentState(*(x.index_copy(0, places, y) for x, y in zip(self._states, fresh, strict=True)))
        for key, value in self._observe(fresh).items():
            self._seen[key][ended] = value
        self._lengths[ended], self._returns[ended] = 0, 0.0

    def _draw_starts(self, count: int) -> LatentState:
        """States after recorded steps; inferred in advance, since dreams end one by one."""
        while self._pool is None or len(self._pool.deterministic) < count:
            batch = self.recording.starts(self._random, max(POOL, count), self.context, self.start_at_reset)
            more = LatentState(*(x[-1] for x in self.dynamics.observe(batch).states))
            parts = [more] if self._pool is None else [self._pool, more]
            self._pool = LatentState(*(th.cat(pair) for pair in zip(*parts, strict=True)))
        drawn, self._pool = (LatentState(*(x[rows] for x in self._pool)) for rows in (slice(count), slice(count, None)))
        return drawn

    @th.no_grad()
    def _observe(self, states: LatentState) -> dict[str, np.ndarray]:
        return self.decoder.predicted(states.features)

    @property
    def states(self) -> LatentState:
        """Latent states of all dreams, (n_envs, ...)."""
        if self._states is None:
            raise RuntimeError("The dreams have not begun: call reset() first.")
        return self._states

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Draw each dream: the first image of its current observation, or bars for numbers, (height, width, 3) uint8."""
        return [draw_observation(self.decoder, {k: v[i] for k, v in self._seen.items()}) for i in range(self.num_envs)]

    def render(self, mode: str | None = None) -> np.ndarray | None:
        if self.render_mode != "human":
            return super().render(mode)
        image = tile_images(self.get_images())  # type: ignore[arg-type]  # none is None here
        if mode == "rgb_array":
            return image
        self._window.show(image)
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        self._window.close()

    # All dreams share the attributes and methods of this one object

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return self._for_each(getattr(self, attr_name), indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all dreams; a ValueError refuses to do it for some of them."""
        if len(self._for_each(value, indices)) != self.num_envs:
            raise ValueError(f"All dreams share {attr_name!r}: it cannot be set for some of them.")
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        return self._for_each(getattr(self, method_name)(*args, **kwargs), indices)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return self._for_each(False, indices)

    def _for_each(self, value: Any, indices: VecEnvIndices) -> list[Any]:
        return [value] * len(list(self._get_indices(indices)))
