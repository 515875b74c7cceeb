"""Early warnings: logged numbers that show that nothing is learned, with what to do about it."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_dreamer.common.distributions import LOG_SQRT_2PI
from sb3_dreamer.common.preprocessing import action_blocks, action_dim

#: Updates before the first warning, since every untrained model looks broken; fewer in short runs, from a share of the run on
PATIENCE, SHORT_PATIENCE, SHORT = 500, 150, 0.05
#: Share of a run in which a policy without entropy is a fault; later it may have converged
EARLY = 0.3
#: Nats of KL that hold no information, and share of the rewards' variance that is no prediction
NO_KL, NO_REWARD = 0.01, 0.02
#: Entropy that is gone: a share of the largest for choices; nats per dimension of a Box (uniform actions have 0.69)
NO_CHOICE, NO_SPREAD = 0.02, -2.0
NO_GRADIENT = 1e-8
#: At the edge of a Box: nats per dimension (the smallest scale has -0.88 in the middle, -1.58 there), and the actor's gradient
AT_THE_EDGE, EDGE_GRADIENT = -1.4, 0.01
#: Both limits of the tanh-normal, whose entropy falls with the slope of tanh, too: -3 in the middle of a good run of Pendulum,
#: -9.5 at the most extreme location with the smallest scale
SQUASHED_SPREAD = -6.0
#: What to do in DreamerV2 about signs that other algorithms can show, too
REMEDIES = {
    "kl": "Lower kl_scale, or raise observation_scale (or set normalize_observations for small numbers).",
    "entropy": "Raise ent_coef, or lower actor_learning_rate.",
}
PAGE = "See https://github.com/sb3-dreamer/sb3-dreamer/blob/main/docs/troubleshooting.md."


class NonFiniteError(FloatingPointError, ValueError):
    """
    Updates were skipped again and again because something in them is not finite. It is a ``ValueError`` too, so that rl_zoo3
    prunes a trial instead of ending the study.
    """


class UpdateGuard:
    """
    Counts successive updates whose gradients were not finite. Such updates are skipped: the weights stay as they were.

    :param limit: number of such updates that ends the training; None for never
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._in_a_row: th.Tensor | None = None
        self._since_look = 0

    def __call__(self, metrics: Mapping[str, th.Tensor], policy: nn.Module, suspects: Callable[[], str] = lambda: "") -> None:
        """
        Count an update.

        :param metrics: of an update, by logged name
        :param policy: whose gradients are searched for the error
        :param suspects: names what may be wrong with the experience, for the error's text
        :raises NonFiniteError: naming the first quantity that is not finite
        """
        if self.limit is None:
            return
        skipped = metrics["skipped_updates"].detach()
        self._in_a_row = (skipped if self._in_a_row is None else self._in_a_row + skipped) * (skipped > 0)
        self._since_look += 1
        # Looking waits for a GPU
        if (skipped.device.type == "cpu" or self._since_look >= self.limit) and self._in_a_row >= self.limit:
            raise NonFiniteError(
                f"{self.limit} updates in a row were skipped because their gradients were not finite; the first such "
                f"quantity is {first_non_finite(metrics, policy)}. The weights are those before them and can be saved. Lower "
                f"learning_rate, check the scale of observations and rewards, or use precision='float32'.{suspects()}"
            )
        if self._since_look >= self.limit:
            self._since_look = 0


def first_non_finite(metrics: Mapping[str, th.Tensor], policy: nn.Module) -> str:
    """Name and value of the first quantity that is not finite, in the order in which they are computed."""
    for name in [name for name in metrics if name != "model_loss"]:
        if not name.endswith("grad_norm") and not math.isfinite(float(metrics[name])):
            return f"train/{name} = {float(metrics[name])}"
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None and not th.isfinite(parameter.grad).all():
            return f"the gradient of {name}"
    return "no longer there"


class LossWeights(NamedTuple):
    """What is known of a world model's loss beside the logged terms."""

    reward_scale: float
    floor: float  # what remains of the loss when all predictions are perfect: the constants of normal densities

    def reward_share(self, means: Mapping[str, float]) -> float | None:
        """
        The rewards' share of the loss, both without such constants.

        :param means: of the metrics, by logged name
        :return: share, None if nothing is left to learn
        """
        total = means.get("model_loss", 0.0) - self.floor
        return self.reward_scale * (means["reward_loss"] - LOG_SQRT_2PI) / total if total > 0.0 else None


class LearningCheck:
    """
    Warns once of each sign that an agent is not learning.

    :param action_space: of the agent
    :param squashed: whether a Box has a tanh-normal actor
    :param remedies: what to do about each of the signs of ``REMEDIES``, in terms of the algorithm's options
    """

    #: Where the share of rewards in the loss is to be told
    weights: LossWeights | None = None

    def __init__(self, action_space: spaces.Space, squashed: bool = False, remedies: Mapping[str, str] = REMEDIES) -> None:
        self._remedies = remedies
        blocks = action_blocks(action_space)
        lowest, edge = (SQUASHED_SPREAD, SQUASHED_SPREAD) if squashed else (NO_SPREAD, AT_THE_EDGE)
        self._lowest_entropy = lowest * action_dim(action_space) if blocks is None else NO_CHOICE * float(np.log(blocks).sum())
        self._entropy_at_the_edge = edge * action_dim(action_space) if blocks is None else -math.inf
        self._edge_advice = "" if squashed else "Use policy_kwargs=dict(actor_distribution='tanh_normal'). "
        self._can_choose = blocks is None or max(blocks) > 1
        self._warned: set[str] = set()

    def __call__(self, means: Mapping[str, float], n_updates: int, progress: float) -> None:
        """
        Look at the metrics, and warn.

        :param means: of the metrics since the last time, by logged name
        :param n_updates: so far
        :param progress: share of the run that is over, in [0, 1]
        """
        if n_updates < (SHORT_PATIENCE if progress >= SHORT else PATIENCE):
            return
        for name, text in self._findings(means, progress).items():
            if name not in self._warned:
                self._warned.add(name)
                warnings.warn(f"After {n_updates} updates {text} {PAGE}", stacklevel=2)

    def _findings(self, means: Mapping[str, float], progress: float) -> dict[str, str]:
        found: dict[str, str] = {}
        if means.get("kl", math.inf) < NO_KL:
            found["kl"] = (
                f"the KL of posterior and prior is {means['kl']:.2g} nats: the latent state carries no information about the "
                f"observation. {self._remedies['kl']}"
            )
        variance = means.get("reward_variance", 0.0)
        error = 2.0 * (means.get("reward_loss", 0.0) - LOG_SQRT_2PI)
        if variance > 1e-8 and error > (1.0 - NO_REWARD) * variance:
            share = None if self.weights is None else self.weights.reward_share(means)
            told = "" if share is None else f" Rewards are {100.0 * share:.2g} % of the world model's loss."
            found["reward"] = (
                f"the reward head predicts a constant (error {error:.2g}, variance of the rewards {variance:.2g}): the "
                f"actor has nothing to maximize.{told} Use reward_transform='normalize' or raise reward_scale if rewards "
                "are small or rare, lower kl_scale if the latent state is uninformative."
            )
        if self._can_choose and progress < EARLY and means.get("actor_entropy", math.inf) < self._lowest_entropy:
            found["entropy"] = (
                f"the actor's entropy is {means['actor_entropy']:.2g} nats with {1.0 - progress:.0%} of the run to go: it has "
                f"stopped exploring. {self._remedies['entropy']}"
            )
        gradient = means.get("actor_grad_norm", math.inf)
        if means.get("actor_entropy", math.inf) < self._entropy_at_the_edge and NO_GRADIENT <= gradient < EDGE_GRADIENT:
            found["edge"] = (
                f"the actor's actions are at the edge of the Box (entropy {means['actor_entropy']:.2g}), where the gradient "
                f"is almost zero ({gradient:.2g}). {self._edge_advice}Raise ent_coef at first ('lin_3e-1_3e-3'), or lower "
                "actor_learning_rate."
            )
        if gradient < NO_GRADIENT:
            found["gradient"] = (
                f"the actor's gradient is {gradient:.2g}: all imagined returns are equal. Check "
                "train/imagined_reward_std and train/imagined_discount_mean."
            )
        return found
