"""Running normalization of observations, updated while an agent collects and saved with its networks."""

from collections.abc import Mapping
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_dreamer.common.observations import ObservationFormat
from sb3_dreamer.ranks.distributed import average


class Moments(NamedTuple):
    """Count, mean and spread of numbers that have been seen."""

    number: th.Tensor  # ()
    mean: th.Tensor  # (...)
    squares: th.Tensor  # (...) sum of squared distances from the mean

    def with_more(self, more: "Moments") -> "Moments":
        """
        Combine the moments of two sets of numbers.

        :param more: moments of other numbers
        :return: moments of both together
        """
        difference, total = more.mean - self.mean, self.number + more.number
        squares = self.squares + (more.squares + difference**2 * (self.number * more.number / total))
        return Moments(total, self.mean + difference * (more.number / total), squares)

    def since(self, before: "Moments") -> "Moments":
        """
        Invert :meth:`with_more`; exact up to rounding in float64.

        :param before: moments of the numbers that were seen first
        :return: moments of the numbers since
        """
        count = self.number - before.number
        if count <= 0:
            return Moments(*(th.zeros_like(part) for part in self))
        mean = before.mean + (self.mean - before.mean) * (self.number / count)
        squares = self.squares - before.squares - (mean - before.mean) ** 2 * (before.number * count / self.number)
        return Moments(count, mean, squares.clamp(min=0.0))


class RunningScale(nn.Module):
    """
    Running size of rewards, over all ranks: the root mean square distance from their median of those that differ from it.

    So rare rewards have the size of frequent ones, and a constant that is added to all of them does not hide the others. Of
    rewards that are all the same it is their own size; 1 before the first that is not zero.

    :param rate: share of each batch in the running means
    """

    center: th.Tensor  # mean of the batches' medians
    squares: th.Tensor  # mean squared distance from it
    share: th.Tensor  # of the values that differ from it
    weight: th.Tensor  # of all batches so far, in the running means

    def __init__(self, rate: float = 0.01):
        super().__init__()
        self.rate = rate
        for name in ("center", "squares", "share", "weight"):
            self.register_buffer(name, th.zeros(()))

    @property
    def scale(self) -> th.Tensor:
        """The running size, a positive scalar."""
        center = (self.center / self.weight.clamp(min=1e-30)).abs()
        same = th.where(center > 0.0, center, 1.0)
        return th.where(self.share > 0.0, (self.squares / self.share.clamp(min=1e-30)).sqrt(), same)

    @th.no_grad()
    def update(self, values: th.Tensor) -> None:
        """Take a batch of any shape into the running means; one that is not finite is left out."""
        median = average(values.flatten().median())
        center = self.center.lerp(median, self.rate) / self.weight.lerp(th.ones_like(median), self.rate)
        distances = (values - center).abs()
        differs = (distances > 1e-4 * values.abs().clamp(min=center.abs())).float()
        squares, share = average(th.stack([(distances.square() * differs).mean(), differs.mean()]))
        before = th.stack([self.center, self.squares, self.share, self.weight])
        moved = before.lerp(th.stack([median, squares, share, th.ones_like(share)]), self.rate)
        after = th.where(th.isfinite(moved).all(), moved, before)
        for own, new in zip((self.center, self.squares, self.share, self.weight), after, strict=True):
            own.copy_(new)


class ObservationNormalizer(nn.Module):
    """
    Normalizes every number of an observation by the running mean and standard deviation over all steps collected so far.

    Unlike ``VecNormalize`` it is part of the policy: steps are stored raw and normalized by the current statistics when they
    are replayed, every saved model carries its statistics, and evaluation environments need no wrapper. Images, classes and
    bits are left unchanged.

    :param observations: the format whose numbers are normalized
    :param clip: normalized numbers are clipped to [-clip, clip]
    """

    count: th.Tensor
    mean: th.Tensor
    squares: th.Tensor

    def __init__(self, observations: ObservationFormat, clip: float = 10.0):
        super().__init__()
        self.shapes = {key: part.encoded.shape for key, part in observations.parts.items() if part.is_numeric}
        self.clip = clip
        self._sizes = [shape[0] for shape in self.shapes.values()]
        self.register_buffer("count", th.zeros((), dtype=th.float64))
        self.register_buffer("mean", th.zeros(sum(self._sizes), dtype=th.float64))
        self.register_buffer("squares", th.zeros(sum(self._sizes), dtype=th.float64))  # squared distances from the mean

    @property
    def std(self) -> th.Tensor:
        """Standard deviations, (sum of sizes,); 1 before the second step."""
        variance = self.squares / self.count.clamp(min=1.0)
        return th.where(self.count > 1.0, (variance + 1e-8).sqrt(), 1.0)

    @property
    def moments(self) -> Moments:
        """Moments of all steps that :meth:`update` has seen; assignment copies in place."""
        return Moments(self.count, self.mean, self.squares)

    @moments.setter
    def moments(self, moments: Moments) -> None:
        for own, new in zip(self.moments, moments, strict=True):
            own.copy_(new)

    @th.no_grad()
    def update(self, stored: Mapping[str, th.Tensor]) -> None:
        """
        Add new steps to the statistics.

        :param stored: observations as stored, per key (n, *stored shape)
        """
        rows = th.cat([stored[key].reshape(len(stored[key]), -1) for key in self.shapes], dim=-1).double()
        mean = rows.mean(0)
        seen = Moments(th.full_like(self.count, len(rows)), mean, ((rows - mean) ** 2).sum(0))
        self.moments = self.moments.with_more(seen)

    def forward(self, encoded: dict[str, th.Tensor]) -> dict[str, th.Tensor]:
        """
        Normalize encoded observations.

        :param encoded: per key (..., *encoded shape)
        :return: the same, numbers in units of their standard deviation
        """
        parts = zip(self.shapes, self.mean.split(self._sizes), self.std.split(self._sizes), strict=True)
        return encoded | {key: self._normalized(encoded[key], mean, std) for key, mean, std in parts}

    def inverse(self, key: str, values: th.Tensor) -> th.Tensor:
        """
        Convert normalized values back to the units of the environment, except for clipping.

        :param key: of an observation that is normalized
        :param values: in units of the standard deviation, (..., *encoded shape)
        :return: the same shape
        """
        index = list(self.shapes).index(key)
        mean, std = (whole.split(self._sizes)[index].to(values.dtype) for whole in (self.mean, self.std))
        return values * std + mean

    def _normalized(self, values: th.Tensor, mean: th.Tensor, std: th.Tensor) -> th.Tensor:
        centered = (values - mean.to(values.dtype)) / std.to(values.dtype)
        return centered.clamp(-self.clip, self.clip)
