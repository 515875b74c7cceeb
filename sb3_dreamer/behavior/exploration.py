"""Exploration learned in imagination: intrinsic rewards of latent states, maximized by a second actor-critic."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from inspect import Parameter, signature
from itertools import pairwise
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.behavior.actor_critic import ActorCritic, RewardNormalizer
from sb3_dreamer.common.distributions import UnitNormal
from sb3_dreamer.common.heads import ScalarHead
from sb3_dreamer.common.layers import LAYER_NORM_EPSILON, LayerOptions
from sb3_dreamer.common.options import check_number, whole_number
from sb3_dreamer.common.type_aliases import Experience, ImaginedTrajectory
from sb3_dreamer.ranks.distributed import average

#: The strategy without networks: the acting policy draws uniformly random actions
RANDOM = "random"
#: What an ensemble can predict of the next step
TARGETS = ("stochastic", "deterministic", "features", "embedding")
#: Disagreement of an ensemble that agrees; it keeps logarithm and gradient finite
SMALLEST_DISAGREEMENT = 1e-8


class LatentSizes(NamedTuple):
    """Widths of what a world model knows about one step."""

    deterministic: int  # D
    stochastic: int  # Z
    embedding: int  # E

    @property
    def features(self) -> int:
        """F, the width of ``LatentState.features``."""
        return self.deterministic + self.stochastic


class Exploration(nn.Module, ABC):
    """
    A strategy that rewards imagined states for what could be learned there; a separate actor-critic maximizes these rewards.

    A subclass trains its heads on replayed experience (:meth:`loss`) and turns their outputs into rewards on arrival
    (:meth:`start_rewards`, :meth:`intrinsic_rewards`). The world model is not trained by any of this.

    :param behavior: actor and critic that maximize the rewards
    :param intrinsic_scale: factor of the (normalized) intrinsic rewards (V2's code: 1)
    :param extrinsic_scale: factor of the (normalized) predicted rewards of the task (V2's code: 0)
    :param reward_norm_momentum: divide each of the two rewards by a running mean of its size, see
        :class:`~sb3_dreamer.behavior.actor_critic.RewardNormalizer`; None does not (V2's code: off)
    """

    def __init__(
        self,
        behavior: ActorCritic,
        intrinsic_scale: float = 1.0,
        extrinsic_scale: float = 0.0,
        reward_norm_momentum: float | None = None,
    ):
        super().__init__()
        check_number("intrinsic_scale", intrinsic_scale, 0.0)
        check_number("extrinsic_scale", extrinsic_scale, 0.0)
        if reward_norm_momentum is not None:
            check_number("reward_norm_momentum", reward_norm_momentum, 0.0, 1.0)
        self.behavior = behavior
        self.intrinsic_scale, self.extrinsic_scale = intrinsic_scale, extrinsic_scale
        self.reward_norm_momentum = reward_norm_momentum
        self.intrinsic_normalizer = RewardNormalizer()
        self.extrinsic_normalizer = RewardNormalizer()

    @abstractmethod
    def loss(self, experience: Experience) -> th.Tensor:
        """
        Loss of the heads.

        :param experience: replayed steps (T, B, ...), constants
        :return: scalar, nats
        """

    @abstractmethod
    def start_rewards(self, experience: Experience) -> th.Tensor:
        """
        Intrinsic rewards on arrival at the replayed states, from which imagination starts.

        :param experience: replayed steps (T, B, ...), constants
        :return: (T, B), not scaled, not normalized
        """

    @abstractmethod
    def intrinsic_rewards(self, trajectory: ImaginedTrajectory, start_rewards: th.Tensor) -> th.Tensor:
        """
        Intrinsic rewards on arrival at imagined states, differentiable in states and actions.

        :param trajectory: (H + 1, N, ...)
        :param start_rewards: of row 0, (N,)
        :return: (H + 1, N), not scaled, not normalized
        """

    def head_parameters(self) -> list[nn.Parameter]:
        """Return what :meth:`loss` trains: all parameters except those of actor and critics."""
        others = {id(parameter) for parameter in self.behavior.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in others]

    def mix_rewards(self, intrinsic: th.Tensor, extrinsic: th.Tensor) -> th.Tensor:
        """
        Rewards that the actor-critic maximizes; updates the normalizers' states.

        :param intrinsic: (H + 1, N)
        :param extrinsic: rewards of the task as the world model predicts them, (H + 1, N)
        :return: (H + 1, N)
        """
        rewards = self.intrinsic_scale * self._normalize(self.intrinsic_normalizer, intrinsic)
        if self.extrinsic_scale == 0.0:
            return rewards
        return rewards + self.extrinsic_scale * self._normalize(self.extrinsic_normalizer, extrinsic)

    def _normalize(self, normalizer: RewardNormalizer, rewards: th.Tensor) -> th.Tensor:
        return rewards if self.reward_norm_momentum is None else normalizer(rewards, self.reward_norm_momentum)


class EnsembleMLP(nn.Module):
    """
    Independent networks of one architecture, evaluated together: one batched matrix product per layer.

    Every member has its own Glorot-uniform weights; biases begin at zero (Keras' defaults, as everywhere).

    :param members: M
    :param input_size: width of the input
    :param output_size: width of the output
    :param layers: hidden layers
    """

    def __init__(self, members: int, input_size: int, output_size: int, layers: LayerOptions):
        super().__init__()
        net_arch = [whole_number("A width in net_arch", width, 1) for width in layers.net_arch]
        self.activation, self.layer_norm = layers.activation_fn(), layers.layer_norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.norm_scales, self.norm_shifts = nn.ParameterList(), nn.ParameterList()
        for size_in, size_out in pairwise([input_size, *net_arch, output_size]):
            bound = math.sqrt(6.0 / (size_in + size_out))
            self.weights.append(nn.Parameter(th.empty(members, size_in, size_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(th.zeros(members, 1, size_out)))
        for width in net_arch if layers.layer_norm else ():
            self.norm_scales.append(nn.Parameter(th.ones(members, 1, width)))
            self.norm_shifts.append(nn.Parameter(th.zeros(members, 1, width)))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """Map the same inputs (..., input_size) with every member, (M, ..., output_size)."""
        x = inputs.reshape(-1, inputs.shape[-1]).expand(len(self.weights[0]), -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = th.baddbmm(bias, x, weight)
            if layer == len(self.weights) - 1:
                return x.unflatten(1, inputs.shape[:-1])
            if self.layer_norm:
                x = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPSILON)
                x = th.addcmul(self.norm_shifts[layer], x, self.norm_scales[layer])
            x = self.activation(x)
        raise AssertionError("an ensemble has an output layer")


class Plan2Explore(Exploration):
    """
    Seeks transitions whose outcome an ensemble of one-step predictors disagrees about (arXiv 2005.05960, section 3.2)::

        states   s_0 ------ s_1 ------ s_2        each member predicts a target of s_k from (s_{k-1}, a_k);
        actions       a_1        a_2              the spread of these predictions is the
        rewards  r_0        r_1        r_2        reward on arrival at s_k

    As in the paper, the predictors see the action that is taken in a state, so the disagreement belongs to that action and
    is its reward on arrival. The released code pairs a state with the action that *led to* it, which the state contains
    already: there the ensemble does not see what is done in the state, and the reward is for being in a state with
    uncertain successors. r_0 comes from the replayed predecessor of the start, and is 0 if there is none.

    :param behavior: see :class:`Exploration`
    :param sizes: of the latent state
    :param action_size: A
    :param net_arch: widths of each predictor's hidden layers (V2's code: 4 x 400)
    :param activation_fn: activation class (V2's code: ELU)
    :param layer_norm: normalize the predictors' hidden layers before their activations (V2's code: only for Crafter)
    :param ensemble_size: number of predictors, at least 2 (V2's code: 10)
    :param target: what is predicted of the next step: ``"stochastic"`` (V2's code), ``"deterministic"``, ``"features"``
        (both) or ``"embedding"`` (paper)
    :param log_disagreement: reward the logarithm of the disagreement (V2's code: False)
    :param intrinsic_scale: see :class:`Exploration`
    :param extrinsic_scale: see :class:`Exploration`
    :param reward_norm_momentum: see :class:`Exploration`
    """

    def __init__(
        self,
        behavior: ActorCritic,
        sizes: LatentSizes,
        action_size: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        layer_norm: bool,
        ensemble_size: int = 10,
        target: str = "stochastic",
        log_disagreement: bool = False,
        intrinsic_scale: float = 1.0,
        extrinsic_scale: float = 0.0,
        reward_norm_momentum: float | None = None,
    ):
        super().__init__(behavior, intrinsic_scale, extrinsic_scale, reward_norm_momentum)
        ensemble_size = whole_number("ensemble_size", ensemble_size, 2)
        if not isinstance(log_disagreement, bool):
            raise ValueError(f"log_disagreement must be True or False, but is {log_disagreement!r}.")
        if target not in TARGETS:
            raise ValueError(f"target must be one of {', '.join(TARGETS)}, but is {target!r}.")
        self.target, self.log_disagreement = target, log_disagreement
        layers = LayerOptions(net_arch, activation_fn, layer_norm)
        self.ensemble = EnsembleMLP(ensemble_size, sizes.features + action_size, getattr(sizes, target), layers)

    def loss(self, experience: Experience) -> th.Tensor:
        # Squared errors (as unit-variance likelihoods) of all predictors, over the steps that continue an episode
        inputs = th.cat([experience.states.features[:-1], experience.actions[1:]], dim=-1)
        predictions = UnitNormal(self.ensemble(inputs), event_dims=1)  # over (M, T - 1, B, target)
        starts = experience.episode_starts[1:]
        losses = -predictions.log_prob(self._targets(experience)[1:]).sum(0).masked_fill(starts, 0.0)
        # The ranks' mean of this is the sum of all losses over the number of all steps
        return losses.sum() / average((~starts).sum()).clamp(min=1)

    def _targets(self, experience: Experience) -> th.Tensor:
        """What is predicted, (T, B, target)."""
        return experience.embeddings if self.target == "embedding" else getattr(experience.states, self.target)

    def disagreement(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Standard deviation of the predictions over the ensemble, averaged over the target's dimensions; or its logarithm.

        :param features: (..., F)
        :param actions: taken there, (..., A)
        :return: (...)
        """
        predictions = self.ensemble(th.cat([features, actions], dim=-1))
        # torch.std over the first dimension is 30 times slower on a CPU; clamped for the root's gradient
        variance = (predictions - predictions.mean(0)).square().mean(0).clamp(min=SMALLEST_DISAGREEMENT**2)
        spread = variance.sqrt().mean(-1)
        return spread.log() if self.log_disagreement else spread

    @th.no_grad()
    def start_rewards(self, experience: Experience) -> th.Tensor:
        rewards = th.zeros_like(experience.kl)
        if len(rewards) > 1:
            rewards[1:] = self.disagreement(experience.states.features[:-1], experience.actions[1:])
        return rewards.masked_fill(experience.episode_starts, 0.0)

    def intrinsic_rewards(self, trajectory: ImaginedTrajectory, start_rewards: th.Tensor) -> th.Tensor:
        steps = zip(trajectory.features[:-1], trajectory.actions[1:], strict=True)
        # Step by step, since the predictions of all steps would take gigabytes at the paper's sizes
        return th.stack([start_rewards, *(self.disagreement(features, actions) for features, actions in steps)])


class ModelLossBonus(Exploration):
    """
    Seeks states in which the world model was surprised: a head predicts the KL between posterior and prior (the released
    code's "model loss" exploration with its default, ``kl``).

    :param behavior: see :class:`Exploration`
    :param sizes: of the latent state
    :param action_size: A; not used
    :param net_arch: widths of the head's hidden layers (V2's code: 4 x 400)
    :param activation_fn: activation class (V2's code: ELU)
    :param layer_norm: normalize the head's hidden layers before their activations (V2's code: only for Crafter)
    :param intrinsic_scale: see :class:`Exploration`
    :param extrinsic_scale: see :class:`Exploration`
    :param reward_norm_momentum: see :class:`Exploration`
    """

    def __init__(
        self,
        behavior: ActorCritic,
        sizes: LatentSizes,
        action_size: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        layer_norm: bool,
        intrinsic_scale: float = 1.0,
        extrinsic_scale: float = 0.0,
        reward_norm_momentum: float | None = None,
    ):
        super().__init__(behavior, intrinsic_scale, extrinsic_scale, reward_norm_momentum)
        self.head = ScalarHead(sizes.features, LayerOptions(net_arch, activation_fn, layer_norm), UnitNormal)

    def loss(self, experience: Experience) -> th.Tensor:
        return -self.head(experience.states.features).log_prob(experience.kl).mean()

    @th.no_grad()
    def start_rewards(self, experience: Experience) -> th.Tensor:
        return self.head(experience.states.features).mode

    def intrinsic_rewards(self, trajectory: ImaginedTrajectory, start_rewards: th.Tensor) -> th.Tensor:
        return th.cat([start_rewards[None], self.head(trajectory.features[1:]).mode])


EXPLORATIONS: dict[str, type[Exploration]] = {"plan2explore": Plan2Explore, "model_loss": ModelLossBonus}


def make_exploration(
    strategy: str | type[Exploration],
    behavior: ActorCritic,
    sizes: LatentSizes,
    action_size: int,
    layers: LayerOptions,
    /,
    **kwargs: Any,
) -> Exploration:
    """
    A strategy by its name or class.

    :param strategy: key of ``EXPLORATIONS``, or a subclass of :class:`Exploration` that takes the following three arguments
    :param behavior: the strategy's actor and critic
    :param sizes: of the latent state
    :param action_size: A
    :param layers: default of ``net_arch``, ``activation_fn`` and ``layer_norm``, for strategies that take these arguments
    :param kwargs: options of the strategy
    :return: the strategy
    :raises ValueError: for an unknown strategy or option, naming the known ones
    """
    cls = EXPLORATIONS.get(strategy) if isinstance(strategy, str) else strategy
    if not (isinstance(cls, type) and issubclass(cls, Exploration)):
        raise ValueError(
            f"Unknown exploration {strategy!r}: give one of {', '.join(map(repr, [RANDOM, *EXPLORATIONS]))}, a subclass of "
            "Exploration, or None."
        )
    parameters = signature(cls).parameters
    known = [name for name in parameters if name not in ("behavior", "sizes", "action_size")]
    takes_any = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = sorted(set(kwargs) - set(known))
    if unknown and not takes_any:
        raise ValueError(f"Unknown options {unknown} for exploration {strategy!r}; known are {known}.")
    taken = {name: value for name, value in layers._asdict().items() if name in known}
    return cls(behavior, sizes, action_size, **{**taken, **kwargs})  # type: ignore[call-arg, arg-type]
