"""DreamerV3's recurrent state-space model: a GRU of blocks that sees state, latent and action through a branch each."""

from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.capabilities import declares, is_plain
from sb3_dreamer.common.layers import MLP
from sb3_dreamer.common.one_hot import OneHotFeatures, sum_rows
from sb3_dreamer.common.options import whole_number
from sb3_dreamer.common.precision import cast_once, full
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamer_v3.layers import BlockLinear, RMSNorm, block_product, rms_layers
from sb3_dreamer.world_model.latents import Latent
from sb3_dreamer.world_model.state_space import ScannedSteps, StateSpaceModel, reset, stacked


class CoreSizes(NamedTuple):
    """Sizes of the recurrent model and of the layers around it."""

    deterministic: int  # D
    hidden: int  # H, width of branches, prior and posterior
    blocks: int  # G, which divides D (V3: 8)
    dynamics_layers: int = 1  # hidden layers of the recurrent model (V3: 1)
    prior_layers: int = 2  # hidden layers of the prior (V3: 2)
    posterior_layers: int = 1  # hidden layers of the posterior (V3: 1)

    @classmethod
    def checked(cls, **sizes: int) -> "CoreSizes":
        """
        Sizes from the options of the policy.

        :param sizes: by field
        :return: the same as whole numbers
        :raises ValueError: naming an impossible option
        """
        words = {"deterministic": "deterministic_size", "hidden": "hidden_size"}
        core = cls(**{name: whole_number(words.get(name, name), size, 1) for name, size in sizes.items()})
        if core.deterministic % core.blocks:
            raise ValueError(f"blocks={core.blocks} must divide deterministic_size, but that is {core.deterministic}.")
        return core


class InputWeights(NamedTuple):
    """Parts of the recurrent model's first hidden layer, as views of its one parameter."""

    of_state: th.Tensor  # (D / G, D), block-diagonal
    of_branches: th.Tensor  # of state and latent, (2 H, D)
    of_action: th.Tensor  # (H, D)


class BlockGRU(nn.Module):
    """
    Recurrent model (V3): three branches, hidden layers of blocks, and gates of blocks.

    Block g of the first hidden layer sees block g of h and all of the branches. Its weight is one parameter, since the
    optimizer clips by parameters: the first rows belong to h, the others to the branches of state, latent and action.

    :param sizes: of all layers
    :param stochastic_size: Z
    :param action_size: A
    :param activation_fn: activation class (V3: SiLU)
    """

    #: Parts of a step may be computed ahead for all steps, instead of calling ``project_actions`` in each
    splits_inputs = True

    def __init__(self, sizes: CoreSizes, stochastic_size: int, action_size: int, activation_fn: type[nn.Module]):
        super().__init__()
        layers, (deterministic, hidden, blocks, *_) = rms_layers([sizes.hidden], activation_fn), sizes
        self.sizes = sizes
        self.from_state = MLP(deterministic, layers)
        self.from_latent = MLP(stochastic_size, layers)
        self.from_action = MLP(action_size, layers)
        self.input = BlockLinear(deterministic + blocks * 3 * hidden, deterministic, blocks)
        self.input_norm, self.activation = RMSNorm(deterministic), activation_fn()
        further: list[nn.Module] = []
        for _ in range(sizes.dynamics_layers - 1):
            further += [BlockLinear(deterministic, deterministic, blocks), RMSNorm(deterministic), activation_fn()]
        self.further = nn.Sequential(*further)
        self.gates = BlockLinear(deterministic, 3 * deterministic, blocks)

    def input_weights(self) -> InputWeights:
        """Split the weight of the first hidden layer."""
        rows, hidden = self.sizes.deterministic // self.sizes.blocks, self.sizes.hidden
        return InputWeights(*cast_once(self.input.weight).split([rows, 2 * hidden, hidden]))

    def project_actions(self, actions: th.Tensor, weights: InputWeights) -> th.Tensor:
        """
        What actions contribute to the first hidden layer, bias included; it does not depend on the state.

        :param actions: (..., A); numbers beyond 1 count as 1
        :param weights: of :meth:`input_weights`
        :return: (..., D)
        """
        inside = actions / actions.abs().clamp(min=1.0).detach()
        return F.linear(self.from_action(inside), weights.of_action.t(), self.input.bias)

    def forward(
        self, state: LatentState, from_action: th.Tensor, weights: InputWeights, one_hot: OneHotFeatures | None = None
    ) -> th.Tensor:
        """
        One step.

        :param state: (n, ...)
        :param from_action: of :meth:`project_actions`, (n, D)
        :param weights: of :meth:`input_weights`
        :param one_hot: features of this state, if known
        :return: h of the next step, (n, D)
        """
        before = state.deterministic
        latent = self.from_latent(state.stochastic) if one_hot is None else self._embed_places(one_hot.places)
        dense = F.linear(th.cat([self.from_state(before), latent], dim=-1), weights.of_branches.t()) + from_action
        grouped = dense.unflatten(-1, (self.sizes.blocks, -1)).transpose(0, 1)  # (G, n, D / G)
        hidden = block_product(before, weights.of_state, grouped).transpose(0, 1).flatten(-2)
        hidden = self.further(self.activation(self.input_norm(hidden)))
        return self.mix(self.gates.grouped(hidden), before)

    def _embed_places(self, places: th.Tensor) -> th.Tensor:
        """Branch of a latent that has ones at the places (n, S)."""
        first, *rest = self.from_latent
        x = sum_rows(first.weight, places).add_(first.bias)  # type: ignore[arg-type]
        for layer in rest:
            x = layer(x)
        return x

    def mix(self, gates: th.Tensor, before: th.Tensor) -> th.Tensor:
        """
        Mix a candidate into the state. Reset gate, candidate and update gate lie side by side within each block.

        :param gates: before their activations, (G, n, 3 D / G)
        :param before: h_{t-1}, (n, D)
        :return: h_t, (n, D)
        """
        grouped = before.unflatten(-1, (self.sizes.blocks, -1)).transpose(0, 1)
        reset_gate, candidate, update = full(gates).chunk(3, dim=-1)  # (G, n, D / G)
        candidate = th.tanh(th.sigmoid(reset_gate) * candidate)
        return th.lerp(grouped, candidate, th.sigmoid(update - 1.0)).transpose(0, 1).flatten(-2)


class BlockRSSM(StateSpaceModel):
    """
    Recurrent state-space model of DreamerV3.

    :param latent: kind of stochastic state
    :param action_size: A
    :param embedding_size: E
    :param sizes: of the layers
    :param activation_fn: activation class (V3: SiLU)
    """

    #: ``observe`` may compute products of the inputs ahead of the steps, instead of calling ``advance`` and ``represent``
    splits_inputs = True

    def __init__(
        self,
        latent: Latent,
        action_size: int,
        embedding_size: int,
        sizes: CoreSizes,
        activation_fn: type[nn.Module] = nn.SiLU,
    ):
        super().__init__(latent, action_size, sizes.deterministic)
        self.core = BlockGRU(sizes, latent.size, action_size, activation_fn)
        self.prior_hidden = MLP(sizes.deterministic, rms_layers([sizes.hidden] * sizes.prior_layers, activation_fn))
        self.prior_output = nn.Linear(sizes.hidden, latent.parameter_size)
        layers = rms_layers([sizes.hidden] * sizes.posterior_layers, activation_fn)
        self.posterior_hidden = MLP(sizes.deterministic + embedding_size, layers)
        self.posterior_output = nn.Linear(sizes.hidden, latent.parameter_size)

    def one_hot(self, state: LatentState) -> OneHotFeatures | None:
        places = None if state.deterministic.requires_grad else self.latent.places(state.stochastic)
        return OneHotFeatures(places, *state) if places is not None and self._reads_latent_weight() else None

    def _reads_latent_weight(self) -> bool:
        """Whether the layer on z does nothing but what its weight says."""
        return declares(self.core, "splits_inputs", "forward") and is_plain(self.core.from_latent[0], nn.Linear)

    def advance(self, state: LatentState, actions: th.Tensor, one_hot: OneHotFeatures | None = None) -> th.Tensor:
        weights = self.core.input_weights()
        return self.core(state, self.core.project_actions(actions, weights), weights, one_hot)

    def prior(self, deterministic: th.Tensor) -> th.Tensor:
        return full(self.prior_output(self.prior_hidden(deterministic)))

    def represent(self, deterministic: th.Tensor, embeddings: th.Tensor) -> th.Tensor:
        return full(self.posterior_output(self.posterior_hidden(th.cat([deterministic, embeddings], dim=-1))))

    def _observe(
        self,
        embeddings: th.Tensor,
        actions: th.Tensor,
        episode_starts: th.Tensor,
        state: LatentState,
        noise: th.Tensor,
    ) -> ScannedSteps:
        if not self._splits_inputs():
            return self._scan_whole_layers(embeddings, actions, episode_starts, state, noise)
        weights, (first, *rest) = self.core.input_weights(), self.posterior_hidden
        from_actions = self.core.project_actions(actions.masked_fill(episode_starts[..., None], 0.0), weights)
        of_state, of_embedding = first.weight.split([self.deterministic_size, embeddings.shape[-1]], dim=1)  # type: ignore[operator]
        from_embeddings = F.linear(embeddings, of_embedding, first.bias)  # type: ignore[arg-type]
        of_state, steps = cast_once(of_state), []
        # Unbound, not indexed step by step: the gradient of every index would be as large as the whole sequence
        inputs = (part.unbind() for part in (episode_starts, from_actions, from_embeddings, noise))
        for starts, from_action, from_embedding, step_noise in zip(*inputs, strict=True):
            state = reset(state, starts)
            deterministic = self.core(state, from_action, weights)  # h_t
            hidden = F.linear(deterministic, of_state) + from_embedding
            for layer in rest:
                hidden = layer(hidden)
            parameters = full(self.posterior_output(hidden))
            state = LatentState(deterministic, self.latent.sample(parameters, step_noise))  # z_t ~ q
            steps.append((*state, parameters))
        return stacked(steps)

    def _splits_inputs(self) -> bool:
        """Whether the layers that take actions and embeddings need not be called as a whole, in each step."""
        return (
            declares(self, "splits_inputs", "advance", "represent", "_filter")
            and declares(self.core, "splits_inputs", "forward", "project_actions", "input_weights")
            and is_plain(self.posterior_hidden[0], nn.Linear)
        )

    def _scan_whole_layers(
        self,
        embeddings: th.Tensor,
        actions: th.Tensor,
        episode_starts: th.Tensor,
        state: LatentState,
        noise: th.Tensor,
    ) -> ScannedSteps:
        """The same from actions and embeddings, where their layers or ``advance`` are not as in this class."""
        steps = []
        inputs = (part.unbind() for part in (episode_starts, actions, embeddings, noise))
        for starts, action, embedding, step_noise in zip(*inputs, strict=True):
            deterministic, parameters = self._filter(state, action, embedding, starts)
            state = LatentState(deterministic, self.latent.sample(parameters, step_noise))
            steps.append((*state, parameters))
        return stacked(steps)
