"""What any world-model algorithm needs of SB3 beyond ``OffPolicyAlgorithm``: memory while acting, sequences, safe files."""

import math
import pathlib
import warnings
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_dreamer.algorithm.diagnostics import LearningCheck
from sb3_dreamer.algorithm.originals import arrived_observations, check_wrappers, original_observations
from sb3_dreamer.algorithm.policy import ActingState, WorldModelPolicy
from sb3_dreamer.algorithm.reporting import (
    DreamerProgressBar,
    TrainingClock,
    training_summary,
    warn_if_memory_is_short,
)
from sb3_dreamer.algorithm.team import Team, team_of
from sb3_dreamer.behavior.actors import is_squashed
from sb3_dreamer.common.metrics import MetricAverager
from sb3_dreamer.common.observations import check_observation_space
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.preprocessing import NumpyObs, action_blocks, decode_actions, encode_actions, scale_actions
from sb3_dreamer.ranks.distributed import rank, share, world_size
from sb3_dreamer.ranks.rank_files import folder_of_rank
from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.saving.buffers import SavingAlgorithm
from sb3_dreamer.saving.checkpoint import BUFFER, MODEL, find_checkpoint, restore_normalization, restore_random_states

SelfSequence = TypeVar("SelfSequence", bound="SequenceOffPolicyAlgorithm")

#: Arguments of the buffer that are given elsewhere
NOT_OF_THE_BUFFER = dict.fromkeys(("batch_length", "buffer_size", "device"), "an argument of the algorithm") | {
    "image_size": "one of policy_kwargs",
    "n_envs": "the number of environments",
    "float_images": "decided by policy_kwargs=dict(normalize_images=...)",
    "optimize_memory_usage": "needless, since every frame is stored once anyway",
}


class SequenceOffPolicyAlgorithm(SavingAlgorithm):
    """
    An off-policy algorithm whose policy has a memory and whose buffer returns sequences.

    The memory of the running episodes belongs to the algorithm, not to the policy: evaluation in mid-training does not
    disturb it. Arguments are those of ``OffPolicyAlgorithm``.
    """

    batch_length: int
    #: What the policy must be derived from
    base_policy_class: ClassVar[type[WorldModelPolicy]] = WorldModelPolicy
    #: Between the constructor and ``_setup_model`` of a model that is read from a file
    _loading = False
    #: This process' part in a common run, while there is one
    _team: Team | None = None

    def _setup_model(self) -> None:
        if not issubclass(self.policy_class, self.base_policy_class):
            raise ValueError(
                f"{type(self).__name__} needs a policy derived from {self.base_policy_class.__name__}, but "
                f"{self.policy_class.__name__} was given (was this file saved by another algorithm?)."
            )
        self._check_options()
        if not self._loading:
            share("batch_size", self.batch_size)
        if getattr(self, "n_envs", None) == 0:
            raise ValueError(f"Rank {rank()}: n_envs is {self.n_envs}, but every rank needs an environment of its own.")
        self.verbose = self.verbose if rank() == 0 else 0
        self.replay_buffer_class = self.replay_buffer_class or SequenceReplayBuffer
        if not issubclass(self.replay_buffer_class, SequenceReplayBuffer):
            raise ValueError(
                f"{type(self).__name__} learns from sequences: replay_buffer_class must be derived from SequenceReplayBuffer, "
                f"but {self.replay_buffer_class.__name__} was given."
            )
        given = self.replay_buffer_kwargs
        for name in set(NOT_OF_THE_BUFFER) & set(given):
            raise ValueError(f"{name} is {NOT_OF_THE_BUFFER[name]}, not of replay_buffer_kwargs, which are {given}.")
        # A subclass of the policy may have an image_size of its own, which is known only once it is built; a folder is not
        # touched by a model that is only loaded
        in_memory = {name: value for name, value in given.items() if not name.startswith("storage_")}
        self.replay_buffer_kwargs, of_all = {"batch_length": self.batch_length, **in_memory}, self.buffer_size
        self.buffer_size = max(of_all // world_size(), 1)
        super()._setup_model()
        self.replay_buffer_kwargs, self.buffer_size = given, of_all
        layout = {"image_size": self.policy.image_size, "float_images": not self.policy.normalize_images}
        on_disk = given != in_memory and not self._loading
        if on_disk or any(getattr(self.replay_buffer, name) != value for name, value in layout.items()):
            self.replay_buffer = self._make_replay_buffer(given if on_disk else in_memory)
        self._loading, self._place_given = False, on_disk
        self._engine = None
        self._metrics = MetricAverager()
        self._check_learning = LearningCheck(self.action_space, is_squashed(self.policy.behavior.actor))
        self.clock = TrainingClock()
        self._acting_state: ActingState | None = None
        self._step_in_flight = False

    def _make_replay_buffer(self, options: dict[str, Any]) -> SequenceReplayBuffer:
        """The buffer for this policy, with options of ``replay_buffer_kwargs``."""
        assert self.replay_buffer_class is not None
        drawn = np.random.get_state()
        if options.get("storage_path") is not None:
            options = {**options, "storage_path": folder_of_rank(options["storage_path"])}
        buffer: Any = self.replay_buffer_class(
            max(self.buffer_size // world_size(), 1),
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            batch_length=self.batch_length,  # type: ignore[call-arg]
            image_size=self.policy.image_size,
            float_images=not self.policy.normalize_images,
            **options,
        )
        np.random.set_state(drawn)
        buffer.random_state = self.replay_buffer.random_state  # the same choices wherever the records are
        return buffer

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """As in SB3, but spaces that we do not take are refused by name, before SB3 fails on them without one."""
        if isinstance(env, gym.Env | VecEnv):  # SB3 says what else it is
            check_observation_space(env.observation_space)
            if isinstance(env.action_space, spaces.Box):
                action_blocks(env.action_space)
        return OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _check_options(self) -> None:
        """Refuse impossible options, before anything is built; for subclasses."""

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Seed python, NumPy, torch, the action space, the environment and the replay buffer. Environment i of rank r has the
        seed that it would have if all were in one process: ``seed + r * n_envs + i``.

        :param seed: None for no change
        """
        if seed is not None and rank() > 0:
            seed = (seed + rank() * (getattr(self, "n_envs", None) or 1)) % 2**32
        super().set_random_seed(seed)
        if seed is not None and self.replay_buffer is not None:
            self.replay_buffer.seed(seed)

    @classmethod
    def resume(
        cls: type[SelfSequence], folder: str | pathlib.Path, env: GymEnv, device: th.device | str = "auto", **kwargs: Any
    ) -> SelfSequence:
        """
        Go on from a full checkpoint: ``DreamerV2.resume(folder, env).learn(steps, reset_num_timesteps=False)``.

        On a CPU the result is that of a run that was never stopped, to the bit, if the checkpoint was written at the end of an
        episode of a deterministic environment: an environment's own state cannot be saved, it begins a new episode.

        :param folder: of :class:`~sb3_dreamer.callbacks.ResumableCheckpointCallback`, or one of its checkpoints
        :param env: wrapped as before; a ``VecNormalize`` gets its statistics back
        :param device: to load to
        :param kwargs: constructor arguments to change; a ``seed`` begins anew what else goes on: the random numbers
        :return: the model; of several ranks each with its own buffer and random states, for another number of ranks see
            :meth:`load_replay_buffer`
        :raises FileNotFoundError: if there is no checkpoint
        :raises ValueError: if it is damaged or does not fit
        """
        path = find_checkpoint(folder)
        model = cls.load(path / MODEL, env, device, **kwargs)
        model.load_replay_buffer(path / BUFFER)
        restore_normalization(path, model.get_vec_normalize_env())
        if kwargs.get("seed") is None:
            restore_random_states(model, path)
        else:
            model.set_random_seed(kwargs["seed"])
        return model

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
        self._when_stored = ()
        wanted, held = self.replay_buffer_kwargs.get("storage_path"), self.replay_buffer.storage_path
        if wanted is not None and held is None and self.replay_buffer.num_records == 0:  # loaded, and given no buffer
            self.replay_buffer = self._make_replay_buffer({**self.replay_buffer_kwargs, "storage_resume": True})
        self.clock = TrainingClock()
        if rank() > 0:
            self.set_logger(Logger(None, []))
        reset = reset_num_timesteps or self._last_obs is None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert self.env is not None
        if self.behind_vec_normalize and self._vec_normalize_env is None:
            warnings.warn("This model has learned behind VecNormalize, but goes on without: it sees other units than before.")
        self.behind_vec_normalize = self._vec_normalize_env is not None
        if reset:
            seen: Any = self._last_obs
            self._last_original_obs = original_observations(self._vec_normalize_env, seen)  # type: ignore[assignment]
            check_wrappers(self._vec_normalize_env, seen, self._last_original_obs)  # type: ignore[arg-type]
        if reset or self._acting_state is None:
            self._acting_state = self.policy.initial_state(self.env.num_envs)
            self._last_episode_starts = np.ones((self.env.num_envs,), dtype=bool)
            self.replay_buffer.start_episodes()
        if self.verbose >= 1:
            print(training_summary(self, result[0]))
        if rank() == 0:
            warn_if_memory_is_short(self.replay_buffer)
        return result

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if self._team is not None:
            bar: list[BaseCallback] = [DreamerProgressBar()] if progress_bar and rank() == 0 else []
            callback = CallbackList([self._team.callback(callback), *bar])
            progress_bar = False
        if not progress_bar:
            return super()._init_callback(callback)
        given = callback if isinstance(callback, list) else [] if callback is None else [callback]
        callbacks = [one if isinstance(one, BaseCallback) else ConvertCallback(one) for one in given]
        return super()._init_callback([*callbacks, DreamerProgressBar()])

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

        :param total_timesteps: environment steps (agent decisions) over all environments; a float such as 1e7 will do, and
            infinity for a run that a callback ends
        :param callback: SB3 callbacks
        :param log_interval: episodes between two logs, None for none
        :param tb_log_name: name of the run for TensorBoard
        :param reset_num_timesteps: begin counting (and a new warm-up) at zero, False continues
        :param progress_bar: show a progress bar with an ETA
        :return: the model itself
        """
        if math.isnan(total_timesteps):
            raise ValueError("total_timesteps must be a number, but is nan.")
        steps = int(total_timesteps) if math.isfinite(total_timesteps) else total_timesteps
        with team_of(self, total_timesteps=steps, reset_num_timesteps=reset_num_timesteps):
            super().learn(steps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)  # type: ignore[arg-type]
            self._call_waiting()
        return self

    def train_offline(self: SelfSequence, n_updates: float, log_interval: int | None = 100) -> SelfSequence:
        """
        Update from the replay buffer alone, without an environment: more updates on the data of a finished run, or on data
        from elsewhere. Schedules go from their beginning to their end.

        :param n_updates: how many; a float such as 1e4 will do
        :param log_interval: updates between two logs, None for none
        :return: the model itself
        :raises ValueError: if there is nothing to learn from, or the statistics of ``VecNormalize`` are missing
        """
        check_number("n_updates", n_updates, 0)
        n_updates = int(n_updates)
        if self.replay_buffer is None or self.replay_buffer.num_sampleable == 0:
            raise ValueError("There is no experience to learn from: call load_replay_buffer() first.")
        self.require_statistics()
        if rank() > 0:
            self.set_logger(Logger(None, []))
        if not self._custom_logger:
            self._logger = configure_logger(self.verbose, self.tensorboard_log, "offline", reset_num_timesteps=True)
        self.clock = TrainingClock()
        with team_of(self, n_updates=n_updates):
            if self._team is not None:
                self._team.agree_on_data()
            for done in range(n_updates):
                self._current_progress_remaining = 1.0 - done / n_updates
                self.train(1, self.batch_size)
                if log_interval is not None and (done + 1) % log_interval == 0:
                    if self._team is not None:
                        self._team.share_metrics()
                    self._record_training()
                    self.logger.dump(step=self._n_updates)
        return self

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """As in SB3, but the step after which a callback stops is stored too: the next ``learn`` goes on from it."""
        self._call_waiting()
        try:
            rollout = super().collect_rollouts(*args, **kwargs)
        except (EOFError, ConnectionError) as error:
            if self.env is None or not isinstance(self.env.unwrapped, SubprocVecEnv):
                raise  # it is the environment's own
            raise RuntimeError(
                f"An environment process ended in step {self.num_timesteps + 1} (its own error is printed above): {error!r}. "
                "Model and replay buffer are those of the last step: they can be saved, and training goes on after set_env()."
            ) from error
        if not rollout.continue_training and self._step_in_flight:
            step = kwargs["callback"].locals if "callback" in kwargs else args[1].locals
            names = ("replay_buffer", "buffer_actions", "new_obs", "rewards", "dones", "infos")
            self._store_transition(*(step[name] for name in names))
        return rollout if self._team is None else self._team.after_rollout(rollout)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        if self._team is not None and dones is not None:
            self._team.note_episodes(infos, dones)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        One acting step. The posterior is followed during the random warm-up too, and the executed action goes into it, so
        that acting sees the same history as training.
        """
        self._step_in_flight = True  # until it is stored
        with self.engine.acting:
            return self._step_of_policy(learning_starts, n_envs)

    def _step_of_policy(self, learning_starts: int, n_envs: int) -> tuple[np.ndarray, np.ndarray]:
        """Actions for the environment and for the buffer; the acting state moves on."""
        assert self._last_obs is not None and self._acting_state is not None
        starts = th.as_tensor(np.asarray(self._last_episode_starts, dtype=bool), device=self.device)
        exploring = self._explores()
        chosen = self.engine.act(
            self.policy.stored_tensors(self._last_obs),
            self._acting_state,
            starts,
            explore=exploring,
            noise_amount=self._noise_amount(),
        )
        if self.num_timesteps < learning_starts or (exploring and self.policy.explores_randomly):
            actions = np.array([self.action_space.sample() for _ in range(n_envs)])
            is_box = isinstance(self.action_space, spaces.Box)
            buffer_actions = scale_actions(actions, self.action_space) if is_box else actions  # type: ignore[arg-type]
            executed = th.as_tensor(buffer_actions.reshape(n_envs, -1), device=self.device)
            chosen = chosen._replace(actions=encode_actions(executed, self.action_space))
        else:
            actions = decode_actions(chosen.actions, self.action_space)
            buffer_actions = actions
            if isinstance(self.action_space, spaces.Box):
                buffer_actions = chosen.actions.cpu().numpy().reshape(n_envs, *self.action_space.shape)
        self._acting_state = chosen
        return actions, buffer_actions

    def _explores(self) -> bool:
        """Whether the exploration strategy collects now, not the actor; for subclasses."""
        return False

    def _noise_amount(self) -> float:
        """Amount of action noise while collecting; for subclasses."""
        return 0.0

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: NumpyObs,
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """As in SB3, but frames may be transposed or stacked outside of a ``VecNormalize`` that leaves them alone."""
        normalize = self._vec_normalize_env
        originals = original_observations(normalize, new_obs)
        next_obs = arrived_observations(normalize, originals, dones, infos)
        rewards = reward if normalize is None else normalize.get_original_reward()
        replay_buffer.add(self._last_original_obs, next_obs, buffer_action, rewards, dones, infos)  # type: ignore[arg-type]
        normalizer = self.engine.collector.world_model.normalizer
        if normalizer is not None:
            with self.engine.acting:
                normalizer.update(self.policy.stored_tensors(next_obs))
        self._last_obs, self._last_original_obs = new_obs, originals  # type: ignore[assignment]
        self._last_episode_starts = np.array(dones, dtype=bool)
        self._step_in_flight = False

    def dump_logs(self) -> None:
        """Write the means of all updates since the last time to the logger, beside what SB3 logs; on rank 0 alone."""
        if rank() > 0:
            self._metrics.pop()
            return
        self._record_training()
        super().dump_logs()

    def _record_training(self) -> None:
        means = self._metrics.pop()
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)
        self._check_learning(means, self._n_updates, 1.0 - self._current_progress_remaining)
        rate = self.clock.updates_per_second(self._n_updates)
        if rate is not None:
            self.logger.record("time/updates_per_second", rate)
