"""
The distributions of Dreamer behind one interface: mode, mean, sample, log_prob, entropy.

Written by hand instead of with ``torch.distributions``, because three of their gradients are the original's own
(straight-through samples, no gradient to a one-hot value, the truncated normal's sampler) and because argument checks
would wait for the device. Every ``sample`` takes an optional ``noise`` tensor of the kind that ``draw_noise`` makes: one
seam for exact seeds, shared noise in tests, and drawing all noise of an update at once.
"""

import math
from typing import Protocol

import torch as th
from torch.nn import functional as F

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


class Distribution(Protocol):
    """What a head predicts; the losses never ask which kind it is."""

    @property
    def mode(self) -> th.Tensor:
        """Most likely value."""

    @property
    def mean(self) -> th.Tensor:
        """Expected value."""

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """A sample that carries the gradients of the paper, from ``noise`` if given."""

    def draw_noise(self) -> th.Tensor:
        """Noise for one :meth:`sample`, from torch's global generator."""

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """Log-probability (density) in nats, summed over the event."""

    def entropy(self) -> th.Tensor:
        """Entropy in nats, summed over the event."""


def straight_through(one_hot: th.Tensor, probs: th.Tensor) -> th.Tensor:
    """
    The sample in value, the probabilities in gradient (V2, algorithm 1).

    The grouping matters: ``one_hot + probs - probs.detach()`` would not be exactly one-hot in low precision.

    :param one_hot: sample, (..., K)
    :param probs: probabilities, (..., K)
    :return: (..., K)
    """
    return one_hot + (probs - probs.detach()) if probs.requires_grad else one_hot


def one_hot_like(index: th.Tensor, like: th.Tensor) -> th.Tensor:
    """
    One-hot vectors in the type of another tensor.

    :param index: (..., 1) int64
    :param like: (..., K)
    :return: (..., K), no gradient
    """
    return th.zeros_like(like).scatter_(-1, index, 1.0)


class OneHotCategorical:
    """
    Categorical over one-hot vectors with straight-through samples (V2, algorithm 1).

    :param logits: unnormalised log-probabilities, (..., K)
    """

    def __init__(self, logits: th.Tensor):
        self.log_probs = F.log_softmax(logits, dim=-1)

    @property
    def probs(self) -> th.Tensor:
        """Probabilities, (..., K)."""
        return self.log_probs.exp()

    @property
    def mean(self) -> th.Tensor:
        """The probabilities, (..., K)."""
        return self.probs

    @property
    def mode(self) -> th.Tensor:
        """One-hot of the most likely class, (..., K); no gradient."""
        return one_hot_like(self.log_probs.detach().argmax(-1, keepdim=True), self.log_probs.detach())

    @staticmethod
    def noise_like(logits: th.Tensor) -> th.Tensor:
        """
        Noise for :meth:`sample`: independent Exponential(1) numbers, an "exponential race" between the classes.

        :param logits: any tensor of the wanted shape, type and device
        """
        return th.empty_like(logits, requires_grad=False).exponential_()

    def draw_noise(self) -> th.Tensor:
        """Noise of the logits' shape, see :meth:`noise_like`."""
        return self.noise_like(self.log_probs)

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """
        One-hot sample whose gradient is that of the probabilities.

        The class with the largest ``probs / noise`` wins, which is an exact categorical sample for Exponential(1) noise;
        noise of ones gives the mode.

        :param noise: (..., K), positive
        :return: (..., K)
        """
        probs = self.probs
        noise = self.draw_noise() if noise is None else noise
        index = (probs.detach() / noise).argmax(-1, keepdim=True)
        return straight_through(one_hot_like(index, probs.detach()), probs)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        Log-probability; as in the original, no gradient flows to the value.

        :param value: one-hot, (..., K)
        :return: (...)
        """
        return (self.log_probs * value.detach()).sum(-1)

    def entropy(self) -> th.Tensor:
        """Entropy in nats, (...)."""
        return -(self.log_probs * self.probs).sum(-1)


class TruncatedNormal:
    """
    Normal distribution restricted to [-1, 1], independent per dimension; the actor for continuous actions.

    The original samples with TensorFlow Probability, whose registered gradient treats the standardised sample z as a
    constant: dx/dloc = 1, dx/dscale = z. The exact gradient, where z depends on both through the bounds, is smaller
    (up to six times in the norm of the actor's gradient). The original's is the default.

    :param loc: location, in [-1, 1], (..., A)
    :param scale: positive, (..., A)
    :param exact_gradient: differentiate the inverse CDF instead
    """

    #: Samples stay this far inside the bounds, as in the original
    margin = 1e-6

    def __init__(self, loc: th.Tensor, scale: th.Tensor, exact_gradient: bool = False):
        self.loc = loc
        self.scale = scale
        self.exact_gradient = exact_gradient
        self._lower = (-1.0 - loc) / scale
        self._upper = (1.0 - loc) / scale
        self._cdf_lower = th.special.ndtr(self._lower)
        self._mass = th.special.ndtr(self._upper) - self._cdf_lower

    @property
    def mode(self) -> th.Tensor:
        """The location, (..., A): the actor's tanh keeps it inside the bounds."""
        return self.loc.clamp(-1.0, 1.0)

    @property
    def mean(self) -> th.Tensor:
        """Expected value, (..., A)."""
        return self.loc + self.scale * (_normal_pdf(self._lower) - _normal_pdf(self._upper)) / self._mass

    def draw_noise(self) -> th.Tensor:
        """Uniform numbers in [0, 1), (..., A)."""
        return th.rand_like(self.loc.detach())

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Reparameterised sample by the inverse CDF; clipped to the bounds in value only.

        :param noise: uniform numbers, (..., A)
        :return: (..., A)
        """
        noise = self.draw_noise() if noise is None else noise
        limits = th.finfo(noise.dtype)  # rounding must not make the quantile of a narrow distribution infinite
        z = th.special.ndtri((self._cdf_lower + noise * self._mass).clamp(limits.tiny, 1.0 - limits.eps))
        x = self.loc + self.scale * (z if self.exact_gradient else z.detach())
        clipped = x.detach().clamp(-1.0 + self.margin, 1.0 - self.margin)
        return clipped + (x - x.detach()) if x.requires_grad else clipped

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        Log-density of values inside the bounds.

        :param value: (..., A), in [-1, 1]
        :return: (...), summed over A
        """
        z = (value - self.loc) / self.scale
        return (-0.5 * z.square() - _LOG_SQRT_2PI - self.scale.log() - self._mass.log()).sum(-1)

    def entropy(self) -> th.Tensor:
        """Differential entropy in nats, (...), summed over A."""
        edges = self._lower * _normal_pdf(self._lower) - self._upper * _normal_pdf(self._upper)
        return (_LOG_SQRT_2PI + 0.5 + self.scale.log() + self._mass.log() + 0.5 * edges / self._mass).sum(-1)


def _normal_pdf(x: th.Tensor) -> th.Tensor:
    return th.exp(-0.5 * x.square() - _LOG_SQRT_2PI)


class UnitNormal:
    """
    Normal of variance 1: squared error with its constant kept, so that losses are nats as in the original.

    :param mean: (..., *event)
    :param event_dims: number of trailing dimensions that are one event
    """

    def __init__(self, mean: th.Tensor, event_dims: int = 0):
        self.mean = mean
        self._event = tuple(range(-event_dims, 0))

    @property
    def mode(self) -> th.Tensor:
        """The mean, (..., *event)."""
        return self.mean

    def draw_noise(self) -> th.Tensor:
        """Standard normal numbers, (..., *event)."""
        return th.randn_like(self.mean.detach())

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """Mean plus standard normal noise, (..., *event)."""
        return self.mean + (self.draw_noise() if noise is None else noise)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        :param value: (..., *event)
        :return: (...), summed over the event
        """
        squared = (value - self.mean).square()
        if not self._event:
            return -0.5 * squared - _LOG_SQRT_2PI
        size = math.prod(self.mean.shape[dim] for dim in self._event)
        return -0.5 * squared.sum(self._event) - size * _LOG_SQRT_2PI

    def entropy(self) -> th.Tensor:
        """A constant, (...)."""
        size = math.prod(self.mean.shape[dim] for dim in self._event)
        return th.full_like(self.log_prob(self.mean).detach(), size * (_LOG_SQRT_2PI + 0.5))


class Bernoulli:
    """
    Yes or no, with soft labels allowed: the discount head's target is gamma, not 1.

    :param logits: (...)
    """

    def __init__(self, logits: th.Tensor):
        self.logits = logits

    @property
    def mean(self) -> th.Tensor:
        """Probability of yes, (...)."""
        return th.sigmoid(self.logits)

    @property
    def mode(self) -> th.Tensor:
        """1 where yes is more likely, (...); no gradient."""
        return (self.logits > 0).to(self.logits.dtype)

    def draw_noise(self) -> th.Tensor:
        """Uniform numbers in [0, 1), (...)."""
        return th.rand_like(self.logits.detach())

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """A draw of 0 or 1, (...); no gradient."""
        return ((self.draw_noise() if noise is None else noise) < self.mean).to(self.logits.dtype)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        :param value: label in [0, 1], (...)
        :return: (...), minus the cross entropy
        """
        return -F.binary_cross_entropy_with_logits(self.logits, value, reduction="none")

    def entropy(self) -> th.Tensor:
        """Entropy in nats, (...)."""
        return F.binary_cross_entropy_with_logits(self.logits, self.mean, reduction="none")
