"""Heads: small networks from latent features to a distribution."""

from collections.abc import Callable, Sequence

import torch as th
from torch import nn

from sb3_dreamer.common.distributions import Distribution
from sb3_dreamer.common.layers import MLP
from sb3_dreamer.common.one_hot import OneHotFeatures
from sb3_dreamer.common.precision import full


class ScalarHead(nn.Module):
    """
    Features to the distribution of one number per step: reward, discount, value.

    :param features_size: F
    :param net_arch: widths of the hidden layers
    :param distribution: from the network's output (...) to a distribution over numbers (...)
    :param activation_fn: activation class
    :param layer_norm: normalize the hidden layers before their activations (the original's ``norm: layer``)
    """

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

    def forward(self, features: th.Tensor | OneHotFeatures) -> Distribution:
        """
        :param features: (..., F)
        :return: distribution over (...)
        """
        return self.distribution(full(self.output(self.trunk(features))).squeeze(-1))
