"""Kinds of stochastic latent state: from network outputs to a distribution, its samples and its KL."""

import torch as th

from sb3_dreamer.common.distributions import OneHotCategorical


class CategoricalLatent:
    """
    S independent categorical variables of K classes each (V2, section 2.1); the sample is their flat one-hot vectors.

    Logits are used as they come: no temperature, no mixture with the uniform distribution.

    :param variables: S
    :param classes: K
    """

    def __init__(self, variables: int = 32, classes: int = 32):
        if variables < 1 or classes < 2:
            raise ValueError(f"A categorical latent needs at least 1 variable of 2 classes, not {variables} of {classes}.")
        self.variables = variables
        self.classes = classes
        self.size = variables * classes  # Z
        self.parameter_size = variables * classes  # outputs of the layer that parameterises it

    def distribution(self, parameters: th.Tensor) -> OneHotCategorical:
        """
        :param parameters: flat logits, (..., S * K), variables major
        :return: one categorical per variable, (..., S, K)
        """
        return OneHotCategorical(parameters.unflatten(-1, (self.variables, self.classes)))

    def draw_noise(self, like: th.Tensor) -> th.Tensor:
        """
        Noise for :meth:`sample`.

        :param like: parameters of the wanted shape, type and device, (..., S * K)
        :return: (..., S * K)
        """
        return OneHotCategorical.noise_like(like)

    def sample(self, parameters: th.Tensor, noise: th.Tensor | None = None) -> th.Tensor:
        """
        Straight-through sample.

        :param parameters: (..., S * K)
        :param noise: (..., S * K), or None to draw it
        :return: flat sample, (..., Z)
        """
        if noise is not None:
            noise = noise.unflatten(-1, (self.variables, self.classes))
        return self.distribution(parameters).sample(noise).flatten(-2)

    def mode(self, parameters: th.Tensor) -> th.Tensor:
        """
        The most likely class of every variable.

        :param parameters: (..., S * K)
        :return: flat, (..., Z)
        """
        return self.distribution(parameters).mode.flatten(-2)

    def kl(self, lhs: th.Tensor, rhs: th.Tensor) -> th.Tensor:
        """
        KL(lhs, rhs) in nats, summed over the variables.

        :param lhs: parameters, (..., S * K)
        :param rhs: parameters, (..., S * K)
        :return: (...)
        """
        first, second = self.distribution(lhs), self.distribution(rhs)
        return (first.probs * (first.log_probs - second.log_probs)).sum((-2, -1))

    def entropy(self, parameters: th.Tensor) -> th.Tensor:
        """
        Entropy in nats, summed over the variables.

        :param parameters: (..., S * K)
        :return: (...)
        """
        return self.distribution(parameters).entropy().sum(-1)
