"""DreamerV3 as an SB3 algorithm: its options and its training."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import GymEnv, RolloutReturn, Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_dreamer.algorithm.diagnostics import LearningCheck, UpdateGuard
from sb3_dreamer.algorithm.engine import Engine, EngineOptions
from sb3_dreamer.algorithm.policy import WorldModelPolicy, has_float_image
from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.observations import split_space
from sb3_dreamer.common.options import COUNT, OF_A_MACHINE, OF_A_RUN, SCHEDULE, Option, check_number, whole_number
from sb3_dreamer.common.schedules import schedule_value
from sb3_dreamer.common.type_aliases import ContextBatch
from sb3_dreamer.dreamer_v3.networks import MODEL_SIZES, model_width
from sb3_dreamer.dreamer_v3.objective import Objective
from sb3_dreamer.dreamer_v3.policies import CnnPolicy, DreamerV3Policy, MlpPolicy, MultiInputPolicy
from sb3_dreamer.dreamer_v3.update import UpdateNoise, UpdateResult, training_update
from sb3_dreamer.dreamer_v3.write_back import WriteBack
from sb3_dreamer.ranks.distributed import device_of_rank, rank, share, world_size
from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.replay.context_buffer import ContextReplayBuffer
from sb3_dreamer.replay.states import StateSizes

#: Constructor arguments that are not treated as all others are
OPTIONS: dict[str, Option] = {
    **dict.fromkeys(("buffer_size", "batch_size", "imagination_horizon"), COUNT),
    "batch_length": Option(least=2),
    **dict.fromkeys(("learning_rate", "ent_coef", "exploration_noise"), SCHEDULE),
    **dict.fromkeys(("policy", "policy_kwargs", "env", "seed", "device", "verbose", "_init_setup_model"), OF_A_RUN),
    **dict.fromkeys(("tensorboard_log", "stats_window_size"), OF_A_RUN),
    **dict.fromkeys(("replay_buffer_class", "replay_buffer_kwargs", "precision", "cuda_graphs", "overlap"), OF_A_MACHINE),
}
#: What to do about signs that nothing is learned, by :class:`~sb3_dreamer.algorithm.diagnostics.LearningCheck`'s names
REMEDIES = {
    "kl": "Raise observation_scale, or lower representation_scale.",
    "entropy": "Raise ent_coef, or lower learning_rate.",
}


class DreamerV3(SequenceOffPolicyAlgorithm):
    """
    DreamerV3: one set of hyperparameters for every domain; world model, actor and critic are trained by one loss.

    Paper: https://arxiv.org/abs/2301.04104 (version 2; Nature 2025). Defaults are those of the released code
    (github.com/danijar/dreamerv3 at e3f0224, "code" below) except for the size of the networks. Where paper and code differ,
    the code is followed, and an argument gives the paper's way where it is one number; see docs/dreamer_v3.md.

    Schedules are functions of the remaining progress (1 to 0), or strings such as ``"lin_4e-5"`` (falls to zero).

    :param policy: ``"CnnPolicy"``, ``"MlpPolicy"``, ``"MultiInputPolicy"`` or a subclass of ``DreamerV3Policy``
    :param env: environment, VecEnv or registered id (None to load a model for prediction)
    :param model_size: size of all networks, ``"1m"``, ``"12m"``, ``"25m"``, ``"50m"``, ``"100m"``, ``"200m"`` (code) or
        ``"400m"`` parameters; None is ``"12m"`` for images on a GPU, and ``"1m"`` for everything else
    :param learning_rate: of everything, a float or a schedule of the remaining progress (code: 4e-5)
    :param buffer_size: steps kept for replay, over all environments (code: 5e6; 1e6 here, as all of SB3)
    :param learning_starts: steps before training; None is ``batch_size * batch_length``, as in the code. Actions are not
        random meanwhile: the untrained actor chooses them
    :param batch_size: sequences per update (code: 16)
    :param batch_length: steps per sequence (code: 64)
    :param train_ratio: steps that are replayed for each environment step, so that there are
        ``train_ratio / (batch_size * batch_length)`` updates per step (code: 32 to 1024, by suite; 512 here)
    :param gamma: discount factor (code: 1 - 1 / 333)
    :param imagination_horizon: imagined steps H (code: 15)
    :param imagination_last: imagine from this many last steps of each replayed sequence; None is all of them (code)
    :param return_lambda: λ of the returns (code: 0.95)
    :param tau: share of the critic that its slow copy takes over in each update (code: 0.02)
    :param ent_coef: entropy bonus of the actor, a float or a schedule (code: 3e-4)
    :param exploration_noise: action noise while collecting, a float or a schedule: the probability of a uniform action, or the
        standard deviation of normal noise on Box actions, which are in [-1, 1] here (code: 0)
    :param free_nats: nats of KL that are not penalized, in every step (code: 1)
    :param dynamics_scale: factor of the KL loss that trains the prior (code: 1)
    :param representation_scale: factor of the KL loss that trains the posterior (code: 0.1)
    :param observation_scale: factor of the reconstruction loss, or a dict with those of some observation keys (code: 1)
    :param reward_scale: factor of the reward loss (code: 1)
    :param discount_scale: factor of the discount loss (code: 1)
    :param actor_scale: factor of the actor's loss (code: 1)
    :param critic_scale: factor of the critic's loss on imagined states (code: 1)
    :param replay_critic_scale: factor of the critic's loss on replayed states (code: 0.3); 0 switches it off
    :param critic_target_scale: weight of the slow critic's predictions as targets, beside the returns (code: 1)
    :param bootstrap_target: let the slow critic value the imagined states (code: False)
    :param discount_head_learns_gamma: the discount head's label contains gamma (code: True; paper: False)
    :param reward_gradients: let the reward head train the representation (code: True)
    :param replay_critic_gradients: let the critic's loss on replayed states train the representation (code: True)
    :param behavior_gradients: let actor and critic train the representation where imagination starts (code: False)
    :param max_skipped_updates: updates in a row with gradients that are not finite, which are skipped, after which training
        stops with an error; None for never
    :param precision: of the matrix products and convolutions in updates: ``"float32"`` or ``"bfloat16"``; None is
        ``"bfloat16"`` (code) on GPUs and ``"float32"`` elsewhere
    :param cuda_graphs: record updates and acting steps once and let the GPU repeat them (CUDA only)
    :param overlap: act while the last update is still running on the GPU, with the weights before it (CUDA only)
    :param replay_buffer_class: :class:`~sb3_dreamer.replay.context_buffer.ContextReplayBuffer` or a subclass
    :param replay_buffer_kwargs: its storage options, e.g. ``dict(online=False)``
    :param policy_kwargs: sizes and other options of the networks, see
        :class:`~sb3_dreamer.dreamer_v3.policies.DreamerV3Policy`
    :param stats_window_size: episodes over which the logged return and length are averaged
    :param tensorboard_log: folder for TensorBoard (None for no log)
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: of all random numbers; repeats a run exactly on the CPU
    :param device: ``"auto"`` takes a GPU if there is one
    :param _init_setup_model: build networks and buffer at once
    """

    base_policy_class: ClassVar[type[WorldModelPolicy]] = DreamerV3Policy
    options: ClassVar[Mapping[str, Option]] = OPTIONS
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DreamerV3Policy  # type: ignore[assignment]
    replay_buffer: ContextReplayBuffer  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[DreamerV3Policy],
        env: GymEnv | str | None,
        model_size: str | None = None,
        learning_rate: float | str | Schedule = 4e-5,
        buffer_size: int = 1_000_000,
        learning_starts: int | None = None,
        batch_size: int = 16,
        batch_length: int = 64,
        train_ratio: float = 512.0,
        gamma: float = 1.0 - 1.0 / 333.0,
        imagination_horizon: int = 15,
        imagination_last: int | None = None,
        return_lambda: float = 0.95,
        tau: float = 0.02,
        ent_coef: float | str | Schedule = 3e-4,
        exploration_noise: float | str | Schedule = 0.0,
        free_nats: float = 1.0,
        dynamics_scale: float = 1.0,
        representation_scale: float = 0.1,
        observation_scale: float | dict[str, float] = 1.0,
        reward_scale: float = 1.0,
        discount_scale: float = 1.0,
        actor_scale: float = 1.0,
        critic_scale: float = 1.0,
        replay_critic_scale: float = 0.3,
        critic_target_scale: float = 1.0,
        bootstrap_target: bool = False,
        discount_head_learns_gamma: bool = True,
        reward_gradients: bool = True,
        replay_critic_gradients: bool = True,
        behavior_gradients: bool = False,
        max_skipped_updates: int | None = 100,
        precision: str | None = None,
        cuda_graphs: bool = False,
        overlap: bool = False,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]  # SB3 allows None, for loading, but its annotation does not
            learning_rate,  # type: ignore[arg-type]  # a string becomes a schedule before SB3 looks at it
            buffer_size,
            learning_starts,  # type: ignore[arg-type]  # None becomes a number in _check_options
            batch_size,
            tau,
            gamma,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=None if replay_buffer_kwargs is None else dict(replay_buffer_kwargs),
            policy_kwargs=None if policy_kwargs is None else dict(policy_kwargs),
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose if rank() == 0 else 0,
            device=device_of_rank(device),
            support_multi_env=True,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Discrete, spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.model_size = model_size
        self.batch_length = batch_length
        self.train_ratio = train_ratio
        self.imagination_horizon = imagination_horizon
        self.imagination_last = imagination_last
        self.return_lambda = return_lambda
        self.ent_coef = ent_coef
        self.exploration_noise = exploration_noise
        self.free_nats = free_nats
        self.dynamics_scale = dynamics_scale
        self.representation_scale = representation_scale
        self.observation_scale = observation_scale
        self.reward_scale = reward_scale
        self.discount_scale = discount_scale
        self.actor_scale = actor_scale
        self.critic_scale = critic_scale
        self.replay_critic_scale = replay_critic_scale
        self.critic_target_scale = critic_target_scale
        self.bootstrap_target = bootstrap_target
        self.discount_head_learns_gamma = discount_head_learns_gamma
        self.reward_gradients = reward_gradients
        self.replay_critic_gradients = replay_critic_gradients
        self.behavior_gradients = behavior_gradients
        self.max_skipped_updates = max_skipped_updates
        self.precision = precision
        self.cuda_graphs = cuda_graphs
        self.overlap = overlap
        #: Steps that are to be replayed, but do not fill a batch yet; None before the first update
        self._steps_owed: float | None = None
        self._loading = not _init_setup_model
        if _init_setup_model:
            self._engine_options.check(self.device)
            self._setup_model()

    # ------------------------------------------------------------------------------------------------------ setting up

    @property  # type: ignore[override]  # an attribute in SB3
    def action_noise(self) -> None:
        """SB3's objects are not supported."""

    @action_noise.setter
    def action_noise(self, noise: ActionNoise | None) -> None:
        if noise is not None:
            raise TypeError("DreamerV3 takes no action_noise objects: exploration_noise is the amount of noise in actions.")

    def _setup_model(self) -> None:
        self.replay_buffer_class = self.replay_buffer_class or ContextReplayBuffer
        super()._setup_model()
        decoded = self.policy.world_model.decoder_keys
        for key in self.observation_scale if isinstance(self.observation_scale, dict) else {}:
            if key not in decoded:
                raise ValueError(f"observation_scale names '{key}', which is not reconstructed: the keys are {decoded}.")
        self._guard, self._write_back = UpdateGuard(self.max_skipped_updates), WriteBack()
        self._check_learning = LearningCheck(self.action_space, remedies=REMEDIES)
        self._set_learning_rate(1.0)

    def _check_options(self) -> None:
        if not issubclass(self.replay_buffer_class, ContextReplayBuffer):  # type: ignore[arg-type]
            raise ValueError(
                "DreamerV3 keeps latent states beside its records: replay_buffer_class must be derived from "
                f"ContextReplayBuffer, but {self.replay_buffer_class.__name__} was given."  # type: ignore[union-attr]
            )
        if "model_size" in self.policy_kwargs:
            raise ValueError("model_size is an argument of DreamerV3, not of policy_kwargs.")
        for name in {"exploration_class", "exploration_kwargs"} & set(self.policy_kwargs):
            raise ValueError(f"DreamerV3 has no exploration strategies, but {name} was given: DreamerV2 has them.")
        if self.model_size is None:
            self.model_size = "12m" if self._has_image and self.device.type == "cuda" else "1m"
        model_width(self.model_size)
        if self.learning_starts is None:
            self.learning_starts = self.batch_size * self.batch_length
        check_number("learning_starts", self.learning_starts, 0)
        check_number("train_ratio", self.train_ratio, 1e-6)
        if self.max_skipped_updates is not None:
            check_number("max_skipped_updates", self.max_skipped_updates, 1)
        if self.imagination_last is not None:
            self.imagination_last = whole_number("imagination_last", self.imagination_last, 1)
        schedule_value("learning_rate", self.learning_rate, 1.0)
        self._noise_amount()
        self.objective  # noqa: B018  the objective checks itself
        # A rollout is as long as it takes to owe an update; see _updates_due
        steps = (getattr(self, "n_envs", None) or 1) * world_size()
        self.train_freq = max(int(self._steps_per_update / (self.train_ratio * steps)), 1)

    @property
    def _has_image(self) -> bool:
        """Whether there is an image in the observations."""
        space, floats = self.observation_space, not self.policy_kwargs.get("normalize_images", True)
        return any(map(is_image_space, split_space(space).values())) or (floats and has_float_image(space))

    def _policy_arguments(self) -> dict[str, Any]:
        return {**self.policy_kwargs, "model_size": self.model_size}

    def _make_replay_buffer(self, options: dict[str, Any]) -> SequenceReplayBuffer:
        rssm: Any = self.policy.world_model.rssm
        sizes = StateSizes(rssm.deterministic_size, rssm.latent.variables, rssm.latent.classes)
        return super()._make_replay_buffer({**options, "states": sizes})

    @property
    def objective(self) -> Objective:
        """What an update minimizes, from the current options; schedules at the current progress."""
        return Objective(
            gamma=self.gamma,
            free_nats=self.free_nats,
            dynamics_scale=self.dynamics_scale,
            representation_scale=self.representation_scale,
            observation_scale=self.observation_scale,
            reward_scale=self.reward_scale,
            discount_scale=self.discount_scale,
            actor_scale=self.actor_scale,
            critic_scale=self.critic_scale,
            replay_critic_scale=self.replay_critic_scale,
            imagination_horizon=self.imagination_horizon,
            imagination_last=self.imagination_last,
            return_lambda=self.return_lambda,
            ent_coef=schedule_value("ent_coef", self.ent_coef, self._current_progress_remaining),
            tau=self.tau,
            critic_target_scale=self.critic_target_scale,
            bootstrap_target=self.bootstrap_target,
            discount_head_learns_gamma=self.discount_head_learns_gamma,
            reward_gradients=self.reward_gradients,
            replay_critic_gradients=self.replay_critic_gradients,
            behavior_gradients=self.behavior_gradients,
        )

    @property
    def continue_label(self) -> float:
        return self.gamma if self.discount_head_learns_gamma else 1.0

    @property
    def _engine_options(self) -> EngineOptions:
        default = "bfloat16" if self.device.type == "cuda" else "float32"
        return EngineOptions(default if self.precision is None else self.precision, self.cuda_graphs, self.overlap)

    def _make_engine(self) -> Engine:
        """Checked here too: a model that was saved on a GPU may be loaded anywhere, as long as it is not trained."""
        self._engine_options.check(self.device)
        scheduled = ["ent_coef"] if callable(self.ent_coef) else []
        return Engine(self.policy, training_update, self._engine_options, scheduled, callable(self.exploration_noise))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_write_back"]

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        self._write_back.finish(self.replay_buffer)
        super().save_replay_buffer(path)

    def _summary(self, total_timesteps: int) -> str:
        per_update = self._steps_per_update / self.train_ratio
        rate = f"1 per {per_update:g} environment steps" if per_update >= 1 else f"{1 / per_update:g} per environment step"
        batch = f"{self.batch_size} sequences of {self.batch_length} steps"
        first = max(int(self.learning_starts) - self.num_timesteps, 0)
        lines = [line for line in super()._summary(total_timesteps).split("\n") if not line.startswith("Updates")]
        chosen = "images" if self._has_image else "vectors"
        states = self.replay_buffer.state_sizes.row.itemsize
        return "\n".join(
            [
                *lines,
                f"Of each step, {states:,} bytes are its latent state",
                f"Updates: {rate} (train_ratio {self.train_ratio:g}), each on {batch}, after {first:,} steps of the untrained "
                "actor",
                f"Size: {self.model_size} of {', '.join(MODEL_SIZES)}; by default 1m for vectors, and for images on a CPU, "
                f"12m for images on a GPU. These are {chosen} on a {'GPU' if self.device.type == 'cuda' else 'CPU'}",
            ]
        )

    # ------------------------------------------------------------------------------------------------------- collecting

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """One acting step of the actor, before the first update too; the latent state goes into the buffer."""
        actions = super()._sample_action(0, action_noise, n_envs)
        assert self._acting_state is not None
        with self.engine.acting:
            self.replay_buffer.note_states(self._acting_state.latent)
        return actions

    def _noise_amount(self) -> float:
        """Current amount of action noise."""
        highest = float("inf") if isinstance(self.action_space, spaces.Box) else 1.0
        return schedule_value("exploration_noise", self.exploration_noise, self._current_progress_remaining, 0.0, highest)

    @property
    def _steps_per_update(self) -> int:
        """Steps that an update replays, over all ranks."""
        return self.batch_size * self.batch_length

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """As in SB3; sets ``gradient_steps`` to the number of updates that are due after these steps."""
        rollout = super().collect_rollouts(*args, **kwargs)
        self.gradient_steps = self._updates_due(rollout.episode_timesteps, rollout.continue_training)
        return rollout

    def _updates_due(self, steps: int, trains: bool) -> int:
        """
        Number of updates to be made now. As in V3's code, training begins with one update, and steps before it do not count.

        :param steps: that were made since the last call, over all ranks
        :param trains: whether updates can be made now; otherwise they remain due
        """
        has_data = self.replay_buffer.num_sampleable > 0 if self._team is None else self._team.can_sample
        if not has_data or self.num_timesteps <= self.learning_starts:
            return 0
        if self._steps_owed is None:
            self._steps_owed = float(self._steps_per_update)
        else:
            self._steps_owed += steps * self.train_ratio
        if not trains:
            return 0
        due, self._steps_owed = divmod(self._steps_owed, self._steps_per_update)
        return int(due)

    # --------------------------------------------------------------------------------------------------------- training

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Train everything on replayed sequences; the algorithm box is
        :func:`~sb3_dreamer.dreamer_v3.update.training_update`.

        :param gradient_steps: number of updates
        :param batch_size: sequences of each, over all ranks
        """
        if not (self.replay_buffer.num_sampleable > 0 if self._team is None else self._team.can_sample):
            return
        self.policy.set_training_mode(True)
        self._log_schedules()
        self.clock.first_update(self.num_timesteps, self._n_updates)
        self.engine.before_updates()
        own_size, buffer = share("batch_size", batch_size), self.replay_buffer
        for _ in range(gradient_steps):
            sample = buffer.sample_with_context(own_size, self._vec_normalize_env, self.batch_length)
            result = self.update(sample.batch)
            self._write_back.add(buffer, sample.envs, sample.firsts, result.states)
            self._metrics.add(result.metrics) if self._team is None else self._team.note_update(result.metrics)
            self._guard(result.metrics, self.policy, buffer.describe_outliers)
        if not self.overlap:
            self._write_back.finish(buffer)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def update(self, batch: ContextBatch, noise: UpdateNoise | None = None) -> UpdateResult:
        """
        One update of everything from one batch.

        :param batch: sequences from the replay buffer, with the states before them
        :param noise: random numbers to use instead of drawing them
        :return: losses, states and metrics
        """
        result = self.engine.update(batch, self.objective, noise)
        self._n_updates += 1
        return result

    def _log_schedules(self) -> None:
        """Move the optimizer along its schedule, and log where it and other schedules are."""
        self.logger.record("train/learning_rate", self._set_learning_rate(self._current_progress_remaining))
        for name, value in {"ent_coef": self.objective.ent_coef, "exploration_noise": self._noise_amount()}.items():
            if callable(getattr(self, name)):
                self.logger.record(f"train/{name}", value)

    def _set_learning_rate(self, progress_remaining: float) -> float:
        """Set the learning rate for a progress from 1 to 0; returns it."""
        rate = self.lr_schedule(max(progress_remaining, 0.0))  # SB3 overshoots by up to a rollout
        for one in self.policy.optimizers.values():
            update_learning_rate(one.optimizer, rate)
        return rate
