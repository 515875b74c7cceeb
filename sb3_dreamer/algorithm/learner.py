"""What the files of this room need of an algorithm, so that none of them imports it."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch as th
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_dreamer.algorithm.engine import Engine
from sb3_dreamer.algorithm.policy import WorldModelPolicy
from sb3_dreamer.common.metrics import MetricAverager
from sb3_dreamer.common.options import Option
from sb3_dreamer.replay.buffer import SequenceReplayBuffer


class Learner(Protocol):
    """A :class:`~sb3_dreamer.algorithm.sequence_algorithm.SequenceOffPolicyAlgorithm` that is set up."""

    options: ClassVar[Mapping[str, Option]]
    base_policy_class: ClassVar[type[WorldModelPolicy]]
    policy_class: Any
    replay_buffer_class: Any
    replay_buffer_kwargs: dict[str, Any]
    observation_space: spaces.Space
    action_space: spaces.Space
    replay_buffer: SequenceReplayBuffer
    device: th.device
    num_timesteps: int
    n_envs: int
    buffer_size: int
    learning_starts: int
    batch_size: int
    batch_length: int
    train_freq: Any
    gradient_steps: int
    ep_info_buffer: Any
    ep_success_buffer: Any
    _n_updates: int
    _episode_num: int
    _team: Any
    _metrics: MetricAverager
    _current_progress_remaining: float
    _custom_logger: bool
    _logger: Any
    clock: Any
    verbose: int
    tensorboard_log: str | None

    @property
    def logger(self) -> Logger:
        """Of SB3."""

    def set_logger(self, logger: Logger) -> None:
        """Replace the logger."""

    def require_statistics(self) -> None:
        """Check that ``VecNormalize`` is there if the model has learned behind it."""

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Update that many times."""

    def _record_training(self) -> None:
        """Log what was measured since the last time."""

    @property
    def policy(self) -> WorldModelPolicy:
        """Networks and optimizers."""

    @property
    def engine(self) -> Engine:
        """Carries out acting steps and updates."""

    def get_env(self) -> VecEnv | None:
        """The environment, if there is one."""

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The environment's ``VecNormalize``, if there is one."""
