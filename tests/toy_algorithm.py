"""
A second algorithm, built from the rooms without ``dreamer_v2``: one optimizer, one backward pass, a cloning actor.

It is not meant to learn well; it shows what an algorithm has to define.
"""

from typing import Any, ClassVar, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch import nn

from sb3_dreamer.algorithm.engine import Engine, EngineOptions
from sb3_dreamer.algorithm.policy import WorldModelPolicy
from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.behavior.actor_critic import ActorCritic
from sb3_dreamer.behavior.actors import ContinuousOptions, make_actor
from sb3_dreamer.common.distributions import UnitNormal
from sb3_dreamer.common.heads import ScalarHead
from sb3_dreamer.common.layers import LayerOptions
from sb3_dreamer.common.observations import OBSERVATION_KEY
from sb3_dreamer.common.optimization import DreamerAdam, ParameterOptimizer
from sb3_dreamer.common.options import COUNT, OF_A_RUN, SCHEDULE
from sb3_dreamer.common.preprocessing import action_size
from sb3_dreamer.common.type_aliases import SequenceBatch
from sb3_dreamer.world_model.decoders import DreamerDecoder
from sb3_dreamer.world_model.encoders import DreamerEncoder
from sb3_dreamer.world_model.latents import CategoricalLatent
from sb3_dreamer.world_model.rssm import RSSM
from sb3_dreamer.world_model.world_model import WorldModel


class Objective(NamedTuple):
    """What :func:`toy_update` minimizes."""

    kl_scale: float

    def value(self, name: str) -> float:
        return getattr(self, name)

    def with_values(self, values: dict[str, Any]) -> "Objective":
        return self._replace(**values)


class Result(NamedTuple):
    metrics: dict[str, th.Tensor]


def toy_update(policy: "ToyPolicy", batch: SequenceBatch, objective: Objective, noise: Any = None) -> Result:
    """Reconstruct, predict rewards, and clone the actions that were taken."""
    world_model, rssm = policy.world_model, policy.world_model.rssm
    encoded = world_model.encode(batch.observations)
    embeddings = world_model.embed({key: x.flatten(0, 1) for key, x in encoded.items()}).unflatten(0, batch.rewards.shape)
    states, posterior, prior = rssm.observe(embeddings, batch.actions, batch.episode_starts)
    features = states.features
    predictions = world_model.decode(features)
    loss = objective.kl_scale * rssm.latent.kl(posterior, prior).mean()
    loss = loss - sum(predictions[key].log_prob(encoded[key]).mean() for key in predictions)
    loss = loss - world_model.reward_head(features).log_prob(batch.rewards).mean()
    loss = loss - policy.behavior.actor(features[:-1].detach()).log_prob(batch.actions[1:]).mean()
    norm = policy.everything_optimizer.step(loss, 100.0)
    return Result({"toy_loss": loss.detach(), "grad_norm": norm})


class ToyPolicy(WorldModelPolicy):
    """Small networks, and one optimizer of everything."""

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, lr_schedule: Schedule, width: int = 8, **sb3: Any
    ):
        super().__init__(
            observation_space,
            action_space,
            image_size=None,
            random_exploration=False,
            evaluation_noise=0.0,
            evaluation_latent="mode",
            normalize_images=True,
            **sb3,
        )
        self.width, self.exploration, self.loss_names = width, None, {OBSERVATION_KEY: "vector_loss"}
        layers = LayerOptions([width], nn.ELU, False)
        encoder = DreamerEncoder(self.observations.encoded[OBSERVATION_KEY], cnn_depth=1, **layers._asdict())
        rssm = RSSM(CategoricalLatent(2, 4), action_size(action_space), encoder.features_dim, width, layers)
        likelihoods = self.observations.likelihoods
        decoder = DreamerDecoder(self.observations.encoded, rssm.features_size, 1, *layers, likelihoods)
        reward = ScalarHead(rssm.features_size, layers, UnitNormal)
        self.world_model = WorldModel(
            encoder, rssm, decoder, reward, None, self.observations, [OBSERVATION_KEY], [OBSERVATION_KEY], None
        )
        options = ContinuousOptions("truncated_normal", 0.1, 0.0, False)
        self.behavior = ActorCritic(make_actor(rssm.features_size, action_space, layers, options), rssm.features_size, layers)
        self.everything_optimizer = ParameterOptimizer(self.parameters(), DreamerAdam, lr_schedule(1))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "width": self.width, "lr_schedule": self._dummy_schedule}


class Toy(SequenceOffPolicyAlgorithm):
    """The algorithm: its options, and what an update is."""

    base_policy_class = ToyPolicy
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ToyPolicy}
    options = {**dict.fromkeys(("batch_size", "batch_length"), COUNT), "learning_rate": SCHEDULE, "seed": OF_A_RUN}
    policy: ToyPolicy  # type: ignore[assignment]

    def __init__(
        self,
        policy: str | type[ToyPolicy],
        env: GymEnv | str | None,
        learning_rate: float | str | Schedule = 1e-3,
        batch_length: int = 4,
        kl_scale: float = 0.1,
        seed: int | None = None,
        _init_setup_model: bool = True,
        **options: Any,
    ):
        common: dict[str, Any] = dict(buffer_size=500, learning_starts=10, batch_size=2, train_freq=2, gradient_steps=1)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate,  # type: ignore[arg-type]
            seed=seed,
            support_multi_env=True,
            sde_support=False,
            supported_action_spaces=(spaces.Discrete, spaces.Box),
            **{**common, **options},
        )
        self.batch_length, self.kl_scale = batch_length, kl_scale
        self._loading = not _init_setup_model
        if _init_setup_model:
            self._setup_model()

    def _make_engine(self) -> Engine:
        return Engine(self.policy, toy_update, EngineOptions())

    def train(self, gradient_steps: int, batch_size: int) -> None:
        self.policy.set_training_mode(True)
        self._update_learning_rate([optimizer.optimizer for optimizer in self.policy.optimizers.values()])
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            self._metrics.add(self.engine.update(batch, Objective(self.kl_scale)).metrics)
            self._n_updates += 1
