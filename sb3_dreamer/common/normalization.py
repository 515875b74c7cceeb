"""Observations in units of their own spread, measured while an agent collects and saved with its networks."""

from collections.abc import Mapping

import torch as th
from torch import nn

from sb3_dreamer.common.observations import ObservationFormat


class ObservationNormalizer(nn.Module):
    """
    Running mean and standard deviation of every plain number of an observation, over all steps collected so far.

    Unlike ``VecNormalize`` it is a part of the policy: replayed steps are stored raw and seen in today's units, every saved
    model carries the statistics that belong to it, and evaluation environments need no wrapper. Images, classes and bits are
    left alone.

    :param observations: the format whose numbers are normalised
    :param clip: normalised numbers are limited to this size
    """

    count: th.Tensor
    mean: th.Tensor
    squares: th.Tensor

    def __init__(self, observations: ObservationFormat, clip: float = 10.0):
        super().__init__()
        self.shapes = {key: part.encoded.shape for key, part in observations.parts.items() if part.is_numeric}
        self.clip = clip
        size = sum(shape[0] for shape in self.shapes.values())
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        self.register_buffer("mean", th.zeros(size, dtype=th.float64))
        self.register_buffer("squares", th.zeros(size, dtype=th.float64))  # sum of squared distances from the mean

    @property
    def std(self) -> th.Tensor:
        """Standard deviations, (sum of sizes,); 1 before the second step."""
        variance = self.squares / self.count.clamp(min=1.0)
        return th.where(self.count > 1.0, (variance + 1e-8).sqrt(), 1.0)

    @th.no_grad()
    def update(self, stored: Mapping[str, th.Tensor]) -> None:
        """
        Take new steps into the statistics.

        :param stored: observations as stored, per key (n, *stored shape)
        """
        rows = th.cat([stored[key].flatten(1) for key in self.shapes], dim=-1).double()
        count, mean = len(rows), rows.mean(0)
        difference, total = mean - self.mean, self.count + count
        self.squares += ((rows - mean) ** 2).sum(0) + difference**2 * (self.count * count / total)
        self.mean += difference * (count / total)
        self.count.copy_(total)

    def forward(self, encoded: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        :param encoded: observations, per key (..., *encoded shape)
        :return: the same, numbers in units of their standard deviation
        """
        sizes = [shape[0] for shape in self.shapes.values()]
        parts = zip(self.shapes, self.mean.split(sizes), self.std.split(sizes), strict=True)
        return encoded | {key: self._normalized(encoded[key], mean, std) for key, mean, std in parts}

    def inverse(self, key: str, values: th.Tensor) -> th.Tensor:
        """
        Back to the units of the environment, but for what was clipped.

        :param key: of an observation that is normalised
        :param values: in units of the standard deviation, (..., *encoded shape)
        :return: the same shape
        """
        sizes = [shape[0] for shape in self.shapes.values()]
        mean, std = (whole.split(sizes)[list(self.shapes).index(key)].to(values.dtype) for whole in (self.mean, self.std))
        return values * std + mean

    def _normalized(self, values: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
        centred = (values - mean.to(values.dtype)) / std.to(values.dtype)
        return centred.clamp(-self.clip, self.clip)
