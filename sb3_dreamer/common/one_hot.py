"""Products with one-hot vectors, computed as sums of rows."""

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.capabilities import declares


class OneHotFeatures:
    """
    Features [z; h] of many states whose z is one-hot, without its zeros: constants, for networks on imagined states.

    A linear layer adds up the few rows of its weight that z points to, in a tenth of the time of the full product.

    :param places: positions of the ones in z, (..., S)
    :param deterministic: h, (..., D)
    :param stochastic: z itself, (..., Z)
    """

    def __init__(self, places: th.Tensor, deterministic: th.Tensor, stochastic: th.Tensor):
        self.places, self.deterministic, self.stochastic = places, deterministic, stochastic

    def __getitem__(self, index: slice) -> "OneHotFeatures":
        return OneHotFeatures(self.places[index], self.deterministic[index], self.stochastic[index])

    def detach(self) -> "OneHotFeatures":
        """Return the object itself: it carries no gradient."""
        return self

    @property
    def shape(self) -> th.Size:
        """Shape of the dense features, (..., F)."""
        return th.Size([*self.deterministic.shape[:-1], self.stochastic.shape[-1] + self.deterministic.shape[-1]])

    def dense(self) -> th.Tensor:
        """Return the dense features, (..., F)."""
        return th.cat([self.stochastic, self.deterministic], dim=-1)

    def linear(self, layer: nn.Linear) -> th.Tensor:
        """Return the output (..., out) of a layer on F inputs."""
        of_ones, of_deterministic = layer.weight.split([self.stochastic.shape[-1], self.deterministic.shape[-1]], dim=1)
        return F.linear(self.deterministic, of_deterministic, layer.bias).add_(sum_rows(of_ones, self.places))


#: Features of latent states, (..., F). Only modules that declare ``accepts_one_hot`` are given the second form
Features = th.Tensor | OneHotFeatures


def accepts_one_hot(module: object) -> bool:
    """Whether a module declares that its ``forward`` takes :class:`OneHotFeatures`."""
    return declares(module, "accepts_one_hot", "forward")


def features_for(module: object, features: Features) -> Features:
    """
    Features in a form that a module accepts.

    :param module: network on features
    :param features: (..., F), in either form
    :return: the same features; a tensor, unless the module declares ``accepts_one_hot``
    """
    return features if isinstance(features, th.Tensor) or accepts_one_hot(module) else features.dense()


def sum_rows(weight: th.Tensor, places: th.Tensor) -> th.Tensor:
    """Return the product (..., out) of a layer's weight (out, Z) with vectors that have ones at the places (..., S)."""
    rows = F.embedding_bag(places.flatten(0, -2), weight.t().contiguous(), mode="sum")
    return rows.unflatten(0, places.shape[:-1])
