"""
The distributions of Dreamer behind one interface, :class:`Distribution`.

Written by hand instead of with ``torch.distributions``: some gradients are those of the original code (straight-through
samples, no gradient to a one-hot value), and argument checks would wait for the device. Every ``sample`` takes an optional
``noise`` tensor of the kind that ``draw_noise`` returns. This one seam serves exact seeds, shared noise in tests, and drawing
all noise of an update at once.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property, lru_cache

import torch as th
from torch.nn import functional as F

#: Minus the logarithm of the standard normal density at 0
LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
#: Below this number of classes PyTorch's softmax is slow on CPUs
FEW_CLASSES = 16


class Distribution(ABC):
    """What a head predicts, over values of shape (..., *event); the losses never ask which kind it is."""

    @property
    @abstractmethod
    def mode(self) -> th.Tensor:
        """Most likely value, (..., *event)."""

    @property
    @abstractmethod
    def mean(self) -> th.Tensor:
        """Expected value, (..., *event)."""

    @abstractmethod
    def draw_noise(self) -> th.Tensor:
        """Noise for one :meth:`sample` from torch's global generator, (..., *event)."""

    @abstractmethod
    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Draw a sample that carries the gradients of the paper.

        :param noise: of the kind that :meth:`draw_noise` returns, (..., *event); drawn if None
        :return: (..., *event)
        """

    @abstractmethod
    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        Log-probability (or log-density) in nats.

        :param value: (..., *event)
        :return: (...), summed over the event
        """

    @abstractmethod
    def entropy(self) -> th.Tensor:
        """Entropy (or differential entropy) in nats, summed over the event, (...)."""


def straight_through(one_hot: th.Tensor, probs: th.Tensor) -> th.Tensor:
    """
    Combine the value of a sample with the gradient of its probabilities (V2, algorithm 1).

    The grouping matters: ``one_hot + probs - probs.detach()`` would not be exactly one-hot in low precision.

    :param one_hot: sample, (..., K)
    :param probs: probabilities, (..., K)
    :return: (..., K)
    """
    return one_hot + (probs - probs.detach()) if probs.requires_grad else one_hot


def _softmax(logits: th.Tensor) -> th.Tensor:
    """Softmax of the last axis; of few classes without a gradient ten times as fast as PyTorch's on a CPU."""
    if logits.requires_grad or logits.shape[-1] >= FEW_CLASSES or logits.device.type != "cpu":
        return th.softmax(logits, dim=-1)
    exponentials = (logits - logits.amax(-1, keepdim=True)).exp_()
    return exponentials.div_(exponentials.sum(-1, keepdim=True))


def _one_hot_like(index: th.Tensor, like: th.Tensor) -> th.Tensor:
    """One-hot vectors of indices (..., 1), in shape (..., K) and type of another tensor; no gradient."""
    return th.zeros_like(like).scatter_(-1, index, 1.0)


class OneHotCategorical(Distribution):
    """
    Categorical over one-hot vectors with straight-through samples (V2, algorithm 1).

    :param logits: unnormalized log-probabilities, (..., K)
    """

    def __init__(self, logits: th.Tensor):
        self.logits = logits

    @cached_property
    def log_probs(self) -> th.Tensor:
        """Log-probabilities, (..., K); computed on demand, because imagined samples do not need them."""
        return F.log_softmax(self.logits, dim=-1)

    @property
    def probs(self) -> th.Tensor:
        """Probabilities, (..., K)."""
        return self.log_probs.exp()

    @property
    def mean(self) -> th.Tensor:
        return self.probs

    @property
    def mode(self) -> th.Tensor:
        """One-hot of the most likely class, (..., K); no gradient."""
        return _one_hot_like(self.logits.detach().argmax(-1, keepdim=True), self.logits.detach())

    @staticmethod
    def noise_like(logits: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        """
        Draw noise for :meth:`sample`: independent Exponential(1) numbers, an "exponential race" between the classes.

        :param logits: any tensor of the desired shape, type and device
        :param generator: source of the numbers; None is torch's global generator
        :return: positive, of the same shape
        """
        # Five times as fast as exponential_; uniform numbers are below 1, so none of these is 0
        return th.empty_like(logits, requires_grad=False).uniform_(generator=generator).log_().neg_()

    def draw_noise(self) -> th.Tensor:
        """Exponential(1) numbers, (..., K), see :meth:`noise_like`."""
        return self.noise_like(self.logits)

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Draw a one-hot sample whose gradient is that of the probabilities.

        The class with the largest ``probs / noise`` wins, which is an exact categorical sample for Exponential(1) noise;
        noise of ones gives the mode. Logarithms are compared, because they need no normalized probabilities.

        :param noise: (..., K), positive
        :return: (..., K)
        """
        logits, noise = self.logits.detach(), self.draw_noise() if noise is None else noise
        one_hot = _one_hot_like((logits - noise.log()).argmax(-1, keepdim=True), logits)
        return straight_through(one_hot, self.probs) if self.logits.requires_grad else one_hot

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        Log-probability; as in the original code, no gradient flows to the value.

        :param value: one-hot, (..., K)
        :return: (...)
        """
        return (self.log_probs * value.detach()).sum(-1)

    def entropy(self) -> th.Tensor:
        return -(self.log_probs * self.probs).sum(-1)


class UnimixCategorical(OneHotCategorical):
    """
    Mixture of a categorical and the uniform distribution (V3); samples are straight-through to the mixture.

    :param logits: unnormalized log-probabilities of the categorical, (..., K)
    :param unimix: share of the uniform distribution
    """

    def __init__(self, logits: th.Tensor, unimix: float):
        super().__init__(logits)
        self.unimix = unimix

    @cached_property
    def probs(self) -> th.Tensor:  # type: ignore[override]
        """Probabilities of the mixture, (..., K)."""
        uniform = self.unimix / self.logits.shape[-1]
        return _softmax(self.logits) * (1.0 - self.unimix) + uniform

    @cached_property
    def log_probs(self) -> th.Tensor:
        """Log-probabilities of the mixture, (..., K)."""
        return self.probs.log() if self.unimix > 0.0 else th.log_softmax(self.logits, dim=-1)

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """As in :class:`OneHotCategorical`: the class with the largest ``probs / noise`` wins."""
        probs, noise = self.probs, self.draw_noise() if noise is None else noise
        winners = (probs.detach() / noise).argmax(-1, keepdim=True)
        return straight_through(_one_hot_like(winners, probs.detach()), probs)


@lru_cache(maxsize=64)
def _padded_places(sizes: tuple[int, ...], device: th.device) -> th.Tensor:
    """Index (A,) of each joined class in rows padded to the largest block; cached, as a CUDA graph cannot copy it."""
    starts = [block * max(sizes) for block in range(len(sizes))]
    places = [start + index for start, size in zip(starts, sizes, strict=True) for index in range(size)]
    return th.tensor(places, device=device)


class OneHotBlocks(OneHotCategorical):
    """
    Independent categoricals whose one-hot vectors are concatenated: actions and observations that consist of several choices.

    All blocks are computed at once, in rows padded to the largest block. Probabilities sum to 1 in every block;
    log-probability and entropy are sums over the blocks.

    :param logits: unnormalized log-probabilities, (..., A)
    :param sizes: number of classes of every block; they add up to A
    :raises ValueError: if they do not
    """

    def __init__(self, logits: th.Tensor, sizes: tuple[int, ...]):
        if sum(sizes) != logits.shape[-1]:
            raise ValueError(f"Blocks of {sizes} have {sum(sizes)} logits together, but {logits.shape[-1]} were given.")
        self._shape = (len(sizes), max(sizes))
        self._places = _padded_places(tuple(sizes), logits.device)
        self.log_probs = self._joined(F.log_softmax(self._padded(logits, -math.inf), dim=-1))
        super().__init__(self.log_probs)

    def _padded(self, joined: th.Tensor, fill: float) -> th.Tensor:
        """(..., A) to (..., blocks, largest size)."""
        rows = joined.new_full((*joined.shape[:-1], math.prod(self._shape)), fill)
        return rows.index_copy(-1, self._places, joined).unflatten(-1, self._shape)

    def _joined(self, rows: th.Tensor) -> th.Tensor:
        """The inverse of :meth:`_padded`."""
        return rows.flatten(-2).index_select(-1, self._places)

    def _winners(self, scores: th.Tensor) -> th.Tensor:
        """One-hot of the largest of the non-negative scores (..., A) in every block."""
        rows = self._padded(scores, -1.0)
        return self._joined(_one_hot_like(rows.argmax(-1, keepdim=True), rows))

    @property
    def mode(self) -> th.Tensor:
        """One-hot of the most likely class of every block, (..., A); no gradient."""
        return self._winners(self.probs.detach())

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """As in :class:`OneHotCategorical`, in every block: the class with the largest ``probs / noise`` wins."""
        probs = self.probs
        noise = self.draw_noise() if noise is None else noise
        return straight_through(self._winners(probs.detach() / noise), probs)


class _Normal(Distribution):
    """What normal distributions share: the mode is the mean, and the noise is standard normal."""

    def __init__(self, mean: th.Tensor):
        self._mean = mean

    @property
    def mean(self) -> th.Tensor:
        return self._mean

    @property
    def mode(self) -> th.Tensor:
        return self._mean

    def draw_noise(self) -> th.Tensor:
        """Standard normal numbers, (..., *event)."""
        return th.randn_like(self._mean.detach())


class DiagonalNormal(_Normal):
    """
    Normal distribution, independent per dimension; the latent state of V1. Samples are reparameterized.

    :param mean: (..., Z)
    :param std: positive, (..., Z)
    """

    def __init__(self, mean: th.Tensor, std: th.Tensor):
        super().__init__(mean)
        self.std = std

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        return self._mean + self.std * (self.draw_noise() if noise is None else noise)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        return (-0.5 * ((value - self._mean) / self.std).square() - self.std.log() - LOG_SQRT_2PI).sum(-1)

    def entropy(self) -> th.Tensor:
        return (self.std.log() + (LOG_SQRT_2PI + 0.5)).sum(-1)

    def kl(self, other: "DiagonalNormal") -> th.Tensor:
        """
        KL(self, other) in nats, summed over Z.

        :param other: (..., Z)
        :return: (...)
        """
        difference = self.std.log() - other.std.log()  # expm1 keeps small divergences exact
        shift = ((self.mean - other.mean) / other.std).square()
        return (0.5 * shift + 0.5 * th.expm1(2.0 * difference) - difference).sum(-1)


class UnitNormal(_Normal):
    """
    Normal of variance 1: squared error with its constant kept, so that losses are nats as in the original code.

    :param mean: (..., *event)
    :param event_dims: number of trailing dimensions that are one event
    """

    def __init__(self, mean: th.Tensor, event_dims: int = 0):
        super().__init__(mean)
        self._event = tuple(range(-event_dims, 0))

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        return self._mean + (self.draw_noise() if noise is None else noise)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        squared = (value - self._mean).square()
        if not self._event:
            return -0.5 * squared - LOG_SQRT_2PI
        size = math.prod(self._mean.shape[dim] for dim in self._event)
        return -0.5 * squared.sum(self._event) - size * LOG_SQRT_2PI

    def entropy(self) -> th.Tensor:
        size = math.prod(self._mean.shape[dim] for dim in self._event)
        return th.full_like(self.log_prob(self._mean).detach(), size * (LOG_SQRT_2PI + 0.5))


class SquaredError(_Normal):
    """
    Normal of variance ½ whose log-probability leaves its constant out: minus the squared error, summed over the event, as the
    reconstruction of DreamerV3 measures it.

    :param mean: (..., *event)
    :param event_dims: number of trailing dimensions that are one event
    """

    def __init__(self, mean: th.Tensor, event_dims: int = 0):
        super().__init__(mean)
        self._event = tuple(range(-event_dims, 0))

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        return self._mean + math.sqrt(0.5) * (self.draw_noise() if noise is None else noise)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        squared = (value - self._mean).square()
        return -(squared.sum(self._event) if self._event else squared)

    def entropy(self) -> th.Tensor:
        """Expected squared error of a sample, (...): the entropy without the same constant."""
        size = math.prod(self._mean.shape[dim] for dim in self._event)
        return self._mean.new_full(self._mean.shape[: self._mean.ndim - len(self._event)], 0.5 * size)


class Bernoulli(Distribution):
    """
    Yes or no. Labels may be soft: the discount head's target is gamma, not 1.

    :param logits: (..., *event)
    :param event_dims: number of trailing dimensions that are one event
    """

    def __init__(self, logits: th.Tensor, event_dims: int = 0):
        self.logits = logits
        self._event = tuple(range(-event_dims, 0))

    @property
    def mean(self) -> th.Tensor:
        """Probability of yes, (..., *event)."""
        return th.sigmoid(self.logits)

    @property
    def mode(self) -> th.Tensor:
        """1 where yes is more likely, else 0, (..., *event); no gradient."""
        return (self.logits > 0).to(self.logits.dtype)

    def draw_noise(self) -> th.Tensor:
        """Uniform numbers in [0, 1), (..., *event)."""
        return th.rand_like(self.logits.detach())

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Draw 0 or 1; no gradient.

        :param noise: uniform numbers in [0, 1), (..., *event)
        :return: (..., *event)
        """
        return ((self.draw_noise() if noise is None else noise) < self.mean).to(self.logits.dtype)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        Minus the cross entropy in nats.

        :param value: labels in [0, 1], (..., *event)
        :return: (...), summed over the event
        """
        return -self._cross_entropy(value)

    def entropy(self) -> th.Tensor:
        return self._cross_entropy(self.mean)

    def _cross_entropy(self, value: th.Tensor) -> th.Tensor:
        each = F.binary_cross_entropy_with_logits(self.logits, value, reduction="none")
        return each.sum(self._event) if self._event else each
