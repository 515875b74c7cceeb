"""Heads: small networks from latent features to a distribution."""

from collections.abc import Callable, Sequence

import torch as th
from torch import nn

from sb3_dreamer.common.distributions import Distribution
from sb3_dreamer.common.layers import MLP
from sb3_dreamer.common.one_hot import Features, accepts_one_hot
from sb3_dreamer.common.precision import full

#: Value of ``accepts_one_hot`` for networks that pass features to their ``trunk`` alone
TRUNK_ACCEPTS_ONE_HOT = property(lambda network: accepts_one_hot(network.trunk))


class ScalarHead(nn.Module):
    """
    Features to the distribution of one number per step: reward, discount, value.

    :param features_size: F
    :param net_arch: widths of the hidden layers
    :param distribution: from the network's output (...) to a distribution over numbers (...)
    :param activation_fn: activation class
    :param layer_norm: normalize the hidden layers before their activations (the original's ``norm: layer``)
    """

    accepts_one_hot = TRUNK_ACCEPTS_ONE_HOT

    def __init__(
        self,
        features_size: int,
        net_arch: Sequence[int],
        distribution: Callable[[th.Tensor], Distribution],
        activation_fn: type[nn.Module] = nn.ELU,
        layer_norm: bool = False,
    ):
        super().__init__()
        self.distribution = distribution
        self.trunk = MLP(features_size, net_arch, activation_fn, layer_norm)
        self.output = nn.Linear(self.trunk.output_size, 1)

    def forward(self, features: Features) -> Distribution:
        """
        :param features: (..., F)
        :return: distribution over (...)
        """
        return self.distribution(full(self.output(self.trunk(features))).squeeze(-1))
