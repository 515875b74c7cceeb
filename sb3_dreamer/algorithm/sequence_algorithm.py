"""What any world-model algorithm needs of SB3 beyond ``OffPolicyAlgorithm``: memory while acting, sequences, safe files."""

import io
import math
import os
import pathlib
import secrets
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, RolloutReturn
from stable_baselines3.common.vec_env import VecEnv

from sb3_dreamer.algorithm.acting import choice_of_policy, random_choice
from sb3_dreamer.algorithm.diagnostics import LearningCheck
from sb3_dreamer.algorithm.engine import Engine
from sb3_dreamer.algorithm.offline import learn_offline
from sb3_dreamer.algorithm.originals import arrived_observations, check_wrappers, first_reset, original_observations
from sb3_dreamer.algorithm.policy import ActingState, WorldModelPolicy
from sb3_dreamer.algorithm.reporting import DreamerProgressBar, TrainingClock, training_summary, warn_if_memory_is_short
from sb3_dreamer.algorithm.setup import check_setup, make_replay_buffer, warn_of_unknown_arguments
from sb3_dreamer.algorithm.team import Team, team_of
from sb3_dreamer.algorithm.workers import WorkerError, check_steps, watched_workers
from sb3_dreamer.behavior.actors import is_squashed
from sb3_dreamer.common.files import atomic_file, is_path
from sb3_dreamer.common.metrics import MetricAverager
from sb3_dreamer.common.observations import check_observation_space
from sb3_dreamer.common.options import Option
from sb3_dreamer.common.preprocessing import NumpyObs, action_blocks
from sb3_dreamer.ranks.distributed import rank
from sb3_dreamer.ranks.termination import TerminationNotice
from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.saving.buffers import BufferLoader, save_buffer
from sb3_dreamer.saving.checkpoint import Checkpoint
from sb3_dreamer.saving.saved_files import FORMAT_ATTRIBUTE, MODEL_FORMAT, check_model_file

SelfSequence = TypeVar("SelfSequence", bound="SequenceOffPolicyAlgorithm")

#: Attributes that ``_setup_model`` and ``learn`` derive from others
DERIVED = ["_engine", "_acting_state", "_metrics", "_check_learning", "clock", "_step_in_flight", "_loading", "_team"]
DERIVED += ["_learning_rate_schedules", "_guard", "_when_stored", "_place_given", "_resumes", "termination"]


class SequenceOffPolicyAlgorithm(OffPolicyAlgorithm):
    """
    An off-policy algorithm whose policy has a memory and whose buffer returns sequences.

    The memory of the running episodes belongs to the algorithm, not to the policy, so that evaluation during training does
    not disturb it. A subclass defines ``train`` and ``_make_engine``.
    """

    base_policy_class: ClassVar[type[WorldModelPolicy]] = WorldModelPolicy  # what the policy must be derived from
    options: ClassVar[Mapping[str, Option]] = {}  # constructor arguments that are not treated as all others are
    #: What the reward head learns: the environment's rewards after this, a key of ``REWARD_TRANSFORMS``
    reward_transform: str = "identity"

    policy: WorldModelPolicy
    replay_buffer: SequenceReplayBuffer  # type: ignore[assignment]
    batch_length: int
    behind_vec_normalize = False  # whether it has learned behind ``VecNormalize``: the buffer holds what the environment gave
    _loading = False  # between the constructor and ``_setup_model`` of a model that is read from a file
    _place_given = False  # whether the user has just said where the records belong
    _team: Team | None = None  # this process' part in a common run, while there is one
    _when_stored: tuple[Callable[[], object], ...] = ()  # what callbacks want to be called between two steps
    _engine: Engine | None = None
    _resumes = False  # whether it continues from a checkpoint, and has not yet reset the environment
    run_id = ""  # of this run and those that resume from its checkpoints

    # ------------------------------------------------------------------------------------------------------ setting up

    def _setup_model(self) -> None:
        """Build policy and replay buffer from the options."""
        self.replay_buffer_class = self.replay_buffer_class or SequenceReplayBuffer
        check_setup(self, is_loading=self._loading)
        self._check_options()
        setattr(self, FORMAT_ATTRIBUTE, MODEL_FORMAT)
        self.algorithm_name = type(self).__name__  # in files
        self.verbose = self.verbose if rank() == 0 else 0
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        arguments: dict[str, Any] = self._policy_arguments()
        policy: Any = self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **arguments)
        self.policy = policy.to(self.device)
        options = self.replay_buffer_kwargs
        in_memory = {name: value for name, value in options.items() if not name.startswith("storage_")}
        self._place_given = options != in_memory and not self._loading
        self.replay_buffer = self._make_replay_buffer(in_memory if self._loading else options)  # loading opens no folder
        self._convert_train_freq()
        self._loading, self._engine, self._metrics, self.clock = False, None, MetricAverager(), TrainingClock()
        self._check_learning = LearningCheck(self.action_space, is_squashed(self.policy.behavior.actor))
        self._acting_state: ActingState | None = None
        self._step_in_flight = False
        self.run_id = self.run_id or secrets.token_hex(8)
        self.termination = TerminationNotice()

    def _check_options(self) -> None:
        """Refuse impossible options that the table does not, before anything is built; for subclasses."""

    def _policy_arguments(self) -> dict[str, Any]:
        """Arguments of the policy besides spaces and schedule; for subclasses."""
        return self.policy_kwargs

    def _make_replay_buffer(self, options: dict[str, Any]) -> SequenceReplayBuffer:
        """A buffer for this policy, with options of ``replay_buffer_kwargs``; it continues the choices of the present one."""
        before, drawn = self.replay_buffer, np.random.get_state()
        buffer = make_replay_buffer(self, options)
        if before is not None:
            np.random.set_state(drawn)
            buffer.random_state = before.random_state
        return buffer

    @property
    def continue_label(self) -> float:
        """What the discount head learns where an episode continues."""
        return self.gamma

    @property
    def engine(self) -> Engine:
        """Carries out acting steps and updates; made when it is first needed."""
        if self._engine is None or self._engine.policy is not self.policy:
            self._engine = self._make_engine()
        return self._engine

    @abstractmethod
    def _make_engine(self) -> Engine:
        """Make the engine with the update of the subclass."""

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """As in SB3, but unsupported spaces are refused by name before SB3 fails on them."""
        if isinstance(env, gym.Env | VecEnv):  # SB3 says what else it is
            check_observation_space(env.observation_space)
            if isinstance(env.action_space, spaces.Box):
                action_blocks(env.action_space)
        return OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

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

    def require_statistics(self) -> None:
        """
        Check that ``VecNormalize`` is there if the model has learned behind it.

        :raises ValueError: if stored experience cannot be brought into the units in which the model has learned
        """
        if self.behind_vec_normalize and self._vec_normalize_env is None:
            raise ValueError(
                f"This {type(self).__name__} has learned behind VecNormalize, and the replay buffer holds original "
                "observations and rewards. Load it with its environment: "
                "load(path, VecNormalize.load('vecnormalize.pkl', env))."
            )

    # ----------------------------------------------------------------------------------------------- saving and loading

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *DERIVED]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        main = self.policy.optimizer
        others = [f"policy.{name}.optimizer" for name, one in self.policy.optimizers.items() if one.optimizer is not main]
        return ["policy", "policy.optimizer", *others], []

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """As in SB3."""
        super().set_parameters(load_path_or_dict, exact_match, device)
        if self._engine is not None:
            self._engine.forget()

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model. See SB3's ``BaseAlgorithm.save``; an older file is replaced only by a complete one. Of several ranks
        only rank 0 writes the file, which does not depend on their number.

        :param path: of the zip file
        :param exclude: attributes to leave out, besides those that always are
        :param include: attributes to save that usually are not
        """
        if not is_path(path) or os.path.isdir(path):  # type: ignore[arg-type]
            return super().save(path, exclude, include)
        if rank() > 0:
            return None
        with atomic_file(path, "zip") as file:  # type: ignore[arg-type]
            super().save(file, exclude, include)  # type: ignore[arg-type]

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
        Load a saved model. See SB3's ``BaseAlgorithm.load``; parts of the file are unpickled, which runs whatever a malicious
        file contains: see :func:`~sb3_dreamer.dreamer_v2.exchange.import_model` for files from strangers.

        :param path: of the zip file
        :param env: to continue training in; may have another number of environments
        :param device: to load to
        :param custom_objects: replacements for things that cannot be unpickled
        :param print_system_info: compare the saving and the loading system
        :param force_reset: begin new episodes
        :param kwargs: constructor arguments to change; a name that is none of these gives a warning
        :return: the model
        :raises ValueError: if the file is damaged, of another format, or was saved by another algorithm
        """
        warn_of_unknown_arguments(cls, kwargs)
        check_model_file(path)
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        model._place_given = "storage_path" in (kwargs.get("replay_buffer_kwargs") or {})
        return model

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the buffer; an older file is replaced only by a complete one. Of a buffer on disk only a reference is saved. Every
        rank has a file of its own, ``replay_buffer.rank1.pkl`` beside ``replay_buffer.pkl``.

        :param path: of the file
        """
        assert self.replay_buffer is not None, "The replay buffer is not defined"
        save_buffer(self.replay_buffer, path, self.verbose)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a saved buffer; if it does not fit, the present one is kept. The file is unpickled, which runs whatever a
        malicious file contains; a buffer on disk (``storage_path``, ``storage_resume``) is opened without unpickling.

        Episodes are copied into a buffer of this model, with a warning, if the file has another number of environments, if it
        lies elsewhere than the ``storage_path`` that was just given, or if it was saved by another number of ranks: with fewer
        ranks each takes several files, with more of them the later ones take copies.

        What a buffer on disk has received since the file was written is out of sight, and lost when a step is added.

        :param path: of the file
        :param truncate_last_traj: not needed here: after loading every environment begins a new episode in the buffer
        :raises ValueError: if the file is damaged or holds something else, or other shapes
        """
        present, make = self.replay_buffer, self._make_replay_buffer
        present = make({}) if present is None else present
        loader = BufferLoader(present, self.replay_buffer_kwargs, make, self._place_given, self.verbose)
        self.replay_buffer = loader.load(path)
        self.replay_buffer.device = self.device

    @classmethod
    def resume(
        cls: type[SelfSequence], folder: str | pathlib.Path, env: GymEnv, device: th.device | str = "auto", **kwargs: Any
    ) -> SelfSequence:
        """
        Resume from a full checkpoint: ``DreamerV2.resume(folder, env).learn(steps, reset_num_timesteps=False)``.

        On a CPU the result is that of a run that was never stopped, to the bit, if the checkpoint was written at the end of an
        episode of a deterministic environment: an environment's own state cannot be saved, it begins a new episode.

        :param folder: of :class:`~sb3_dreamer.callbacks.ResumableCheckpointCallback`, or one of its checkpoints
        :param env: wrapped as before; a ``VecNormalize`` gets its statistics back
        :param device: to load to
        :param kwargs: constructor arguments to change; with a ``seed`` the random numbers do not continue
        :return: the model; of several ranks each with its own buffer and random states, for another number of ranks see
            :meth:`load_replay_buffer`
        :raises FileNotFoundError: if there is no checkpoint
        :raises ValueError: if it is damaged or does not fit
        """
        checkpoint = Checkpoint.newest(folder)
        model = cls.load(checkpoint.model, env, device, **kwargs)
        model.load_replay_buffer(checkpoint.buffer)
        checkpoint.restore_normalization(model.get_vec_normalize_env())
        model._resumes = True
        if kwargs.get("seed") is None:
            checkpoint.restore_random_states(model)
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
        if self._step_in_flight:  # an exception came between a step and its storing: the state of the env is unknown
            self._last_obs, self._step_in_flight = None, False
        self._when_stored = ()
        wanted, held = self.replay_buffer_kwargs.get("storage_path"), self.replay_buffer.storage_path
        if wanted is not None and held is None and self.replay_buffer.num_records == 0:  # loaded, and given no buffer
            self.replay_buffer = self._make_replay_buffer({**self.replay_buffer_kwargs, "storage_resume": True})
        self.clock = TrainingClock()
        if rank() > 0:
            self.set_logger(Logger(None, []))
        reset = reset_num_timesteps or self._last_obs is None
        counted_before, self._resumes = self._resumes, False
        check_steps(self.env)
        with watched_workers(self.env, lambda: 0), first_reset(self._vec_normalize_env, counted_before):
            result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        assert self.env is not None
        if self.behind_vec_normalize and self._vec_normalize_env is None:
            warnings.warn("This model has learned behind VecNormalize, but continues without it, hence in other units.")
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
            print(self._summary(result[0]))
        if rank() == 0:
            warn_if_memory_is_short(self.replay_buffer)
        return result

    def _summary(self, total_timesteps: int) -> str:
        """What is printed before a run that ends at this step; for subclasses."""
        return training_summary(self, total_timesteps)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        if self._team is not None:
            callback, progress_bar = self._team.callback(callback), progress_bar and rank() == 0
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
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSequence:
        """
        Collect experience and train.

        :param total_timesteps: environment steps (agent decisions) over all environments; a float such as 1e7 will do, and
            infinity for a run that a callback ends
        :param callback: SB3 callbacks
        :param log_interval: episodes between two logs, None for none
        :param tb_log_name: name of the run for TensorBoard; None is the name of the algorithm
        :param reset_num_timesteps: begin counting (and a new warm-up) at zero, False continues
        :param progress_bar: show a progress bar with an ETA
        :return: the model itself
        """
        if math.isnan(total_timesteps):
            raise ValueError("total_timesteps must be a number, but is nan.")
        steps = int(total_timesteps) if math.isfinite(total_timesteps) else total_timesteps
        name = type(self).__name__ if tb_log_name is None else tb_log_name
        with team_of(self, total_timesteps=steps, reset_num_timesteps=reset_num_timesteps), self.termination:
            super().learn(steps, callback, log_interval, name, reset_num_timesteps, progress_bar)  # type: ignore[arg-type]
            self._call_waiting()
        self.termination.leave()
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
        learn_offline(self, n_updates, log_interval)
        return self

    def when_stored(self, function: Callable[[], object]) -> None:
        """
        Call a function between two steps, for callbacks that need a consistent model: after the step in progress is stored,
        and the updates that follow it are made.

        :param function: called once
        """
        if function not in self._when_stored:
            self._when_stored = (*self._when_stored, function)

    def _call_waiting(self) -> None:
        waiting, self._when_stored = self._when_stored, ()
        for function in waiting:
            function()

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """As in SB3, but the step after which a callback stops is stored too: the next ``learn`` continues from it."""
        self._call_waiting()
        try:
            with watched_workers(self.env, lambda: self.num_timesteps + 1):
                rollout = super().collect_rollouts(*args, **kwargs)
        except WorkerError:
            if self.termination.received is None or self._team is not None:
                raise  # otherwise a signal to all processes of a job has ended its workers at once
            self._step_in_flight, rollout = False, RolloutReturn(0, 0, continue_training=False)
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
        """One acting step; the latent state follows the posterior during the random warm-up too."""
        assert self._last_obs is not None and self._acting_state is not None
        self._step_in_flight, exploring = True, self._explores()  # until it is stored
        with self.engine.acting:
            starts = th.as_tensor(np.asarray(self._last_episode_starts, dtype=bool), device=self.device)
            seen, noise = self.policy.stored_tensors(self._last_obs), self._noise_amount()
            state = self.engine.act(seen, self._acting_state, starts, explore=exploring, noise_amount=noise)
            at_random = self.num_timesteps < learning_starts or (exploring and self.policy.explores_randomly)
            choice = (random_choice if at_random else choice_of_policy)(state, self.action_space)
        self._acting_state = choice.state
        return choice.actions, choice.buffer_actions

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
        """Log what was measured since the last time."""
        means = self._metrics.pop()
        for name, value in means.items():
            self.logger.record(f"train/{name}", value)
        self._check_learning(means, self._n_updates, 1.0 - self._current_progress_remaining)
        rate = self.clock.updates_per_second(self._n_updates)
        if rate is not None:
            self.logger.record("time/updates_per_second", rate)
