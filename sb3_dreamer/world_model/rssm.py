"""The recurrent state-space model: steps of the latent state, with and without an observation."""

from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.capabilities import declares, is_plain
from sb3_dreamer.common.layers import LAYER_NORM_EPSILON, MLP, LayerNormGRUCell, LayerOptions
from sb3_dreamer.common.one_hot import OneHotFeatures, sum_rows
from sb3_dreamer.common.precision import cast_once, full
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.world_model import scan
from sb3_dreamer.world_model.latents import Latent

#: States h and z and posterior parameters of every step, (T, B, ...)
ScannedSteps = tuple[th.Tensor, th.Tensor, th.Tensor]


class ObservedSequence(NamedTuple):
    """Latent states of a replayed sequence."""

    states: LatentState  # posterior states, (T, B, ...)
    posterior: th.Tensor  # parameters of q(z_t | h_t, o_t), (T, B, P)
    prior: th.Tensor  # parameters of p(z_t | h_t), (T, B, P)


class RSSM(nn.Module):
    """
    Recurrent state-space model (V2, section 2.1, eq. 1)::

        h_t = f(h_{t-1}, z_{t-1}, a_{t-1})     recurrent model
        z_t ~ q(z_t | h_t, o_t)                representation model (posterior)
        z_t ~ p(z_t | h_t)                     transition predictor (prior)

    :param latent: kind of stochastic state
    :param action_size: A
    :param embedding_size: E
    :param deterministic_size: D
    :param layers: the layers around the cell, which have one width H; the cell itself always has its layer norm
    """

    #: ``observe`` may compute products of the inputs ahead of the steps, instead of calling ``advance``
    splits_inputs = True
    #: :mod:`~sb3_dreamer.world_model.scan` may replace ``_scan``, ``transition`` and ``posterior`` of this class
    fast_scan = True

    def __init__(self, latent: Latent, action_size: int, embedding_size: int, deterministic_size: int, layers: LayerOptions):
        super().__init__()
        (hidden_size,), activation_fn, layer_norm = layers
        self.latent = latent
        self.action_size = action_size
        self.deterministic_size = deterministic_size
        self.features_size = latent.size + deterministic_size
        self.activation = activation_fn()
        self.input = nn.Linear(latent.size + action_size, hidden_size)
        self.input_norm = _norm(hidden_size, layer_norm)
        self.cell = LayerNormGRUCell(hidden_size, deterministic_size)
        self.prior_hidden = MLP(deterministic_size, layers)
        self.prior_output = nn.Linear(hidden_size, latent.parameter_size)
        self.posterior_hidden = nn.Linear(deterministic_size + embedding_size, hidden_size)
        self.posterior_norm = _norm(hidden_size, layer_norm)
        self.posterior_output = nn.Linear(hidden_size, latent.parameter_size)

    def initial_state(self, batch_size: int) -> LatentState:
        """Return the state before the first step of ``batch_size`` episodes: zeros, (n, ...)."""
        like = self.input.weight
        return LatentState(like.new_zeros(batch_size, self.deterministic_size), like.new_zeros(batch_size, self.latent.size))

    def one_hot(self, state: LatentState) -> OneHotFeatures | None:
        """
        Features of a large one-hot state without its zeros.

        :param state: (..., D), (..., Z)
        :return: (..., F), or None where dense features are to be used: with a gradient, small, on a GPU
        """
        places = None if state.deterministic.requires_grad else self.latent.places(state.stochastic)
        # The weight is read instead of calling the layer, so the layer must do nothing else
        return OneHotFeatures(places, *state) if places is not None and is_plain(self.input, nn.Linear) else None

    def advance(self, state: LatentState, actions: th.Tensor, one_hot: OneHotFeatures | None = None) -> th.Tensor:
        """
        Recurrent model: h_t from s_{t-1} and the action that was taken there.

        :param state: (n, ...)
        :param actions: (n, A)
        :param one_hot: features of this state, if known
        :return: (n, D)
        """
        if one_hot is not None:
            of_latent, of_action = self.input.weight.split([self.latent.size, self.action_size], dim=1)
            hidden = F.linear(actions, of_action, self.input.bias).add_(sum_rows(of_latent, one_hot.places))
        else:
            hidden = self.input(th.cat([state.stochastic, actions], dim=-1))
        return self.transition(hidden, state.deterministic)

    def transition(self, hidden: th.Tensor, deterministic: th.Tensor) -> th.Tensor:
        """Recurrent model after its input layer: map the layer's output, (n, H), and h_{t-1}, (n, D), to h_t, (n, D)."""
        return self.cell(self.activation(self.input_norm(hidden)), deterministic)

    def posterior(self, hidden: th.Tensor) -> th.Tensor:
        """Representation model after its hidden layer: map (n, H) to the parameters of q(z_t | h_t, o_t), (n, P)."""
        return full(self.posterior_output(self.activation(self.posterior_norm(hidden))))

    def prior(self, deterministic: th.Tensor) -> th.Tensor:
        """Transition predictor: map h_t, (..., D), to the parameters of p(z_t | h_t), (..., P)."""
        return full(self.prior_output(self.prior_hidden(deterministic)))

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
        return deterministic, self.posterior(self.posterior_hidden(th.cat([deterministic, embeddings], dim=-1)))

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
            like = self.input.weight.new_empty(*embeddings.shape[:2], self.latent.parameter_size)  # never in 16 bit
            noise = self.latent.draw_noise(like)
        if self._splits_inputs():
            action_weight = self.input.weight[:, self.latent.size :]
            embedding_weight = self.posterior_hidden.weight[:, self.deterministic_size :]
            from_actions = F.linear(actions.masked_fill(episode_starts[..., None], 0.0), action_weight, self.input.bias)
            from_embeddings = F.linear(embeddings, embedding_weight, self.posterior_hidden.bias)
            inputs = scan.ScanInputs(episode_starts, from_actions, from_embeddings, noise)
            scan_steps = self._fast_scan if self.uses_fast_scan else self._scan
        else:
            inputs, scan_steps = scan.ScanInputs(episode_starts, actions, embeddings, noise), self._scan_whole_layers
        deterministics, stochastics, parameters = scan_steps(inputs, state)
        return ObservedSequence(LatentState(deterministics, stochastics), parameters, self.prior(deterministics))

    @property
    def uses_fast_scan(self) -> bool:
        """Whether every part declares that :mod:`~sb3_dreamer.world_model.scan` computes the same as its methods."""
        return (
            self._splits_inputs()
            and declares(self, "fast_scan", "_scan", "transition", "posterior")
            and declares(self.latent, "fast_scan", "sample", "distribution")
            and declares(self.cell, "fast_scan", "forward")
            and is_plain(self.activation, nn.ELU)
            and bool(self.activation.alpha == 1.0)
            and is_plain(self.posterior_output, nn.Linear)
            and all(is_plain(norm, nn.Identity) for norm in (self.input_norm, self.posterior_norm))
        )

    def _splits_inputs(self) -> bool:
        """Whether the layers that take actions and embeddings need not be called as a whole, in each step."""
        plain = is_plain(self.input, nn.Linear) and is_plain(self.posterior_hidden, nn.Linear)
        return plain and declares(self, "splits_inputs", "advance", "_filter")

    def _scan(self, inputs: scan.ScanInputs, state: LatentState) -> ScannedSteps:
        """Step by step with autograd's gradient, from the products of the inputs."""
        latent_weight = cast_once(self.input.weight[:, : self.latent.size])
        state_weight = cast_once(self.posterior_hidden.weight[:, : self.deterministic_size])
        steps = []
        # Unbound, not indexed step by step: the gradient of every index would be as large as the whole sequence
        for starts, from_action, from_embedding, noise in zip(*(part.unbind() for part in inputs), strict=True):
            state = reset(state, starts)
            hidden = F.linear(state.stochastic, latent_weight) + from_action
            deterministic = self.transition(hidden, state.deterministic)  # h_t
            parameters = self.posterior(F.linear(deterministic, state_weight) + from_embedding)
            state = LatentState(deterministic, self.latent.sample(parameters, noise))  # z_t ~ q
            steps.append((*state, parameters))
        return _stacked(steps)

    def _scan_whole_layers(self, inputs: scan.ScanInputs, state: LatentState) -> ScannedSteps:
        """Like :meth:`_scan`, from actions and embeddings, where their layers or ``advance`` are not as in this class."""
        steps = []
        for starts, actions, embeddings, noise in zip(*(part.unbind() for part in inputs), strict=True):
            deterministic, parameters = self._filter(state, actions, embeddings, starts)
            state = LatentState(deterministic, self.latent.sample(parameters, noise))
            steps.append((*state, parameters))
        return _stacked(steps)

    def _fast_scan(self, inputs: scan.ScanInputs, state: LatentState) -> ScannedSteps:
        """
        The same as :meth:`_scan`, in less time. Always in float32: a step in 16 bit would need six casts beside its four
        products.
        """
        weights = scan.ScanWeights(
            self.input.weight[:, : self.latent.size],
            self.cell.linear.weight,
            self.cell.linear.bias,
            self.cell.norm.weight,
            self.cell.norm.bias,
            self.posterior_hidden.weight[:, : self.deterministic_size],
            self.posterior_output.weight,
            self.posterior_output.bias,
        )
        options = scan.ScanOptions(self.latent.classes, self.cell.norm.eps)  # type: ignore[attr-defined]
        with th.autocast(inputs.noise.device.type, enabled=False):
            projections = dict(from_actions=full(inputs.from_actions), from_embeddings=full(inputs.from_embeddings))
            return scan.observe(weights, inputs._replace(**projections), LatentState(*map(full, state)), options)


def _stacked(steps: list[ScannedSteps]) -> ScannedSteps:
    deterministics, stochastics, parameters = (th.stack(values) for values in zip(*steps, strict=True))
    return deterministics, stochastics, parameters


def _norm(size: int, layer_norm: bool) -> nn.Module:
    return nn.LayerNorm(size, eps=LAYER_NORM_EPSILON) if layer_norm else nn.Identity()


def reset(state: LatentState, episode_starts: th.Tensor) -> LatentState:
    """Zero the rows of a state (n, ...) where ``episode_starts``, (n,), is True; not even a NaN of the past remains."""
    mask = episode_starts[:, None]
    return LatentState(state.deterministic.masked_fill(mask, 0.0), state.stochastic.masked_fill(mask, 0.0))
