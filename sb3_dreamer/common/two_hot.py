"""Two-hot regression (DreamerV3): a number as a categorical distribution over fixed bins, for targets of any scale."""

from functools import lru_cache

import torch as th

from sb3_dreamer.common.distributions import Distribution, OneHotCategorical
from sb3_dreamer.common.functional import symexp

#: The outermost bins in symlog units; in units of the target they are at 4.85e8
LARGEST_BIN = 20.0


@lru_cache(maxsize=64)
def symexp_bins(number: int, device: th.device | None = None) -> th.Tensor:
    """
    Bins that are equally spaced in symlog units, from symexp(-20) to symexp(20).

    The positive half mirrors the negative one, so both are exactly symmetric. An odd number has one bin at 0; an even number
    of at least 4 has two, as in the original code. The tensor is cached: callers must not change it.

    :param number: K, at least 2
    :param device: of the result; None is the CPU
    :return: (K,), float32, ascending
    :raises ValueError: if there are fewer than two bins
    """
    if number < 2:
        raise ValueError(f"Two-hot regression needs at least 2 bins, but {number} was given.")
    with th.inference_mode(False):  # otherwise a first call in inference mode would cache a tensor that refuses autograd
        half = symexp(th.linspace(-LARGEST_BIN, 0.0, (number + 1) // 2, device=device))
        return th.cat([half, -half[: number // 2].flip(0)])


def two_hot_places(target: th.Tensor, bins: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Find the two neighboring bins whose weighted mean is the target, linear in the units of the bins.

    Targets beyond the outermost bins become these bins. NaN stays NaN in the weight.

    :param target: numbers, (...)
    :param bins: ascending, (K,)
    :return: index of the lower bin, (...), at most K - 2; weight of the bin above it, (...), in [0, 1]
    """
    below = (th.bucketize(target.contiguous(), bins, right=True) - 1).clamp(0, len(bins) - 2)
    low, high = bins[below], bins[below + 1]
    return below, ((target - low) / (high - low)).clamp(0.0, 1.0)


def two_hot(target: th.Tensor, bins: th.Tensor) -> th.Tensor:
    """
    Encode numbers as weights of the two nearest bins.

    :param target: numbers, (...)
    :param bins: ascending, (K,)
    :return: non-negative, sum 1 over the last axis, (..., K)
    """
    below, above_weight = (part.unsqueeze(-1) for part in two_hot_places(target, bins))
    zeros = bins.new_zeros((*target.shape, len(bins)))
    return zeros.scatter(-1, below, 1.0 - above_weight).scatter(-1, below + 1, above_weight)


def symmetric_mean(probs: th.Tensor, bins: th.Tensor) -> th.Tensor:
    """
    Expectation over symmetric bins that is exactly 0 for symmetric probabilities.

    Each bin is paired with its mirror image before anything is summed. A plain sum over bins of up to 4.85e8 could leave a
    rounding error far from 0 for the uniform distribution that a zero-initialized head predicts.

    :param probs: (..., K)
    :param bins: with ``bins == -bins.flip(0)``, (K,)
    :return: (...)
    """
    half = len(bins) // 2
    return ((probs[..., -half:] - probs[..., :half].flip(-1)) * bins[-half:]).sum(-1)


class TwoHot(Distribution):
    """
    A number as a categorical distribution over :func:`symexp_bins`; reward and value of DreamerV3.

    The log-probability of a target is minus the cross entropy with its two-hot encoding, which is linear between neighboring
    bins in the target's own units: the mean is an unbiased prediction, and the size of a gradient does not depend on the
    scale of the target.

    :param logits: unnormalized log-probabilities of the bins, (..., K)
    """

    def __init__(self, logits: th.Tensor):
        self.bins = symexp_bins(logits.shape[-1], logits.device)
        self.categorical = OneHotCategorical(logits)

    @property
    def logits(self) -> th.Tensor:
        """Unnormalized log-probabilities of the bins, (..., K)."""
        return self.categorical.logits

    @property
    def mean(self) -> th.Tensor:
        """Expected value, (...); exactly 0 where the logits are equal."""
        return symmetric_mean(th.softmax(self.logits, dim=-1), self.bins)

    @property
    def mode(self) -> th.Tensor:
        """The most likely bin, (...); no gradient."""
        return self.bins[self.logits.argmax(-1)]

    def draw_noise(self) -> th.Tensor:
        """Exponential(1) numbers, (..., K)."""
        return self.categorical.draw_noise()

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Draw one of the bins; no gradient.

        :param noise: positive, (..., K)
        :return: (...)
        """
        return self.bins[self.categorical.sample(noise).detach().argmax(-1)]

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        Minus the cross entropy with the two-hot encoding; no gradient flows to the value.

        :param value: any numbers, (...)
        :return: (...)
        """
        below, above_weight = two_hot_places(value.detach(), self.bins)
        places = th.stack([below, below + 1], dim=-1)
        low, high = self.categorical.log_probs.gather(-1, places).unbind(-1)
        return (1.0 - above_weight) * low + above_weight * high

    def entropy(self) -> th.Tensor:
        return self.categorical.entropy()
