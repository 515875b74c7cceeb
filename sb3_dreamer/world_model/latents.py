"""Kinds of stochastic latent state: from network outputs to a distribution, its samples and its KL."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch as th
from torch.nn import functional as F

from sb3_dreamer.common.capabilities import declares
from sb3_dreamer.common.distributions import DiagonalNormal, Distribution, OneHotCategorical, UnimixCategorical
from sb3_dreamer.common.options import check_number, whole_number

#: How a network output becomes a standard deviation, before the smallest one is added
STD_ACTIVATIONS: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "sigmoid2": lambda raw: 2.0 * th.sigmoid(0.5 * raw),  # V2's code: 1 for an output of 0
    "softplus": F.softplus,  # V1
    "sigmoid": th.sigmoid,
}
LATENTS = ("categorical", "gaussian")
#: V2: classes of every categorical variable
DEFAULT_CLASSES = 32
#: Smallest width of a one-hot state at which sums of rows are faster than products
SPARSE_SIZE = 256
#: V2's code, for Gaussian latents
DEFAULT_MIN_STD, DEFAULT_STD_ACTIVATION = 0.1, "sigmoid2"


class Latent(ABC):
    """
    A kind of stochastic state, as the RSSM uses it.

    :param size: width Z of the flat sample
    :param parameter_size: width P of the network output that parameterizes it
    :param noise_size: width of the noise of one sample
    """

    def __init__(self, size: int, parameter_size: int, noise_size: int):
        self.size = size
        self.parameter_size = parameter_size
        self.noise_size = noise_size

    @abstractmethod
    def distribution(self, parameters: th.Tensor) -> Distribution:
        """Return the distribution that parameters (..., P) stand for."""

    @abstractmethod
    def draw_noise(self, like: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        """
        Noise for :meth:`sample`.

        :param like: parameters of the wanted shape, type and device, (..., P)
        :param generator: where the numbers come from; None is torch's global one
        :return: (..., noise_size)
        """

    @abstractmethod
    def sample(self, parameters: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """
        A sample that carries gradients.

        :param parameters: (..., P)
        :param noise: (..., noise_size), or None to draw it
        :return: flat sample, (..., Z)
        """

    @abstractmethod
    def mode(self, parameters: th.Tensor) -> th.Tensor:
        """Return the most likely state, flat, (..., Z)."""

    def places(self, sample: th.Tensor) -> th.Tensor | None:
        """
        Positions of the ones in a one-hot sample (..., Z), if products with the sample are faster as sums of rows.

        :return: positions within 0 ... Z - 1, (..., S), or None if the sample is to be used as it is
        """
        return None

    @abstractmethod
    def kl(self, lhs: th.Tensor, rhs: th.Tensor) -> th.Tensor:
        """
        KL(lhs, rhs) in nats, summed over the variables.

        :param lhs: parameters, (..., P)
        :param rhs: parameters, (..., P)
        :return: (...)
        """

    @abstractmethod
    def kl_per_variable(self, lhs: th.Tensor, rhs: th.Tensor) -> th.Tensor:
        """Return the terms of :meth:`kl` for each variable, (..., S)."""

    @abstractmethod
    def entropy(self, parameters: th.Tensor) -> th.Tensor:
        """Return the entropy in nats, summed over the variables, (...)."""


class CategoricalLatent(Latent):
    """
    S independent categorical variables of K classes each (V2, section 2.1); the sample is their flat one-hot vectors.

    Logits are used as they come: no temperature, no mixture with the uniform distribution. Samples are straight-through.
    Parameters are the flat logits (..., S * K), variables major; noise has the same shape.

    :param variables: S
    :param classes: K
    """

    #: :mod:`~sb3_dreamer.world_model.scan` may replace ``sample`` and ``distribution`` of this class
    fast_scan = True
    #: ``sample`` and ``mode`` return one-hot vectors
    one_hot_samples = True

    def __init__(self, variables: int, classes: int):
        if variables < 1 or classes < 2:
            raise ValueError(f"A categorical latent needs at least 1 variable of 2 classes, not {variables} of {classes}.")
        self.variables = variables
        self.classes = classes
        super().__init__(*[variables * classes] * 3)

    def distribution(self, parameters: th.Tensor) -> OneHotCategorical:
        """Return one categorical per variable, (..., S, K), of flat logits, (..., S * K)."""
        return OneHotCategorical(parameters.unflatten(-1, (self.variables, self.classes)))

    def draw_noise(self, like: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        return OneHotCategorical.noise_like(like, generator)

    def sample(self, parameters: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        if noise is not None:
            noise = noise.unflatten(-1, (self.variables, self.classes))
        return self.distribution(parameters).sample(noise).flatten(-2)

    def mode(self, parameters: th.Tensor) -> th.Tensor:
        return self.distribution(parameters).mode.flatten(-2)

    def places(self, sample: th.Tensor) -> th.Tensor | None:
        # With a gradient the zeros count, too; on a GPU and in small products nothing is gained
        if sample.requires_grad or sample.device.type != "cpu" or self.size < SPARSE_SIZE:
            return None
        if not declares(self, "one_hot_samples", "sample", "mode", "distribution"):
            return None
        if not sample[..., : self.classes].sum(-1).min() > 0.0:  # an initial state has no ones
            return None
        first = th.arange(0, self.size, self.classes, device=sample.device)
        return sample.unflatten(-1, (self.variables, self.classes)).argmax(-1).add_(first)

    def kl(self, lhs: th.Tensor, rhs: th.Tensor) -> th.Tensor:
        return self._kl_terms(lhs, rhs).sum((-2, -1))

    def kl_per_variable(self, lhs: th.Tensor, rhs: th.Tensor) -> th.Tensor:
        return self._kl_terms(lhs, rhs).sum(-1)

    def _kl_terms(self, lhs: th.Tensor, rhs: th.Tensor) -> th.Tensor:
        first, second = self.distribution(lhs), self.distribution(rhs)
        return first.probs * (first.log_probs - second.log_probs)

    def entropy(self, parameters: th.Tensor) -> th.Tensor:
        return self.distribution(parameters).entropy().sum(-1)


class UnimixLatent(CategoricalLatent):
    """
    Categorical variables of which a share is uniform (V3): no class is ever impossible, and no KL is infinite.

    Samples, their straight-through gradients, KL and entropy are those of the mixture; parameters remain the raw logits.

    :param variables: S
    :param classes: K
    :param unimix: share of the uniform distribution, in [0, 1) (V3: 0.01)
    """

    #: The scan of V2 knows no mixture; samples and modes are one-hot as before
    fast_scan, one_hot_samples = False, True

    def __init__(self, variables: int, classes: int, unimix: float):
        super().__init__(variables, classes)
        check_number("unimix", unimix, 0.0, 1.0 - 1e-6)
        self.unimix = unimix

    def distribution(self, parameters: th.Tensor) -> UnimixCategorical:
        return UnimixCategorical(parameters.unflatten(-1, (self.variables, self.classes)), self.unimix)


class GaussianLatent(Latent):
    """
    Independent normal variables (V1, section 4), the paper's ablation of the categorical ones in V2.

    Parameters (..., 2 Z) are the means and then the raw standard deviations; noise (..., Z) is standard normal.

    :param size: Z
    :param min_std: added to the activated standard deviation (V1 and V2's code: 0.1)
    :param std_activation: key of ``STD_ACTIVATIONS`` (V2's code: sigmoid2; V1: softplus)
    """

    def __init__(self, size: int, min_std: float, std_activation: str):
        if size < 1:
            raise ValueError(f"A Gaussian latent needs at least 1 variable, not {size}.")
        check_number("latent_min_std", min_std, 1e-6)
        if std_activation not in STD_ACTIVATIONS:
            raise ValueError(f"Unknown latent_std_activation {std_activation!r}; known are {sorted(STD_ACTIVATIONS)}.")
        self.min_std = min_std
        self.std_activation = std_activation
        super().__init__(size, 2 * size, size)

    def distribution(self, parameters: th.Tensor) -> DiagonalNormal:
        mean, raw = parameters.chunk(2, dim=-1)
        return DiagonalNormal(mean, STD_ACTIVATIONS[self.std_activation](raw) + self.min_std)

    def draw_noise(self, like: th.Tensor, generator: th.Generator | None = None) -> th.Tensor:
        return like.new_empty(*like.shape[:-1], self.noise_size, requires_grad=False).normal_(generator=generator)

    def sample(self, parameters: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        return self.distribution(parameters).sample(noise)

    def mode(self, parameters: th.Tensor) -> th.Tensor:
        return self.distribution(parameters).mode

    def kl(self, lhs: th.Tensor, rhs: th.Tensor) -> th.Tensor:
        return self.distribution(lhs).kl(self.distribution(rhs))

    def kl_per_variable(self, lhs: th.Tensor, rhs: th.Tensor) -> th.Tensor:
        # Each variable is one distribution
        first, second = ([part[..., None] for part in parameters.chunk(2, dim=-1)] for parameters in (lhs, rhs))
        return self.distribution(th.cat(first, dim=-1)).kl(self.distribution(th.cat(second, dim=-1)))

    def entropy(self, parameters: th.Tensor) -> th.Tensor:
        return self.distribution(parameters).entropy()


def make_latent(
    kind: str, size: int, classes: int | None, min_std: float | None, std_activation: str | None
) -> CategoricalLatent | GaussianLatent:
    """
    A latent from the policy's options. Options of the other kind must be None.

    :param kind: ``"categorical"`` or ``"gaussian"``
    :param size: number of variables S
    :param classes: K, of categorical variables; None is 32
    :param min_std: of Gaussian variables; None is 0.1
    :param std_activation: of Gaussian variables; None is ``"sigmoid2"``
    :return: the latent
    :raises ValueError: for an unknown kind, and for options of the other kind
    """
    if kind not in LATENTS:
        raise ValueError(f"Unknown latent {kind!r}; known are {list(LATENTS)}.")
    size = whole_number("stochastic_size", size, 1)
    if kind == "categorical":
        given = {"latent_min_std": min_std, "latent_std_activation": std_activation}
        _refuse(given, "categorical variables have no standard deviation: leave it out or set latent='gaussian'")
        return CategoricalLatent(size, whole_number("stochastic_classes", DEFAULT_CLASSES if classes is None else classes, 2))
    _refuse({"stochastic_classes": classes}, "Gaussian variables have no classes: leave it out or set latent='categorical'")
    return GaussianLatent(
        size,
        DEFAULT_MIN_STD if min_std is None else min_std,
        DEFAULT_STD_ACTIVATION if std_activation is None else std_activation,
    )


def _refuse(options: Mapping[str, object], reason: str) -> None:
    """Raise one error that names the options that were given."""
    given = ", ".join(f"{name}={value!r}" for name, value in options.items() if value is not None)
    if given:
        raise ValueError(f"{given} was given, but {reason}.")
