"""DreamerV3's recurrent state-space model: a GRU of blocks that sees state, latent and action through a branch each."""

from copy import copy
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_dreamer.common.capabilities import declares, is_plain
from sb3_dreamer.common.layers import MLP
from sb3_dreamer.common.one_hot import OneHotFeatures, sum_rows
from sb3_dreamer.common.options import whole_number
from sb3_dreamer.common.precision import full
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamer_v3.layers import BlockLinear, GroupedLinear, RMSNorm, block_product, rms_layers, ungrouped
from sb3_dreamer.dreamer_v3.scan import SharedLayer, SharedProducts, shared
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


class BlockInput(BlockLinear):
    """
    The first hidden layer of the recurrent model: block g sees block g of h, and all of the branches of state, latent, action.

    The weight is one parameter, since the optimizer clips by parameters: its first rows belong to h, the next to the branches
    of state and latent, the last to that of the action, which does not depend on the state.

    :param sizes: D, H and G
    """

    def __init__(self, sizes: CoreSizes):
        super().__init__(sizes.deterministic + sizes.blocks * 3 * sizes.hidden, sizes.deterministic, sizes.blocks)
        self.rows = [sizes.deterministic // sizes.blocks, 2 * sizes.hidden, sizes.hidden]

    def weights(self) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Return the weights of h, (D / G, D), of state and latent, (2 H, D), and of the action, (H, D)."""
        of_state, of_branches, of_action = self.weight.split(self.rows)
        return of_state, of_branches, of_action

    def project(self, branch: th.Tensor) -> th.Tensor:
        """Map the action's branch, (..., H), to what it contributes, (..., D), bias included."""
        return F.linear(branch, self.weights()[2].t(), self.bias)

    def forward(self, from_action: th.Tensor, branches: th.Tensor, before: th.Tensor) -> th.Tensor:  # type: ignore[override]
        """Add state and latent: (n, D) of :meth:`project`, branches (n, 2 H), h (n, D) to all blocks (G, n, D / G)."""
        of_state, of_branches, _ = self.weights()
        dense = th.addmm(from_action, branches, of_branches)
        return block_product(before, of_state, dense.unflatten(-1, (self.blocks, -1)).transpose(0, 1))


class BlockGRU(nn.Module):
    """
    Recurrent model (V3): three branches, hidden layers of blocks, and gates of blocks.

    :param sizes: of all layers
    :param stochastic_size: Z
    :param action_size: A
    :param activation_fn: activation class (V3: SiLU)
    """

    #: A scan may compute ``project_actions`` ahead for all steps, and replace the linear layers by their products
    splits_inputs = True

    def __init__(self, sizes: CoreSizes, stochastic_size: int, action_size: int, activation_fn: type[nn.Module]):
        super().__init__()
        layers, (deterministic, _, blocks, *_) = rms_layers([sizes.hidden], activation_fn), sizes
        self.sizes = sizes
        self.from_state = MLP(deterministic, layers)
        self.from_latent = MLP(stochastic_size, layers)
        self.from_action = MLP(action_size, layers)
        self.input = BlockInput(sizes)
        self.input_norm, self.activation = RMSNorm(deterministic), activation_fn()
        further: list[nn.Module] = []
        for _ in range(sizes.dynamics_layers - 1):
            further += [BlockLinear(deterministic, deterministic, blocks), RMSNorm(deterministic), activation_fn()]
        self.further = nn.Sequential(*further)
        self.gates = GroupedLinear(deterministic, 3 * deterministic, blocks)

    def project_actions(self, actions: th.Tensor) -> th.Tensor:
        """
        What actions contribute to the first hidden layer; it does not depend on the state.

        :param actions: (..., A); numbers beyond 1 count as 1
        :return: (..., D)
        """
        inside = actions / actions.abs().clamp(min=1.0).detach()
        return self.input.project(self.from_action(inside))

    def forward(self, state: LatentState, from_action: th.Tensor, one_hot: OneHotFeatures | None = None) -> th.Tensor:
        """
        One step.

        :param state: (n, ...)
        :param from_action: of :meth:`project_actions`, (n, D)
        :param one_hot: features of this state, if known
        :return: h of the next step, (n, D)
        """
        latent = self.from_latent(state.stochastic) if one_hot is None else self._embed_places(one_hot.places)
        branches = th.cat([self.from_state(state.deterministic), latent], dim=-1)
        hidden = ungrouped(self.input(from_action, branches, state.deterministic))
        hidden = self.further(self.activation(self.input_norm(hidden)))
        return self.mix(self.gates(hidden), state.deterministic)

    def in_scan(self, from_actions: th.Tensor) -> "BlockGRU":
        """
        A copy for one scan, whose weights get their gradients at once.

        :param from_actions: of :meth:`project_actions` for all steps, (T, B, D)
        :return: a module to be called once for each step
        """
        leading, of_state, of_branches = from_actions.shape[:2], *self.input.weights()[:2]
        twin = copy(self)
        twin._modules = dict(self._modules)
        for name in ("from_state", "from_latent", "further"):
            twin._modules[name] = shared(getattr(self, name), leading)
        twin._modules["gates"] = SharedLayer(self.gates, leading)
        twin._modules["input"] = SharedInput(from_actions, of_branches, of_state, self.sizes.blocks)
        return twin

    @property
    def is_plain(self) -> bool:
        """Whether the linear layers do nothing but what their weights say."""
        branches = (self.from_state, self.from_latent, self.from_action)
        return (
            declares(self, "splits_inputs", "forward", "project_actions", "in_scan")
            and all(is_plain(branch, MLP) and is_plain(branch[0], nn.Linear) for branch in branches)
            and is_plain(self.input, BlockInput)
            and is_plain(self.further, nn.Sequential)
            and all(is_plain(layer, BlockLinear) for layer in list(self.further)[::3])
            and is_plain(self.gates, GroupedLinear)
        )

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


class SharedInput(nn.Module):
    """
    :class:`BlockInput` in a scan.

    :param from_actions: contributions of the actions to all steps, (T, B, D)
    :param of_branches: weight of state and latent
    :param of_state: weight of h
    :param blocks: G
    """

    def __init__(self, from_actions: th.Tensor, of_branches: th.Tensor, of_state: th.Tensor, blocks: int):
        super().__init__()
        self.blocks = blocks
        self.next = SharedProducts(from_actions, (of_branches, 1), (of_state, blocks))

    def forward(self, _: th.Tensor, branches: th.Tensor, before: th.Tensor) -> th.Tensor:
        """As in :class:`BlockInput`; the step's contribution of the action is known already."""
        y = self.next(branches, before)
        return y if self.blocks > 1 else y[None]


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
        return OneHotFeatures(places, *state) if places is not None and self.core.is_plain else None

    def advance(self, state: LatentState, actions: th.Tensor, one_hot: OneHotFeatures | None = None) -> th.Tensor:
        return self.core(state, self.core.project_actions(actions), one_hot)

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
        leading = embeddings.shape[:2]
        from_actions = self.core.project_actions(actions.masked_fill(episode_starts[..., None], 0.0))
        first: Any = self.posterior_hidden[0]
        of_state, of_embedding = first.weight.split([self.deterministic_size, embeddings.shape[-1]], dim=1)
        core, seen = self.core.in_scan(from_actions), F.linear(embeddings, of_embedding, first.bias)
        posterior_input = SharedProducts(seen, (of_state.t(), 1))
        posterior = shared([*list(self.posterior_hidden)[1:], self.posterior_output], leading)
        # Unbound, not indexed step by step: the gradient of every index would be as large as the whole sequence
        steps, inputs = [], (part.unbind() for part in (episode_starts, from_actions, noise))
        for starts, from_action, step_noise in zip(*inputs, strict=True):
            state = reset(state, starts)
            deterministic = core(state, from_action)  # h_t
            parameters = full(posterior(posterior_input(deterministic)))
            state = LatentState(deterministic, self.latent.sample(parameters, step_noise))  # z_t ~ q
            steps.append((*state, parameters))
        return stacked(steps)

    def _splits_inputs(self) -> bool:
        """Whether the layers that take actions and embeddings need not be called as a whole, in each step."""
        layers = [layer for layer in (*self.posterior_hidden, self.posterior_output) if isinstance(layer, nn.Linear)]
        return (
            declares(self, "splits_inputs", "advance", "represent", "_filter")
            and self.core.is_plain
            and is_plain(self.posterior_hidden, MLP)
            and all(is_plain(layer, nn.Linear) for layer in layers)
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
