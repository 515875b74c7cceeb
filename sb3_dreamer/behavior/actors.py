"""Actors: small networks from latent features to a distribution over action vectors, one for each kind of action space."""

from collections.abc import Sequence

import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.action_distributions import ClippedNormal, TanhNormal, TruncatedNormal
from sb3_dreamer.common.distributions import OneHotBlocks, OneHotCategorical
from sb3_dreamer.common.heads import TRUNK_ACCEPTS_ONE_HOT
from sb3_dreamer.common.layers import MLP
from sb3_dreamer.common.one_hot import Features
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.precision import full
from sb3_dreamer.common.preprocessing import action_blocks, action_size

#: Distributions for continuous actions: V2's code, V1, and the plain normal
ACTOR_DISTRIBUTIONS = ("truncated_normal", "tanh_normal", "normal")


class DiscreteActor(nn.Module):
    """
    Features to a categorical over one-hot actions.

    :param features_size: F
    :param actions: number of actions A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation class
    :param layer_norm: normalize the hidden layers before their activations
    """

    accepts_one_hot = TRUNK_ACCEPTS_ONE_HOT

    def __init__(
        self,
        features_size: int,
        actions: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        layer_norm: bool = False,
    ):
        super().__init__()
        self.trunk = MLP(features_size, net_arch, activation_fn, layer_norm)
        self.output = nn.Linear(self.trunk.output_size, actions)

    def forward(self, features: Features) -> OneHotCategorical:
        """
        :param features: (..., F)
        :return: over (..., A)
        """
        return OneHotCategorical(full(self.output(self.trunk(features))))


class MultiDiscreteActor(nn.Module):
    """
    Features to independent categoricals, whose one-hot vectors are joined to one action vector.

    :param features_size: F
    :param blocks: number of choices of every categorical; they add up to A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation class
    :param layer_norm: normalize the hidden layers before their activations
    """

    accepts_one_hot = TRUNK_ACCEPTS_ONE_HOT

    def __init__(
        self,
        features_size: int,
        blocks: tuple[int, ...],
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        layer_norm: bool = False,
    ):
        super().__init__()
        self.blocks = tuple(blocks)
        self.trunk = MLP(features_size, net_arch, activation_fn, layer_norm)
        self.output = nn.Linear(self.trunk.output_size, sum(self.blocks))

    def forward(self, features: Features) -> OneHotBlocks:
        """
        :param features: (..., F)
        :return: over (..., A)
        """
        return OneHotBlocks(full(self.output(self.trunk(features))), self.blocks)


class ContinuousActor(nn.Module):
    """
    Features to a distribution over [-1, 1]^A. From the network's outputs m and s:

    - ``"truncated_normal"`` (V2's code): location ``tanh(m)``, scale ``2 sigmoid((s + init_std) / 2) + min_std``
    - ``"tanh_normal"`` (V1): mean ``5 tanh(m / 5)``, standard deviation ``softplus(s + init_std) + min_std``, before the tanh
    - ``"normal"``: location and scale as for the truncated normal; samples are clipped to the bounds

    :param features_size: F
    :param actions: number of action dimensions A
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation class
    :param layer_norm: normalize the hidden layers before their activations
    :param distribution: one of ``ACTOR_DISTRIBUTIONS``
    :param min_std: smallest scale (V2's code: 0.1)
    :param init_std: added to the network's output s, before its activation (V2's code: 0)
    :param exact_gradient: only with the truncated normal, see
        :class:`~sb3_dreamer.common.action_distributions.TruncatedNormal`
    :raises ValueError: for an unknown distribution, and for an exact gradient of another one
    """

    accepts_one_hot = TRUNK_ACCEPTS_ONE_HOT

    def __init__(
        self,
        features_size: int,
        actions: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module],
        layer_norm: bool = False,
        distribution: str = "truncated_normal",
        min_std: float = 0.1,
        init_std: float = 0.0,
        exact_gradient: bool = False,
    ):
        super().__init__()
        check_actor_options(distribution, min_std, init_std, exact_gradient)
        self.distribution_name = distribution
        self.min_std = min_std
        self.init_std = init_std
        self.exact_gradient = exact_gradient
        self.trunk = MLP(features_size, net_arch, activation_fn, layer_norm)
        self.output = nn.Linear(self.trunk.output_size, actions)
        self.output_std = nn.Linear(self.trunk.output_size, actions)

    def forward(self, features: Features) -> TruncatedNormal | TanhNormal | ClippedNormal:
        """
        :param features: (..., F)
        :return: over (..., A)
        """
        hidden = self.trunk(features)
        return self.distribution(full(self.output(hidden)), full(self.output_std(hidden)))

    def distribution(self, loc: th.Tensor, std: th.Tensor) -> TruncatedNormal | TanhNormal | ClippedNormal:
        """
        :param loc: raw network output m, (..., A)
        :param std: raw network output s, (..., A)
        :return: over (..., A)
        """
        raw = std + self.init_std
        if self.distribution_name == "tanh_normal":
            return TanhNormal(5.0 * th.tanh(loc / 5.0), F.softplus(raw) + self.min_std)
        loc, scale = th.tanh(loc), 2.0 * th.sigmoid(0.5 * raw) + self.min_std
        if self.distribution_name == "normal":
            return ClippedNormal(loc, scale)
        return TruncatedNormal(loc, scale, self.exact_gradient)


def is_squashed(actor: nn.Module) -> bool:
    """
    :param actor: any
    :return: whether its distribution is a tanh-normal, whose entropy falls with the slope of tanh
    """
    return isinstance(actor, ContinuousActor) and actor.distribution_name == "tanh_normal"


def check_actor_options(distribution: str, min_std: float, init_std: float, exact_gradient: bool) -> None:
    """
    Check the options of continuous actors, under their names in ``policy_kwargs``.

    :param distribution: see :class:`ContinuousActor`
    :param min_std: likewise
    :param init_std: likewise
    :param exact_gradient: likewise
    :raises ValueError: naming the option, what was given and what is possible
    """
    if distribution not in ACTOR_DISTRIBUTIONS:
        raise ValueError(f"Unknown actor_distribution {distribution!r}; known are {list(ACTOR_DISTRIBUTIONS)}.")
    check_number("actor_min_std", min_std, 1e-6)
    check_number("actor_init_std", init_std, -50.0, 50.0)
    if exact_gradient and distribution != "truncated_normal":
        raise ValueError(
            f"actor_exact_gradient=True was given, but it is for actor_distribution='truncated_normal', not {distribution!r}: "
            "leave it out, the gradient of every other distribution is exact."
        )


def make_actor(
    features_size: int,
    action_space: spaces.Space,
    net_arch: Sequence[int],
    activation_fn: type[nn.Module] = nn.ELU,
    layer_norm: bool = False,
    distribution: str = "truncated_normal",
    min_std: float = 0.1,
    init_std: float = 0.0,
    exact_gradient: bool = False,
) -> nn.Module:
    """
    The actor for an action space.

    :param features_size: F
    :param action_space: Discrete, MultiDiscrete or MultiBinary (categoricals), or Box; a MultiBinary bit is a choice of two
    :param net_arch: widths of the hidden layers
    :param activation_fn: activation class
    :param layer_norm: normalize the hidden layers before their activations
    :param distribution: for Box, see :class:`ContinuousActor`
    :param min_std: likewise
    :param init_std: likewise
    :param exact_gradient: likewise
    :return: features to a distribution over action vectors
    :raises ValueError: for impossible options, whatever the space
    """
    check_actor_options(distribution, min_std, init_std, exact_gradient)
    layers = list(net_arch), activation_fn, layer_norm
    blocks = action_blocks(action_space)
    if blocks is None:
        size = action_size(action_space)
        return ContinuousActor(features_size, size, *layers, distribution, min_std, init_std, exact_gradient)
    if isinstance(action_space, spaces.Discrete):
        return DiscreteActor(features_size, blocks[0], *layers)
    return MultiDiscreteActor(features_size, blocks, *layers)
