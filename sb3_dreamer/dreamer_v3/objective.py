"""What an update of DreamerV3 minimizes: the options of its losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch as th

from sb3_dreamer.common.options import check_number, whole_number


@dataclass(frozen=True)
class Objective:
    """
    Options of the one loss; the names are those of the algorithm's arguments.

    :param gamma: discount factor 1 - 1 / horizon (V3's code: horizon 333)
    :param free_nats: no gradient flows from steps with a KL below this number of nats
    :param dynamics_scale: factor of the KL loss that trains the prior
    :param representation_scale: factor of the KL loss that trains the posterior
    :param observation_scale: factor of the reconstruction loss: one number, or a dict with those of some keys (others: 1)
    :param reward_scale: factor of the reward head's loss
    :param discount_scale: factor of the discount head's loss
    :param actor_scale: factor of the actor's loss
    :param critic_scale: factor of the critic's loss on imagined states
    :param replay_critic_scale: factor of the critic's loss on replayed states; 0 does not compute it
    :param imagination_horizon: H
    :param imagination_last: imagine from this many last steps of each replayed sequence; None is all of them
    :param return_lambda: λ of the returns
    :param ent_coef: weight of the actor's entropy; in updates that are recorded as CUDA graphs, a scalar tensor
    :param tau: share of the critic that its slow copy takes over in each update
    :param critic_target_scale: weight of the slow critic's predictions as targets, beside the returns
    :param bootstrap_target: let the slow critic value the imagined states (V3's code: the critic itself)
    :param discount_head_learns_gamma: the label of the discount head is gamma times "continues", as in V3's code; otherwise it
        is "continues" alone, and gamma is multiplied to its predictions, as in the paper
    :param reward_gradients: whether the reward head trains the representation
    :param replay_critic_gradients: whether the critic's loss on replayed states trains the representation
    :param behavior_gradients: whether actor and critic train the representation of the states that imagination starts from
    """

    gamma: float = 1.0 - 1.0 / 333.0
    free_nats: float = 1.0
    dynamics_scale: float = 1.0
    representation_scale: float = 0.1
    observation_scale: float | Mapping[str, float] = 1.0
    reward_scale: float = 1.0
    discount_scale: float = 1.0
    actor_scale: float = 1.0
    critic_scale: float = 1.0
    replay_critic_scale: float = 0.3
    imagination_horizon: int = 15
    imagination_last: int | None = None
    return_lambda: float = 0.95
    ent_coef: float = 3e-4
    tau: float = 0.02
    critic_target_scale: float = 1.0
    bootstrap_target: bool = False
    discount_head_learns_gamma: bool = True
    reward_gradients: bool = True
    replay_critic_gradients: bool = True
    behavior_gradients: bool = False

    def __post_init__(self) -> None:
        for name in ("free_nats", "critic_target_scale", *SCALES):
            check_number(name, getattr(self, name), 0.0)
        if not isinstance(self.ent_coef, th.Tensor):
            check_number("ent_coef", self.ent_coef, 0.0, math.inf)
        scales = self.observation_scale
        for key, scale in scales.items() if isinstance(scales, Mapping) else {"": scales}.items():
            check_number(f"observation_scale['{key}']" if key else "observation_scale", scale, 0.0)
        # Gamma divides the weights of imagined steps, so it must not be 0
        check_number("gamma", self.gamma, 1e-6, 1.0)
        for name in ("return_lambda", "tau"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        whole_number("imagination_horizon", self.imagination_horizon, 1)
        if self.imagination_last is not None:
            # The critic's loss on replayed states pairs each step with the next one
            whole_number("imagination_last", self.imagination_last, 2 if self.replay_critic_scale > 0.0 else 1)
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, but is {getattr(self, name)!r}.")

    def scale_of(self, key: str) -> float:
        """Return the factor of an observation key's reconstruction loss."""
        return self.observation_scale.get(key, 1.0) if isinstance(self.observation_scale, Mapping) else self.observation_scale

    @property
    def imagined_gamma(self) -> float:
        """What multiplies the discount head's predictions: 1 if it has learned gamma itself."""
        return 1.0 if self.discount_head_learns_gamma else self.gamma

    def value(self, name: str) -> float:
        """The present value of an option that changes in the course of training."""
        return getattr(self, name)

    def with_values(self, values: dict[str, Any]) -> "Objective":
        """The same objective with other values of such options, numbers or tensors."""
        return replace(self, **values)


SCALES = (
    "dynamics_scale",
    "representation_scale",
    "reward_scale",
    "discount_scale",
    "actor_scale",
    "critic_scale",
    "replay_critic_scale",
)
SWITCHES = (
    "bootstrap_target",
    "discount_head_learns_gamma",
    "reward_gradients",
    "replay_critic_gradients",
    "behavior_gradients",
)
