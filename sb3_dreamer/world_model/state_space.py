"""What every recurrent state-space model has: states, single steps, and the filter of whole sequences."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_dreamer.common.one_hot import OneHotFeatures
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.world_model.latents import Latent


class ObservedSequence(NamedTuple):
    """Latent states of a replayed sequence."""

    states: LatentState  # posterior states, (T, B, ...)
    posterior: th.Tensor  # parameters of q(z_t | h_t, o_t), (T, B, P)
    prior: th.Tensor  # parameters of p(z_t | h_t), (T, B, P)


#: States h and z and posterior parameters of every step, (T, B, ...)
ScannedSteps = tuple[th.Tensor, th.Tensor, th.Tensor]


class StateSpaceModel(nn.Module, ABC):
    """
    Recurrent state-space model (V2, section 2.1, eq. 1)::

        h_t = f(h_{t-1}, z_{t-1}, a_{t-1})     recurrent model
        z_t ~ q(z_t | h_t, o_t)                representation model (posterior)
        z_t ~ p(z_t | h_t)                     transition predictor (prior)

    A subclass has the layers.

    :param latent: kind of stochastic state
    :param action_size: A
    :param deterministic_size: D
    """

    #: ``_observe`` may compute products of the inputs ahead of the steps, instead of calling ``_filter``; see subclasses
    splits_inputs = False

    def __init__(self, latent: Latent, action_size: int, deterministic_size: int):
        super().__init__()
        self.latent = latent
        self.action_size = action_size
        self.deterministic_size = deterministic_size
        self.features_size = latent.size + deterministic_size

    @property
    def weight(self) -> th.Tensor:
        """One of the weights: new tensors get its device and type."""
        return next(self.parameters())

    def initial_state(self, batch_size: int) -> LatentState:
        """Return the state before the first step of ``batch_size`` episodes: zeros, (n, ...)."""
        like = self.weight
        return LatentState(like.new_zeros(batch_size, self.deterministic_size), like.new_zeros(batch_size, self.latent.size))

    @abstractmethod
    def one_hot(self, state: LatentState) -> OneHotFeatures | None:
        """
        Features of a large one-hot state without its zeros.

        :param state: (..., D), (..., Z)
        :return: (..., F), or None where dense features are to be used: with a gradient, small, on a GPU
        """

    @abstractmethod
    def advance(self, state: LatentState, actions: th.Tensor, one_hot: OneHotFeatures | None = None) -> th.Tensor:
        """
        Recurrent model: h_t from s_{t-1} and the action that was taken there.

        :param state: (n, ...)
        :param actions: (n, A)
        :param one_hot: features of this state, if known
        :return: (n, D)
        """

    @abstractmethod
    def prior(self, deterministic: th.Tensor) -> th.Tensor:
        """Transition predictor: map h_t, (..., D), to the parameters of p(z_t | h_t), (..., P)."""

    @abstractmethod
    def represent(self, deterministic: th.Tensor, embeddings: th.Tensor) -> th.Tensor:
        """Representation model: map h_t, (n, D), and embeddings, (n, E), to the parameters of q(z_t | h_t, o_t), (n, P)."""

    def imagine_step(
        self,
        state: LatentState,
        actions: th.Tensor,
        noise: th.Tensor | None = None,
        one_hot: OneHotFeatures | None = None,
    ) -> LatentState:
        """
        One step without an observation.

        :param state: (n, ...)
        :param actions: (n, A)
        :param noise: for the latent's sample, (n, noise size), or None to draw it
        :param one_hot: features of this state, if known
        :return: (n, ...)
        """
        deterministic = self.advance(state, actions, one_hot)
        return LatentState(deterministic, self.latent.sample(self.prior(deterministic), noise))

    def observe_step(
        self,
        state: LatentState,
        actions: th.Tensor,
        embeddings: th.Tensor,
        episode_starts: th.Tensor,
        noise: th.Tensor | None = None,
        sample: bool = True,
    ) -> LatentState:
        """
        One step with an observation, for acting.

        :param state: (n, ...)
        :param actions: that led to the observation, (n, A)
        :param embeddings: of the observation, (n, E)
        :param episode_starts: bool, (n,); True resets state and action
        :param noise: for the latent's sample, (n, noise size), or None to draw it
        :param sample: take the posterior's mode instead if False
        :return: (n, ...)
        """
        deterministic, parameters = self._filter(state, actions, embeddings, episode_starts)
        return LatentState(deterministic, self.latent.sample(parameters, noise) if sample else self.latent.mode(parameters))

    def _filter(
        self, state: LatentState, actions: th.Tensor, embeddings: th.Tensor, episode_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """Deterministic state and posterior parameters of one step."""
        state, actions = reset(state, episode_starts), actions.masked_fill(episode_starts[:, None], 0.0)
        deterministic = self.advance(state, actions)
        return deterministic, self.represent(deterministic, embeddings)

    def observe(
        self,
        embeddings: th.Tensor,
        actions: th.Tensor,
        episode_starts: th.Tensor,
        state: LatentState | None = None,
        noise: th.Tensor | None = None,
    ) -> ObservedSequence:
        """
        Filter whole sequences. Only what depends on the previous step is computed step by step: the products of the inputs are
        computed before the scan, the prior after it.

        :param embeddings: (T, B, E)
        :param actions: that led to each step, (T, B, A)
        :param episode_starts: bool, (T, B); True resets state and action before the step
        :param state: before the first step, (B, ...); None is the initial state
        :param noise: for the posterior's samples, (T, B, noise size), or None to draw it
        :return: states and distribution parameters of every step
        :raises ValueError: if the inputs disagree in time or batch
        """
        if embeddings.shape[:2] != actions.shape[:2] or actions.shape[:2] != episode_starts.shape:
            raise ValueError(
                f"Embeddings {tuple(embeddings.shape)}, actions {tuple(actions.shape)} and episode_starts "
                f"{tuple(episode_starts.shape)} must agree in time and batch."
            )
        state = self.initial_state(embeddings.shape[1]) if state is None else state
        if noise is None:
            like = self.weight.new_empty(*embeddings.shape[:2], self.latent.parameter_size)  # never in 16 bit
            noise = self.latent.draw_noise(like)
        deterministics, stochastics, parameters = self._observe(embeddings, actions, episode_starts, state, noise)
        return ObservedSequence(LatentState(deterministics, stochastics), parameters, self.prior(deterministics))

    @abstractmethod
    def _observe(
        self,
        embeddings: th.Tensor,
        actions: th.Tensor,
        episode_starts: th.Tensor,
        state: LatentState,
        noise: th.Tensor,
    ) -> ScannedSteps:
        """All steps of :meth:`observe`, from the state before the first one."""


def stacked(steps: list[ScannedSteps]) -> ScannedSteps:
    """Join the results of single steps along a new first axis."""
    deterministics, stochastics, parameters = (th.stack(values) for values in zip(*steps, strict=True))
    return deterministics, stochastics, parameters


def reset(state: LatentState, episode_starts: th.Tensor) -> LatentState:
    """Zero the rows of a state (n, ...) where ``episode_starts``, (n,), is True; not even a NaN of the past remains."""
    mask = episode_starts[:, None]
    return LatentState(state.deterministic.masked_fill(mask, 0.0), state.stochastic.masked_fill(mask, 0.0))
