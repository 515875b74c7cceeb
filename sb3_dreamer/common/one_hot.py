"""Products with one-hot vectors, written as the sums of rows that they are."""

import torch as th
from torch import nn
from torch.nn import functional as F


class OneHotFeatures:
    """
    Features [z; h] of many states whose z is one-hot, without its zeros: constants, for networks that look at imagined states.

    A linear layer adds up the few rows of its weight that z points to, in a tenth of the time of the full product.

    :param places: positions of the ones in z, (..., S)
    :param deterministic: h, (..., D)
    :param stochastic_size: width Z of z
    """

    def __init__(self, places: th.Tensor, deterministic: th.Tensor, stochastic_size: int):
        self.places, self.deterministic, self.stochastic_size = places, deterministic, stochastic_size

    def __getitem__(self, index: slice) -> "OneHotFeatures":
        """Some of the steps."""
        return OneHotFeatures(self.places[index], self.deterministic[index], self.stochastic_size)

    def detach(self) -> "OneHotFeatures":
        """Itself: there is no gradient."""
        return self

    @property
    def shape(self) -> th.Size:
        """That of the full features, (..., F)."""
        return th.Size([*self.deterministic.shape[:-1], self.stochastic_size + self.deterministic.shape[-1]])

    def dense(self) -> th.Tensor:
        """The full features, (..., F)."""
        zeros = self.deterministic.new_zeros(*self.places.shape[:-1], self.stochastic_size)
        return th.cat([zeros.scatter_(-1, self.places, 1.0), self.deterministic], dim=-1)

    def linear(self, layer: nn.Linear) -> th.Tensor:
        """
        :param layer: on F inputs
        :return: its output, (..., out)
        """
        of_ones, of_deterministic = layer.weight.split([self.stochastic_size, self.deterministic.shape[-1]], dim=1)
        return F.linear(self.deterministic, of_deterministic, layer.bias).add_(sum_rows(of_ones, self.places))


def sum_rows(weight: th.Tensor, places: th.Tensor) -> th.Tensor:
    """
    The product of a weight with one-hot vectors.

    :param weight: of a linear layer, (out, Z)
    :param places: positions of the ones, (..., S)
    :return: (..., out)
    """
    rows = F.embedding_bag(places.flatten(0, -2), weight.t().contiguous(), mode="sum")
    return rows.unflatten(0, places.shape[:-1])
