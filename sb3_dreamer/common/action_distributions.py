"""Distributions over [-1, 1]^A for actors of continuous actions; the event is one action vector (A)."""

import math

import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.distributions import LOG_SQRT_2PI, DiagonalNormal, Distribution


def clip_value(x: th.Tensor, limit: float) -> th.Tensor:
    """
    Clip in value only: the gradient passes as if nothing were clipped.

    :param x: any tensor
    :param limit: largest absolute value
    :return: the same shape
    """
    clipped = x.detach().clamp(-limit, limit)
    return clipped + (x - x.detach()) if x.requires_grad else clipped


class TruncatedNormal(Distribution):
    """
    Normal distribution restricted to [-1, 1], independent per dimension; the actor for continuous actions.

    The original code samples with TensorFlow Probability, whose registered gradient treats the standardized sample z as a
    constant: dx/dloc = 1, dx/dscale = z. This is the default. In the exact gradient z depends on both through the bounds; it
    is smaller, up to six times in the norm of the actor's gradient.

    :param loc: location, in [-1, 1], (..., A)
    :param scale: positive, (..., A)
    :param exact_gradient: differentiate the inverse CDF instead
    """

    #: Samples stay this far inside the bounds, as in the original code
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
        return self.loc + self.scale * (_normal_pdf(self._lower) - _normal_pdf(self._upper)) / self._mass

    def draw_noise(self) -> th.Tensor:
        """Uniform numbers in [0, 1), (..., A)."""
        return th.rand_like(self.loc.detach())

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Draw a reparameterized sample by the inverse CDF, clipped to the bounds in value only.

        :param noise: uniform numbers, (..., A)
        :return: (..., A)
        """
        noise = self.draw_noise() if noise is None else noise
        limits = th.finfo(noise.dtype)  # rounding must not make the quantile of a narrow distribution infinite
        z = th.special.ndtri((self._cdf_lower + noise * self._mass).clamp(limits.tiny, 1.0 - limits.eps))
        x = self.loc + self.scale * (z if self.exact_gradient else z.detach())
        return clip_value(x, 1.0 - self.margin)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        z = (value - self.loc) / self.scale
        return (-0.5 * z.square() - LOG_SQRT_2PI - self.scale.log() - self._mass.log()).sum(-1)

    def entropy(self) -> th.Tensor:
        edges = self._lower * _normal_pdf(self._lower) - self._upper * _normal_pdf(self._upper)
        return (LOG_SQRT_2PI + 0.5 + self.scale.log() + self._mass.log() + 0.5 * edges / self._mass).sum(-1)


class _FunctionOfNormal(Distribution):
    """What functions of a normal variable share: that variable and its noise."""

    def __init__(self, mean: th.Tensor, std: th.Tensor):
        self.normal = DiagonalNormal(mean, std)

    def draw_noise(self) -> th.Tensor:
        """Standard normal numbers, (..., A)."""
        return self.normal.draw_noise()


class TanhNormal(_FunctionOfNormal):
    """
    Hyperbolic tangent of a normal variable, independent per dimension; the actor of V1. Samples are reparameterized.

    Entropy and mean have no closed form. The original code estimates the entropy from samples; here both are integrals over
    the normal variable by a fixed rule, without noise and differentiable.

    :param mean: of the normal variable, (..., A)
    :param std: of the normal variable, positive, (..., A)
    """

    #: The rule: equally spaced points up to this number of standard deviations. Tanh has poles beside the real axis, for
    #: which this converges faster than Gauss-Hermite: errors of 2e-6 nats per dimension at std 1, 1e-3 at std 5
    points, reach = 32, 5.0

    @property
    def mode(self) -> th.Tensor:
        """Tanh of the normal's mode, (..., A), as usual. The density itself may have two modes, at the bounds."""
        return th.tanh(self.normal.mean)

    @property
    def mean(self) -> th.Tensor:
        points, weights = self._rule()
        return (th.tanh(points) * weights).sum(-1)

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        return th.tanh(self.normal.sample(noise))

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        """
        Log-density; values at the bounds count as the nearest numbers inside.

        :param value: (..., A), in [-1, 1]
        :return: (...), summed over A
        """
        limit = 1.0 - 0.5 * th.finfo(value.dtype).eps
        x = th.atanh(value.clamp(-limit, limit))
        return self.normal.log_prob(x) - _log_tanh_slope(x).sum(-1)

    def entropy(self) -> th.Tensor:
        points, weights = self._rule()
        return self.normal.entropy() + (_log_tanh_slope(points) * weights).sum((-2, -1))

    def _rule(self) -> tuple[th.Tensor, th.Tensor]:
        """Values of the normal variable (..., A, points) and their weights (points)."""
        mean, std = self.normal.mean, self.normal.std
        steps = th.linspace(-self.reach, self.reach, self.points, dtype=mean.dtype, device=mean.device)
        return mean[..., None] + std[..., None] * steps, th.softmax(-0.5 * steps.square(), dim=0)


class ClippedNormal(_FunctionOfNormal):
    """
    Normal distribution whose samples are clipped to the bounds in value only; probabilities and entropy are the normal's.

    :param loc: location, (..., A)
    :param scale: positive, (..., A)
    """

    def __init__(self, loc: th.Tensor, scale: th.Tensor):
        super().__init__(loc, scale)
        self.loc = loc
        self.scale = scale

    @property
    def mode(self) -> th.Tensor:
        """The location within the bounds, (..., A)."""
        return self.loc.clamp(-1.0, 1.0)

    @property
    def mean(self) -> th.Tensor:
        """Expected value of the clipped sample, (..., A)."""
        lower, upper = (-1.0 - self.loc) / self.scale, (1.0 - self.loc) / self.scale
        below, above = th.special.ndtr(lower), th.special.ndtr(-upper)
        inside = self.loc * (1.0 - below - above) + self.scale * (_normal_pdf(lower) - _normal_pdf(upper))
        return inside + above - below

    def sample(self, noise: th.Tensor | None = None) -> th.Tensor:
        return clip_value(self.normal.sample(noise), 1.0)

    def log_prob(self, value: th.Tensor) -> th.Tensor:
        return self.normal.log_prob(value)

    def entropy(self) -> th.Tensor:
        return self.normal.entropy()


def _log_tanh_slope(x: th.Tensor) -> th.Tensor:
    """``log(1 - tanh(x) ** 2)`` without rounding to the logarithm of 0."""
    return 2.0 * (math.log(2.0) - x - F.softplus(-2.0 * x))


def _normal_pdf(x: th.Tensor) -> th.Tensor:
    return th.exp(-0.5 * x.square() - LOG_SQRT_2PI)
