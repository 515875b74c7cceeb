"""Heads: small networks from latent features to a distribution."""

from collections.abc import Callable

import torch as th
from torch import nn

from sb3_dreamer.common.distributions import Distribution
from sb3_dreamer.common.layers import MLP, LayerOptions
from sb3_dreamer.common.one_hot import Features, accepts_one_hot
from sb3_dreamer.common.precision import full

#: Value of ``accepts_one_hot`` for networks that pass features to their ``trunk`` alone
TRUNK_ACCEPTS_ONE_HOT = property(lambda network: accepts_one_hot(network.trunk))


class ScalarHead(nn.Module):
    """
    Features to the distribution of one number per step: reward, discount, value.

    :param features_size: F
    :param layers: hidden layers
    :param distribution: from the network's outputs to a distribution over numbers (...)
    :param outputs: number of outputs; a single one is given to the distribution as (...), several as (..., outputs)
    """

    accepts_one_hot = TRUNK_ACCEPTS_ONE_HOT

    def __init__(
        self, features_size: int, layers: LayerOptions, distribution: Callable[[th.Tensor], Distribution], outputs: int = 1
    ):
        super().__init__()
        self.distribution = distribution
        self.trunk = MLP(features_size, layers)
        self.output = nn.Linear(self.trunk.output_size, outputs)

    def forward(self, features: Features) -> Distribution:
        """Map features (..., F) to a distribution over numbers (...)."""
        outputs = full(self.output(self.trunk(features)))
        return self.distribution(outputs.squeeze(-1) if self.output.out_features == 1 else outputs)
