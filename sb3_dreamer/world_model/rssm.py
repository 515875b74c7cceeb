"""The recurrent state-space model: steps of the latent state, with and without an observation."""

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
from sb3_dreamer.world_model.state_space import ScannedSteps, StateSpaceModel, reset, stacked


class RSSM(StateSpaceModel):
    """
    The recurrent state-space model of V1 and V2 (V2, section 2.1, eq. 1): one layer, a GRU cell, two layers each for posterior
    and prior.

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
        super().__init__(latent, action_size, deterministic_size)
        (hidden_size,), activation_fn, layer_norm = layers
        self.activation = activation_fn()
        self.input = nn.Linear(latent.size + action_size, hidden_size)
        self.input_norm = _norm(hidden_size, layer_norm)
        self.cell = LayerNormGRUCell(hidden_size, deterministic_size)
        self.prior_hidden = MLP(deterministic_size, layers)
        self.prior_output = nn.Linear(hidden_size, latent.parameter_size)
        self.posterior_hidden = nn.Linear(deterministic_size + embedding_size, hidden_size)
        self.posterior_norm = _norm(hidden_size, layer_norm)
        self.posterior_output = nn.Linear(hidden_size, latent.parameter_size)

    @property
    def weight(self) -> th.Tensor:
        return self.input.weight

    def one_hot(self, state: LatentState) -> OneHotFeatures | None:
        places = None if state.deterministic.requires_grad else self.latent.places(state.stochastic)
        # The weight is read instead of calling the layer, so the layer must do nothing else
        return OneHotFeatures(places, *state) if places is not None and is_plain(self.input, nn.Linear) else None

    def advance(self, state: LatentState, actions: th.Tensor, one_hot: OneHotFeatures | None = None) -> th.Tensor:
        """Recurrent model: see :meth:`StateSpaceModel.advance`."""
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

    def represent(self, deterministic: th.Tensor, embeddings: th.Tensor) -> th.Tensor:
        return self.posterior(self.posterior_hidden(th.cat([deterministic, embeddings], dim=-1)))

    def _observe(
        self,
        embeddings: th.Tensor,
        actions: th.Tensor,
        episode_starts: th.Tensor,
        state: LatentState,
        noise: th.Tensor,
    ) -> ScannedSteps:
        if not self._splits_inputs():
            return self._scan_whole_layers(scan.ScanInputs(episode_starts, actions, embeddings, noise), state)
        action_weight = self.input.weight[:, self.latent.size :]
        embedding_weight = self.posterior_hidden.weight[:, self.deterministic_size :]
        from_actions = F.linear(actions.masked_fill(episode_starts[..., None], 0.0), action_weight, self.input.bias)
        from_embeddings = F.linear(embeddings, embedding_weight, self.posterior_hidden.bias)
        inputs = scan.ScanInputs(episode_starts, from_actions, from_embeddings, noise)
        return self._fast_scan(inputs, state) if self.uses_fast_scan else self._scan(inputs, state)

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
        return plain and declares(self, "splits_inputs", "advance", "represent", "_filter")

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
        return stacked(steps)

    def _scan_whole_layers(self, inputs: scan.ScanInputs, state: LatentState) -> ScannedSteps:
        """Like :meth:`_scan`, from actions and embeddings, where their layers or ``advance`` are not as in this class."""
        steps = []
        for starts, actions, embeddings, noise in zip(*(part.unbind() for part in inputs), strict=True):
            deterministic, parameters = self._filter(state, actions, embeddings, starts)
            state = LatentState(deterministic, self.latent.sample(parameters, noise))
            steps.append((*state, parameters))
        return stacked(steps)

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


def _norm(size: int, layer_norm: bool) -> nn.Module:
    return nn.LayerNorm(size, eps=LAYER_NORM_EPSILON) if layer_norm else nn.Identity()
