"""Recorded experience: the starts of dreams, and the truth that predictions are compared with."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from sb3_dreamer.algorithm.originals import arrived_observations, keep_originals, original_observations
from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.preprocessing import scale_actions
from sb3_dreamer.common.type_aliases import SequenceBatch
from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.replay.records import RecordFormat
from sb3_dreamer.saving import buffers
from sb3_dreamer.saving.saved_files import with_suffix

#: A replay buffer, the file of one, an environment to play in, or None for the model's own buffer
Source = SequenceReplayBuffer | str | Path | VecEnv | gym.Env | None

NO_EXPERIENCE = (
    "The model has no experience: {0}. Pass a recorded buffer (model.save_replay_buffer('buffer.pkl') after learning writes "
    "one, --save-replay-buffer in RL Zoo), or an environment to play in."
)


class Recording:
    """
    Episodes of a replay buffer, from which sequences of consecutive records are read.

    :param buffer: with records; what is added later is noticed
    :param vec_normalize: in whose units the model has learned
    """

    def __init__(self, buffer: SequenceReplayBuffer, vec_normalize: VecNormalize | None = None) -> None:
        self.buffer, self.vec_normalize = buffer, vec_normalize
        self._seen: list[int] = []
        self._refresh()

    def _refresh(self) -> None:
        """Find the episodes again, if the buffer has changed since the last call."""
        state = [self.buffer.num_records, *self.buffer.positions.tolist()]
        if state == self._seen:
            return
        if self.buffer.num_records == 0:
            raise ValueError(NO_EXPERIENCE.format("the replay buffer is empty"))
        self._seen = state
        # ring, first and last record (exclusive) of each
        self._ring, self._first, self._end = np.array(self.buffer.rings.episodes(), dtype=np.int64).T
        oldest = np.full(self.buffer.n_envs, np.iinfo(np.int64).max)
        np.minimum.at(oldest, self._ring, self._first)
        self._oldest = oldest[self._ring]

    @property
    def longest(self) -> int:
        """Number of records of the longest episode."""
        self._refresh()
        return int((self._end - self._first).max())

    def sequences(self, random: np.random.Generator, count: int, length: int) -> SequenceBatch:
        """
        Draw sequences that lie within one episode, each with the same probability, without replacement.

        :param random: source of random numbers
        :param count: number of sequences, B
        :param length: records of each, T
        :return: (T, B, ...); fewer than ``count`` where episodes that were cut off by a reset leave no more
        :raises ValueError: if no episode is that long
        """
        self._refresh()
        windows = np.maximum(self._end - self._first - length + 1, 0)
        edges = np.cumsum(windows)
        if edges[-1] > 0:
            chosen = random.choice(edges[-1], min(2 * count, int(edges[-1])), replace=False)
            episode = np.searchsorted(edges, chosen, side="right")
            first = self._first[episode] + chosen - (edges - windows)[episode]
            batch = self.buffer.recall(self._ring[episode], first, length, self.vec_normalize)
            whole = th.nonzero(~batch.episode_starts[1:].any(0))[:count, 0]  # an episode that is cut off has no end
            if len(whole):
                observations = {key: value[:, whole] for key, value in batch.observations.items()}
                return SequenceBatch(observations, *(part[:, whole] for part in batch[1:]))  # type: ignore[index]
        raise ValueError(
            f"No recorded episode has {length} steps (the context and what is predicted), the longest has {self.longest}: "
            "choose a shorter horizon or context, or record longer episodes."
        )

    def starts(self, random: np.random.Generator, count: int, context: int, at_reset: bool = False) -> SequenceBatch:
        """
        Draw steps after which an episode continues, each with the same probability, with the records that lead there.

        :param random: source of random numbers
        :param count: number of steps, B
        :param context: records that end with the step, T; ``episode_starts`` resets at those of an earlier episode
        :param at_reset: only the first steps of episodes, which need no context
        :return: (T, B, ...)
        :raises ValueError: if there is none
        """
        self._refresh()
        length = 1 if at_reset else context
        if at_reset:  # the oldest episode of a ring may have lost its first steps
            first, steps = self._first, ((self._first != self._oldest) | (self._first == 0)).astype(np.int64)
        else:
            first = np.maximum(self._first, self._oldest + context - 1)
            steps = np.maximum(self._end - 1 - first, 0)
        edges = np.cumsum(steps)
        if edges[-1] == 0:
            raise ValueError(
                f"The recording has {self.buffer.num_records} steps, in none of which a dream can begin with "
                f"context={context} steps before it: lower context, or record more."
            )
        chosen = random.integers(edges[-1], size=count)
        episode = np.searchsorted(edges, chosen, side="right")
        last = first[episode] + (0 if at_reset else chosen - (edges - steps)[episode])
        return self.buffer.recall(self._ring[episode], last - length + 1, length, self.vec_normalize)


def open_recording(
    model: SequenceOffPolicyAlgorithm,
    source: Source = None,
    vec_normalize: VecNormalize | None = None,
    steps: int = 1000,
    seed: int | None = None,
) -> Recording:
    """
    Make a recording of any source of experience.

    :param model: a trained algorithm
    :param source: a replay buffer, the file of one, an environment in which the agent plays, or None for the model's buffer
    :param vec_normalize: statistics in whose units the model has learned; None takes those of the model's environment
    :param steps: to play in an environment
    :param seed: of that environment
    :return: the recording
    :raises ValueError: if the source is empty, or does not fit the model
    """
    if vec_normalize is None:
        given = unwrap_vec_normalize(source) if isinstance(source, VecEnv) else None
        vec_normalize = model.get_vec_normalize_env() if given is None else given
    if isinstance(source, str | Path):
        source = read_buffer(model, Path(source))
    if isinstance(source, VecEnv | gym.Env):
        source = record(model, source, steps, seed)
    if source is None:
        source = model.replay_buffer  # type: ignore[assignment]
        if source is None or source.num_records == 0:  # type: ignore[union-attr]
            raise ValueError(NO_EXPERIENCE.format("it was loaded without its replay buffer, or has not learned yet"))
    if not isinstance(source, SequenceReplayBuffer):
        raise ValueError(f"Dreams begin in a SequenceReplayBuffer, the path of one or an environment, not in {source!r}.")
    layout = model.policy.image_size, not model.policy.normalize_images
    source.format.check_compatible(RecordFormat(model.observation_space, model.action_space, source.n_envs, *layout))
    return Recording(source, vec_normalize)


def read_buffer(model: SequenceOffPolicyAlgorithm, path: Path) -> SequenceReplayBuffer:
    """
    Read a saved buffer, without replacing the one that the model has.

    :param model: for which it was recorded
    :param path: of the file
    :return: the buffer
    :raises FileNotFoundError: if there is no such file
    :raises ValueError: if it does not fit the model
    """
    path = with_suffix(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no replay buffer {path}. {NO_EXPERIENCE.format('none was found')}")
    own = model.replay_buffer
    try:
        buffer = buffers.read_buffer(path, model.replay_buffer)
    finally:
        if own is not None:  # it may have been this very folder
            own.reopen()
    return own if own is not None and buffer.storage_path is not None and buffer.storage_path == own.storage_path else buffer


def record(
    model: SequenceOffPolicyAlgorithm, env: VecEnv | gym.Env, steps: int = 1000, seed: int | None = None
) -> SequenceReplayBuffer:
    """
    Record the agent in an environment, with sampled actions as during training.

    :param model: the agent
    :param env: wrapped as in training, ``VecNormalize`` included
    :param steps: of every environment
    :param seed: of the environment and of the agent's actions
    :return: the records; the state of the global random numbers is restored
    :raises ValueError: if the environment has other spaces than the model
    """
    venv = model._wrap_env(env, verbose=0, monitor_wrapper=False)
    for name in ("observation", "action"):
        ours, given = (getattr(holder, f"{name}_space") for holder in (model, venv))
        if ours != given:
            raise ValueError(
                f"The environment has the {name} space {given}, but the model was trained with {ours}: wrap the environment "
                "as in training."
            )
    drawn = np.random.get_state()
    with th.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        if seed is not None:
            th.manual_seed(seed)
        buffer = _play(model, venv, steps, seed)
    np.random.set_state(drawn)
    return buffer


def _play(model: SequenceOffPolicyAlgorithm, venv: VecEnv, steps: int, seed: int | None) -> SequenceReplayBuffer:
    policy, normalize = model.policy, unwrap_vec_normalize(venv)
    buffer = SequenceReplayBuffer(
        (steps * 2 + 1) * venv.num_envs,  # episodes of one step have two records
        model.observation_space,
        model.action_space,
        device=model.device,
        n_envs=venv.num_envs,
        image_size=policy.image_size,
        float_images=not policy.normalize_images,
    )
    venv.seed(seed)
    keep_originals(normalize)
    was_training = normalize is not None and normalize.training
    if normalize is not None:
        normalize.training = False  # the statistics belong to the model and must not change
    obs, state, starts = venv.reset(), None, np.ones(venv.num_envs, dtype=bool)
    original = original_observations(normalize, obs)  # type: ignore[arg-type]
    for _ in range(steps):
        actions, state = policy.predict(obs, state, starts)  # type: ignore[arg-type]
        obs, rewards, starts, infos = venv.step(actions)
        following = original_observations(normalize, obs)  # type: ignore[arg-type]
        arrival = arrived_observations(normalize, following, starts, infos)
        if isinstance(model.action_space, spaces.Box):
            actions = scale_actions(actions, model.action_space)
        rewards = rewards if normalize is None else normalize.get_original_reward()
        buffer.add(original, arrival, actions, rewards, starts, infos)
        original = following
    if normalize is not None:
        normalize.training = was_training
    return buffer
