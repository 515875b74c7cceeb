"""DreamerV2 as an SB3 algorithm: its options and its training."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule, update_learning_rate

from sb3_dreamer.algorithm.diagnostics import LossWeights, UpdateGuard
from sb3_dreamer.algorithm.engine import Engine, EngineOptions
from sb3_dreamer.algorithm.policy import WorldModelPolicy
from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.behavior.actor_critic import BehaviorObjective
from sb3_dreamer.common.distributions import LOG_SQRT_2PI
from sb3_dreamer.common.options import COUNT, OF_A_MACHINE, OF_A_RUN, SCHEDULE, Option, check_number, whole_number
from sb3_dreamer.common.schedules import schedule_value
from sb3_dreamer.common.type_aliases import SequenceBatch
from sb3_dreamer.dreamer_v2.policies import CnnPolicy, DreamerPolicy, MlpPolicy, MultiInputPolicy
from sb3_dreamer.dreamer_v2.update import Objective, UpdateNoise, UpdateResult, training_update
from sb3_dreamer.ranks.distributed import device_of_rank, rank, share
from sb3_dreamer.world_model.world_model import WorldModelObjective

RATES = "learning_rate", "actor_learning_rate", "critic_learning_rate"
#: Constructor arguments that are not treated as all others are
OPTIONS: dict[str, Option] = {
    **dict.fromkeys(("buffer_size", "batch_size", "batch_length", "imagination_horizon", "imagination_stride"), COUNT),
    "target_update_interval": COUNT,
    "gradient_steps": Option(least=-1),
    **dict.fromkeys((*RATES, "ent_coef", "exploration_noise"), SCHEDULE),
    "reinforce_weight": Option(is_schedule=True, words=("auto",)),
    **dict.fromkeys(("policy", "policy_kwargs", "env", "seed", "device", "verbose", "_init_setup_model"), OF_A_RUN),
    **dict.fromkeys(("tensorboard_log", "stats_window_size"), OF_A_RUN),
    **dict.fromkeys(("replay_buffer_class", "replay_buffer_kwargs", "precision", "cuda_graphs", "overlap"), OF_A_MACHINE),
}


class DreamerV2(SequenceOffPolicyAlgorithm):
    """
    DreamerV2: learns a world model with discrete latents from replayed sequences, and actor and critic inside it.

    Papers: V1 https://arxiv.org/abs/1912.01603, V2 https://arxiv.org/abs/2010.02193. Defaults are the Atari values of the
    released code (github.com/danijar/dreamerv2, "code" below) with the paper's batch of 50; table D.1 is the paper's.

    Schedules are functions of the remaining progress (1 to 0), or strings such as ``"lin_3e-4"`` (falls to zero) and
    ``"lin_1_0.1"`` (from 1 to 0.1; ``"lin_1_0.1_0.5"`` within the first half of the training).

    :param policy: ``"CnnPolicy"``, ``"MlpPolicy"``, ``"MultiInputPolicy"`` or a subclass of ``DreamerPolicy``
    :param env: environment, VecEnv or registered id (None to load a model for prediction)
    :param learning_rate: of the world model, a float or a schedule of the remaining progress (code and table D.1: 2e-4)
    :param actor_learning_rate: likewise for the actor (code and table D.1: 4e-5)
    :param critic_learning_rate: likewise for the critic (code and table D.1: 1e-4)
    :param buffer_size: steps kept for replay, over all environments (code and table D.1: 2e6)
    :param learning_starts: random steps before training (code: 50,000)
    :param batch_size: sequences per update (table D.1: 50; the code's current default is 16)
    :param batch_length: steps per sequence (code and table D.1: 50)
    :param tau: fraction by which a target update moves the target critic (code: 1, a copy); the first is always a copy
    :param gamma: discount factor (code: 0.999, the default here; table D.1: 0.995)
    :param train_freq: environment steps (of every environment) between updates (code: 16, the default here; table D.1: 4)
    :param gradient_steps: updates each time; -1 for as many as steps were collected (code: 1)
    :param imagination_horizon: imagined steps H (code and table D.1: 15)
    :param imagination_stride: imagine from every k-th step of the replayed sequences (from the last of shorter ones), which
        makes an update cheaper; steps late in a sequence have seen more of what came before (code and paper: from all, 1)
    :param return_lambda: λ of the returns (code and table D.1: 0.95)
    :param target_update_interval: updates between target updates (code and table D.1: 100)
    :param ent_coef: entropy bonus η of the actor, a float or a schedule (code and table D.1: 1e-3)
    :param reinforce_weight: ρ of V2, eq. 6, a float or a schedule: 1 for REINFORCE, 0 for gradients through the dynamics,
        between for a mixture; ``"auto"`` is 0 for Box actions and 1 for all others (code and paper)
    :param exploration_noise: action noise while collecting, a float or a schedule: the probability of a uniform action, or the
        standard deviation of normal noise on Box actions, which are in [-1, 1] here (code: 0)
    :param explore_until: environment steps after which the actor collects in place of ``exploration_class`` (see the policy);
        None explores forever (code, ``expl_until``: forever)
    :param kl_scale: factor β of the KL loss (code and table D.1, Atari: 0.1)
    :param kl_balance: share of the KL's gradient that trains the prior (code and table D.1: 0.8); None for the plain KL
    :param kl_forward: KL(prior, posterior) instead of KL(posterior, prior) (code: False)
    :param free_nats: nats of KL that are not penalized (code: 0)
    :param free_nats_average: compare ``free_nats`` with the mean KL instead of every step's (code: True)
    :param observation_scale: factor of the reconstruction loss, or a dict with those of some observation keys (code: 1)
    :param reward_scale: factor of the reward loss (code: 1)
    :param discount_scale: factor of the discount loss (code: 5; the paper's table does not list it)
    :param reward_transform: inside the learner: ``"tanh"`` (code and paper, Atari), ``"symlog"``, ``"sign"``, ``"identity"``,
        or ``"normalize"``, which divides rewards by the running size of those that are not zero
    :param reward_norm_momentum: normalize imagined rewards by a running mean of their size (code, Atari: off)
    :param reward_norm_scale: size that normalized rewards are given (code: 1)
    :param normalize_returns: divide what the actor maximizes by the running range of the returns, as DreamerV3 does, so that
        ``ent_coef`` means the same in every task (code: no)
    :param observation_gradients: let the reconstruction train the representation (False: ablation of V2, table 2)
    :param reward_gradients: let the reward head train the representation (False: ablation of V2, table 2)
    :param discount_gradients: let the discount head train the representation (code: True)
    :param max_grad_norm: global norm to which each optimizer's gradients are clipped (code and table D.1: 100)
    :param max_skipped_updates: updates in a row with gradients that are not finite, which are skipped, after which training
        stops with an error; None for never
    :param precision: of the matrix products and convolutions in updates: ``"float32"``, or ``"bfloat16"`` for GPUs (losses,
        states, optimizers and acting stay in float32; the code's 16-bit mode was float16)
    :param cuda_graphs: record updates and acting steps once and let the GPU repeat them (CUDA only)
    :param overlap: act while the last update is still running on the GPU, with the weights before it (CUDA only)
    :param replay_buffer_class: :class:`~sb3_dreamer.replay.buffer.SequenceReplayBuffer` or a subclass
    :param replay_buffer_kwargs: its storage options, e.g. ``dict(prioritize_ends=False)``
    :param policy_kwargs: sizes of the networks, see :class:`~sb3_dreamer.dreamer_v2.policies.DreamerPolicy`
    :param stats_window_size: episodes over which the logged return and length are averaged
    :param tensorboard_log: folder for TensorBoard (None for no log)
    :param verbose: 0 silent, 1 information, 2 debugging
    :param seed: of all random numbers; repeats a run exactly on the CPU
    :param device: ``"auto"`` takes a GPU if there is one
    :param _init_setup_model: build networks and buffer at once
    """

    base_policy_class: ClassVar[type[WorldModelPolicy]] = DreamerPolicy
    options: ClassVar[Mapping[str, Option]] = OPTIONS
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: DreamerPolicy  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[DreamerPolicy],
        env: GymEnv | str | None,
        learning_rate: float | str | Schedule = 2e-4,
        actor_learning_rate: float | str | Schedule = 4e-5,
        critic_learning_rate: float | str | Schedule = 1e-4,
        buffer_size: int = 2_000_000,
        learning_starts: int = 50_000,
        batch_size: int = 50,
        batch_length: int = 50,
        tau: float = 1.0,
        gamma: float = 0.999,
        train_freq: int | tuple[int, str] = 16,
        gradient_steps: int = 1,
        imagination_horizon: int = 15,
        imagination_stride: int = 1,
        return_lambda: float = 0.95,
        target_update_interval: int = 100,
        ent_coef: float | str | Schedule = 1e-3,
        reinforce_weight: float | str | Schedule = "auto",
        exploration_noise: float | str | Schedule = 0.0,
        explore_until: int | None = None,
        kl_scale: float = 0.1,
        kl_balance: float | None = 0.8,
        kl_forward: bool = False,
        free_nats: float = 0.0,
        free_nats_average: bool = True,
        observation_scale: float | dict[str, float] = 1.0,
        reward_scale: float = 1.0,
        discount_scale: float = 5.0,
        reward_transform: str = "tanh",
        reward_norm_momentum: float | None = None,
        reward_norm_scale: float = 1.0,
        normalize_returns: bool = False,
        observation_gradients: bool = True,
        reward_gradients: bool = True,
        discount_gradients: bool = True,
        max_grad_norm: float | None = 100.0,
        max_skipped_updates: int | None = 100,
        precision: str = "float32",
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
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
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
        self.actor_learning_rate = actor_learning_rate
        self.critic_learning_rate = critic_learning_rate
        self.batch_length = batch_length
        self.imagination_horizon = imagination_horizon
        self.imagination_stride = imagination_stride
        self.return_lambda = return_lambda
        self.target_update_interval = target_update_interval
        self.ent_coef = ent_coef
        self.reinforce_weight = reinforce_weight
        self.exploration_noise = exploration_noise
        self.explore_until = explore_until
        self.kl_scale = kl_scale
        self.kl_balance = kl_balance
        self.kl_forward = kl_forward
        self.free_nats = free_nats
        self.free_nats_average = free_nats_average
        self.observation_scale = observation_scale
        self.reward_scale = reward_scale
        self.discount_scale = discount_scale
        self.reward_transform = reward_transform
        self.reward_norm_momentum = reward_norm_momentum
        self.reward_norm_scale = reward_norm_scale
        self.normalize_returns = normalize_returns
        self.observation_gradients = observation_gradients
        self.reward_gradients = reward_gradients
        self.discount_gradients = discount_gradients
        self.max_grad_norm = max_grad_norm
        self.max_skipped_updates = max_skipped_updates
        self.precision = precision
        self.cuda_graphs = cuda_graphs
        self.overlap = overlap
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
            raise TypeError("DreamerV2 takes no action_noise objects: exploration_noise is the amount of noise in actions.")

    def _setup_model(self) -> None:
        super()._setup_model()
        self._check_against_policy()
        self._guard = UpdateGuard(self.max_skipped_updates)
        self._learning_rate_schedules: dict[str, Schedule] = {  # beside SB3's lr_schedule
            "actor_learning_rate": FloatSchedule(self.actor_learning_rate),  # type: ignore[arg-type]
            "critic_learning_rate": FloatSchedule(self.critic_learning_rate),  # type: ignore[arg-type]
        }
        self._set_learning_rates(1.0)

    def _check_options(self) -> None:
        check_number("learning_starts", self.learning_starts, 0)
        if isinstance(self.train_freq, list):  # from YAML
            self.train_freq = tuple(self.train_freq)
        if isinstance(self.train_freq, tuple):
            whole_number("train_freq", self.train_freq[0], 1)
        else:
            self.train_freq = whole_number("train_freq", self.train_freq, 1)
        check_number("tau", self.tau, 0.0, 1.0)
        if self.max_grad_norm is not None:
            check_number("max_grad_norm", self.max_grad_norm, 1e-12)
        if self.max_skipped_updates is not None:
            check_number("max_skipped_updates", self.max_skipped_updates, 1)
        for name in RATES:
            schedule_value(name, getattr(self, name), 1.0)
        self._noise_amount()
        if self.explore_until is not None:
            check_number("explore_until", self.explore_until, 0)
        self.model_objective, self.behavior_objective  # noqa: B018  the objectives check themselves

    def _check_against_policy(self) -> None:
        """Refuse options that have nothing to act on in this policy."""
        if self.explore_until is not None and not (self.policy.exploration is not None or self.policy.explores_randomly):
            raise ValueError(
                f"explore_until={self.explore_until} has nothing to end: name a policy_kwargs=dict(exploration_class=...)."
            )
        decoded = self.policy.world_model.decoder_keys
        scaled = self.observation_scale if isinstance(self.observation_scale, dict) else {}
        for key in scaled:
            if key not in decoded:
                raise ValueError(f"observation_scale names '{key}', which is not reconstructed: the keys are {decoded}.")

    @property
    def model_objective(self) -> WorldModelObjective:
        """What the world model minimizes, from the current options."""
        return WorldModelObjective(
            gamma=self.gamma,
            kl_scale=self.kl_scale,
            kl_balance=self.kl_balance,
            kl_forward=self.kl_forward,
            free_nats=self.free_nats,
            free_nats_average=self.free_nats_average,
            observation_scale=self.observation_scale,
            reward_scale=self.reward_scale,
            discount_scale=self.discount_scale,
            reward_transform=self.reward_transform,
            observation_gradients=self.observation_gradients,
            reward_gradients=self.reward_gradients,
            discount_gradients=self.discount_gradients,
        )

    @property
    def _engine_options(self) -> EngineOptions:
        return EngineOptions(self.precision, self.cuda_graphs, self.overlap)

    def _make_engine(self) -> Engine:
        """Checked here too: a model that was saved on a GPU may be loaded anywhere, as long as it is not trained."""
        self._engine_options.check(self.device)
        scheduled = [name for name in ("ent_coef", "reinforce_weight") if callable(getattr(self, name))]
        return Engine(self.policy, training_update, self._engine_options, scheduled, callable(self.exploration_noise))

    @property
    def behavior_objective(self) -> BehaviorObjective:
        """What actor and critic learn from, from the current options; schedules at the current progress."""
        weight, progress = self.reinforce_weight, self._current_progress_remaining
        if isinstance(weight, str):  # "auto"
            weight = 0.0 if isinstance(self.action_space, spaces.Box) else 1.0
        return BehaviorObjective(
            imagination_horizon=self.imagination_horizon,
            imagination_stride=self.imagination_stride,
            gamma=self.gamma,
            return_lambda=self.return_lambda,
            reinforce_weight=schedule_value("reinforce_weight", weight, progress),
            ent_coef=schedule_value("ent_coef", self.ent_coef, progress),
            reward_norm_momentum=self.reward_norm_momentum,
            reward_norm_scale=self.reward_norm_scale,
            normalize_returns=self.normalize_returns,
        )

    # --------------------------------------------------------------------------------------------------------- training

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """
        Update the world model on replayed sequences, and actor and critic in its imagination; the algorithm box is
        :func:`~sb3_dreamer.dreamer_v2.update.training_update`.

        :param gradient_steps: number of updates
        :param batch_size: sequences of each, over all ranks
        """
        if not (self.replay_buffer.num_sampleable > 0 if self._team is None else self._team.can_sample):
            return
        self.policy.set_training_mode(True)
        self._update_learning_rates()
        self.clock.first_update(self.num_timesteps, self._n_updates)
        self.engine.before_updates()
        own_size = share("batch_size", batch_size)
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(own_size, env=self._vec_normalize_env, batch_length=self.batch_length)
            metrics = self.update(batch).metrics
            self._metrics.add(metrics) if self._team is None else self._team.note_update(metrics)
            self._guard(metrics, self.policy, self.replay_buffer.describe_outliers)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def update(self, batch: SequenceBatch, noise: UpdateNoise | None = None) -> UpdateResult:
        """
        One update of everything from one batch.

        :param batch: sequences from the replay buffer
        :param noise: random numbers to use instead of drawing them
        :return: losses, imagined trajectories and metrics
        """
        objective = Objective(self.model_objective, self.behavior_objective, self.max_grad_norm)
        result = self.engine.update(batch, objective, noise)
        # After updates 1, 101, ...: the first copy is a full one whatever tau, as in the original
        if self._n_updates % self.target_update_interval == 0:
            for behavior in self.policy.behaviors:
                behavior.update_target(self.tau if self._n_updates > 0 else 1.0)
        self._n_updates += 1
        return result

    def _record_training(self) -> None:
        parts, scale_of = self.policy.observations.parts, self.model_objective.scale_of
        constants = self.reward_scale + sum(
            scale_of(key) * math.prod(parts[key].encoded.shape)
            for key in self.policy.world_model.decoder_keys
            if parts[key].is_numeric or parts[key].is_image
        )
        self._check_learning.weights = LossWeights(self.reward_scale, LOG_SQRT_2PI * constants)  # options may have changed
        super()._record_training()

    def _explores(self) -> bool:
        """The exploration strategy, if there is one, collects until ``explore_until``."""
        return self.explore_until is None or self.num_timesteps < self.explore_until

    def _noise_amount(self) -> float:
        """Current amount of action noise."""
        highest = float("inf") if isinstance(self.action_space, spaces.Box) else 1.0
        return schedule_value("exploration_noise", self.exploration_noise, self._current_progress_remaining, 0.0, highest)

    def _update_learning_rates(self) -> None:
        """Move all optimizers along their schedules, and log where these and other schedules are."""
        for name, value in self._set_learning_rates(self._current_progress_remaining).items():
            self.logger.record(f"train/{name}", value)
        objective = self.behavior_objective
        scheduled = {"ent_coef": objective.ent_coef, "reinforce_weight": objective.reinforce_weight}
        for name, value in (scheduled | {"exploration_noise": self._noise_amount()}).items():
            if callable(getattr(self, name)):
                self.logger.record(f"train/{name}", value)

    def _set_learning_rates(self, progress_remaining: float) -> dict[str, float]:
        """Set the optimizers' learning rates for a progress from 1 to 0; returns them by name."""
        progress_remaining = max(progress_remaining, 0.0)  # SB3 overshoots by up to a rollout
        rates, schedules = {}, {"learning_rate": self.lr_schedule, **self._learning_rate_schedules}
        for (name, schedule), optimizers in zip(schedules.items(), self.policy.optimizers_by_rate, strict=True):
            rates[name] = schedule(progress_remaining)
            for optimizer in optimizers:
                update_learning_rate(optimizer.optimizer, rates[name])
        return rates
