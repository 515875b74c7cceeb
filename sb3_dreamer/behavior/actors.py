"""Actors: small networks from latent features to a distribution over action vectors, one for each kind of action space."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.action_distributions import ClippedNormal, TanhNormal, TruncatedNormal
from sb3_dreamer.common.distributions import Distribution, OneHotBlocks, OneHotCategorical
from sb3_dreamer.common.heads import TRUNK_ACCEPTS_ONE_HOT
from sb3_dreamer.common.layers import MLP, LayerOptions
from sb3_dreamer.common.one_hot import Features
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.precision import full
from sb3_dreamer.common.preprocessing import action_blocks, action_size

#: Distributions for continuous actions: V2's code, V1, and the plain normal
ACTOR_DISTRIBUTIONS = ("truncated_normal", "tanh_normal", "normal")


class ContinuousOptions(NamedTuple):
    """Options of continuous actors; ``policy_kwargs`` has them with the prefix ``actor_``."""

    distribution: str  # one of ACTOR_DISTRIBUTIONS
    min_std: float  # smallest scale (V2's code: 0.1)
    init_std: float  # added to the network's output s, before its activation (V2's code: 0)
    exact_gradient: bool  # of the truncated normal, see TruncatedNormal

    def check(self) -> None:
        """
        Refuse impossible options.

        :raises ValueError: naming the option, what was given and what is possible
        """
        if self.distribution not in ACTOR_DISTRIBUTIONS:
            raise ValueError(f"Unknown actor_distribution {self.distribution!r}; known are {list(ACTOR_DISTRIBUTIONS)}.")
        check_number("actor_min_std", self.min_std, 1e-6)
        check_number("actor_init_std", self.init_std, -50.0, 50.0)
        if self.exact_gradient and self.distribution != "truncated_normal":
            raise ValueError(
                "actor_exact_gradient=True was given, but it is for actor_distribution='truncated_normal', not "
                f"{self.distribution!r}: leave it out, the gradient of every other distribution is exact."
            )


class CategoricalActor(nn.Module):
    """
    Features to a distribution over one-hot actions.

    :param features_size: F
    :param actions: width of the action vectors A
    :param layers: hidden layers
    :param distribution: from logits (..., A): one categorical, or several whose one-hot vectors are joined
    """

    accepts_one_hot = TRUNK_ACCEPTS_ONE_HOT

    def __init__(
        self,
        features_size: int,
        actions: int,
        layers: LayerOptions,
        distribution: Callable[[th.Tensor], OneHotCategorical | OneHotBlocks],
    ):
        super().__init__()
        self.distribution = distribution
        self.trunk = MLP(features_size, layers)
        self.output = nn.Linear(self.trunk.output_size, actions)

    def forward(self, features: Features) -> OneHotCategorical | OneHotBlocks:
        """Map features (..., F) to a distribution over (..., A)."""
        return self.distribution(full(self.output(self.trunk(features))))


class ContinuousActor(nn.Module):
    """
    Features to a distribution over [-1, 1]^A. From the network's outputs m and s:

    - ``"truncated_normal"`` (V2's code): location ``tanh(m)``, scale ``2 sigmoid((s + init_std) / 2) + min_std``
    - ``"tanh_normal"`` (V1): mean ``5 tanh(m / 5)``, standard deviation ``softplus(s + init_std) + min_std``, before the tanh
    - ``"normal"``: location and scale as for the truncated normal; samples are clipped to the bounds

    :param features_size: F
    :param actions: number of action dimensions A
    :param layers: hidden layers
    :param options: of the distribution
    """

    accepts_one_hot = TRUNK_ACCEPTS_ONE_HOT

    def __init__(self, features_size: int, actions: int, layers: LayerOptions, options: ContinuousOptions):
        super().__init__()
        self.options = options
        self.trunk = MLP(features_size, layers)
        self.output = nn.Linear(self.trunk.output_size, actions)
        self.output_std = nn.Linear(self.trunk.output_size, actions)

    def forward(self, features: Features) -> Distribution:
        """Map features (..., F) to a distribution over (..., A)."""
        hidden = self.trunk(features)
        return self.distribution(full(self.output(hidden)), full(self.output_std(hidden)))

    def distribution(self, loc: th.Tensor, std: th.Tensor) -> TruncatedNormal | TanhNormal | ClippedNormal:
        """Return the distribution over (..., A) from the network's raw outputs m (``loc``) and s (``std``), (..., A)."""
        raw = std + self.options.init_std
        if self.options.distribution == "tanh_normal":
            return TanhNormal(5.0 * th.tanh(loc / 5.0), F.softplus(raw) + self.options.min_std)
        loc, scale = th.tanh(loc), 2.0 * th.sigmoid(0.5 * raw) + self.options.min_std
        if self.options.distribution == "normal":
            return ClippedNormal(loc, scale)
        return TruncatedNormal(loc, scale, self.options.exact_gradient)


def is_squashed(actor: nn.Module) -> bool:
    """Whether an actor's distribution is a tanh-normal, whose entropy falls with the slope of tanh."""
    return isinstance(actor, ContinuousActor) and actor.options.distribution == "tanh_normal"


def make_actor(
    features_size: int, action_space: spaces.Space, layers: LayerOptions, options: ContinuousOptions
) -> CategoricalActor | ContinuousActor:
    """
    The actor for an action space.

    :param features_size: F
    :param action_space: Discrete, MultiDiscrete or MultiBinary (categoricals), or Box; a MultiBinary bit is a choice of two
    :param layers: hidden layers
    :param options: for Box, but checked for every space
    :return: features to a distribution over action vectors
    :raises ValueError: for impossible options, whatever the space
    """
    options.check()
    if action_blocks(action_space) is None:
        return ContinuousActor(features_size, action_size(action_space), layers, options)
    return make_categorical_actor(features_size, action_space, layers)


def make_categorical_actor(features_size: int, action_space: spaces.Space, layers: LayerOptions) -> CategoricalActor:
    """
    The actor for a space of choices.

    :param features_size: F
    :param action_space: Discrete, MultiDiscrete or MultiBinary
    :param layers: hidden layers
    :return: features to a distribution over one-hot vectors, joined if there are several choices
    """
    blocks, size = action_blocks(action_space), action_size(action_space)
    assert blocks is not None
    is_one = isinstance(action_space, spaces.Discrete)
    return CategoricalActor(features_size, size, layers, OneHotCategorical if is_one else partial(OneHotBlocks, sizes=blocks))
