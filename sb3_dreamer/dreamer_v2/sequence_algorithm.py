"""What any world-model algorithm needs of SB3 beyond ``OffPolicyAlgorithm``: memory while acting, sequences, safe files."""

import io
import pathlib
import pickle
import warnings
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn

from sb3_dreamer.common.metrics import MetricAverager
from sb3_dreamer.common.preprocessing import NumpyObs, decode_actions, encode_actions
from sb3_dreamer.dreamer_v2.policies import ActingState, DreamerPolicy
from sb3_dreamer.dreamer_v2.reporting import (
    DreamerProgressBar,
    TrainingClock,
    training_summary,
    warn_if_memory_is_short,
)
from sb3_dreamer.replay.buffer import SequenceReplayBuffer

SelfSequence = TypeVar("SelfSequence", bound="SequenceOffPolicyAlgorithm")

#: Names that SB3's tools write into every model that they load, see rl_zoo3's ``enjoy``
WRITTEN_BY_TOOLS = {"lr_schedule", "clip_range", "n_envs"}


class SequenceOffPolicyAlgorithm(OffPolicyAlgorithm):
    """
    An off-policy algorithm whose policy has a memory and whose buffer returns sequences.

    The memory of the running episodes belongs to the algorithm, not to the policy: evaluation in mid-training does not
    disturb it. Arguments are those of ``OffPolicyAlgorithm``.
    """

    policy: DreamerPolicy
    replay_buffer: SequenceReplayBuffer  # type: ignore[assignment]
    batch_length: int

    def _setup_model(self) -> None:
        if not issubclass(self.policy_class, DreamerPolicy):
            raise ValueError(
                f"{type(self).__name__} needs a policy derived from DreamerPolicy, but {self.policy_class.__name__} was given "
                "(was this file saved by another algorithm?)."
            )
        self.replay_buffer_class = self.replay_buffer_class or SequenceReplayBuffer
        given = self.replay_buffer_kwargs
        defaults = signature(self.policy_class.__init__).parameters
        image_size = self.policy_kwargs.get("image_size", defaults["image_size"].default)
        self.replay_buffer_kwargs = {"batch_length": self.batch_length, "image_size": image_size, **given}
        super()._setup_model()
        self.replay_buffer_kwargs = given
        self._metrics = MetricAverager()
        self.clock = TrainingClock()
        self._acting_state: ActingState | None = None
        self._step_in_flight = False

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed python, NumPy, torch, the action space, the environment and the replay buffer.

        :param seed: None for no change
        """
        super().set_random_seed(seed)
        if seed is not None and self.replay_buffer is not None:
            self.replay_buffer.seed(seed)

    # ------------------------------------------------------------------------------------------------------- collecting

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self._step_in_flight:  # an exception came between a step and its storing: nobody knows where the env stands
            self._last_obs, self._step_in_flight = None, False
        self.clock = TrainingClock()
        new_episodes = reset_num_timesteps or self._last_obs is None or self._acting_state is None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert self.env is not None
        if new_episodes:
            self._acting_state = self.policy.initial_state(self.env.num_envs)
            self._last_episode_starts = np.ones((self.env.num_envs,), dtype=bool)
            self.replay_buffer.start_episodes()
        if self.verbose >= 1:
            print(training_summary(self, result[0]))
        warn_if_memory_is_short(self.replay_buffer)
        return result

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callbacks = super()._init_callback(callback)
        if progress_bar:
            callbacks = CallbackList([callbacks, DreamerProgressBar()])
            callbacks.init_callback(self)
        return callbacks

    def learn(  # type: ignore[override]
        self: SelfSequence,
        total_timesteps: float,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str = "DreamerV2",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSequence:
        """
        Collect experience and train.

        :param total_timesteps: environment steps (agent decisions) over all environments; a float such as 1e7 will do
        :param callback: SB3 callbacks
        :param log_interval: episodes between two logs, None for none
        :param tb_log_name: name of the run for TensorBoard
        :param reset_num_timesteps: begin counting (and a new warm-up) at zero, False continues
        :param progress_bar: show a progress bar with an ETA
        :return: the model itself
        """
        return super().learn(int(total_timesteps), callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)  # type: ignore[arg-type]

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """As in SB3, but the step after which a callback stops the training is stored too: the next ``learn`` goes on from it."""
        rollout = super().collect_rollouts(*args, **kwargs)
        if not rollout.continue_training and self._step_in_flight:
            step = kwargs["callback"].locals if "callback" in kwargs else args[1].locals
            names = ("replay_buffer", "buffer_actions", "new_obs", "rewards", "dones", "infos")
            self._store_transition(*(step[name] for name in names))
        return rollout

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        One acting step. The posterior is followed during the random warm-up too, and the executed action goes into it, so
        that acting sees the same history as training.
        """
        assert self._last_obs is not None and self._last_episode_starts is not None and self._acting_state is not None
        self._step_in_flight = True  # until it is stored
        starts = th.as_tensor(np.asarray(self._last_episode_starts, dtype=bool), device=self.device)
        chosen = self.policy.act(self.policy.stored_tensors(self._last_obs), self._acting_state, starts)
        if self.num_timesteps < learning_starts:
            actions = np.array([self.action_space.sample() for _ in range(n_envs)])
            buffer_actions = self.policy.scale_action(actions) if isinstance(self.action_space, spaces.Box) else actions
            executed = th.as_tensor(buffer_actions.reshape(n_envs, -1), device=self.device)
            chosen = chosen._replace(actions=encode_actions(executed, self.action_space))
        else:
            actions = decode_actions(chosen.actions, self.action_space)
            buffer_actions = actions
            if isinstance(self.action_space, spaces.Box):
                buffer_actions = chosen.actions.cpu().numpy().reshape(n_envs, *self.action_space.shape)
        self._acting_state = chosen
        return actions, buffer_actions

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: NumpyObs,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._last_episode_starts = np.array(dones, dtype=bool)
        self._step_in_flight = False

    def dump_logs(self) -> None:
        """Write the means of all updates since the last time to the logger, beside what SB3 logs."""
        for name, value in self._metrics.pop().items():
            self.logger.record(f"train/{name}", value)
        rate = self.clock.updates_per_second(self._n_updates)
        if rate is not None:
            self.logger.record("time/updates_per_second", rate)
        super().dump_logs()

    # ------------------------------------------------------------------------------------------------- saving and loading

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_acting_state", "_metrics", "clock", "_step_in_flight"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        optimizers = ["policy.optimizer", "policy.actor_optimizer.optimizer", "policy.critic_optimizer.optimizer"]
        return ["policy", *optimizers], []

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfSequence],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSequence:
        """
        Load a saved model. See SB3's ``BaseAlgorithm.load``.

        :param path: of the zip file
        :param env: to continue training in; may have another number of environments
        :param device: to load to
        :param custom_objects: replacements for things that cannot be unpickled
        :param print_system_info: compare the saving and the loading system
        :param force_reset: begin new episodes
        :param kwargs: constructor arguments to change; a name that is none of these gives a warning
        :return: the model
        """
        unknown = set(kwargs) - set(signature(cls.__init__).parameters) - WRITTEN_BY_TOOLS
        if unknown:
            warnings.warn(f"{cls.__name__}.load() was given unknown arguments, which have no effect: {sorted(unknown)}")
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a saved buffer; if it does not fit, the present one is kept.

        :param path: of the file
        :param truncate_last_traj: not needed here: after loading every environment begins a new episode in the buffer
        :raises ValueError: if the file is damaged or holds something else, or other shapes or numbers of environments
        """
        present = self.replay_buffer
        try:
            super().load_replay_buffer(path, truncate_last_traj)
            if not isinstance(self.replay_buffer, SequenceReplayBuffer):
                raise ValueError(f"{path} holds a {type(self.replay_buffer).__name__}, not a SequenceReplayBuffer.")
            self.replay_buffer.check_compatible(self.observation_space, self.action_space, self.n_envs, self.policy.image_size)
        except (EOFError, pickle.UnpicklingError, AssertionError, AttributeError, ImportError, IndexError, KeyError) as error:
            self.replay_buffer = present
            raise ValueError(f"{path} is not a whole replay buffer file (truncated or of another kind): {error}") from error
        except ValueError:
            self.replay_buffer = present
            raise
