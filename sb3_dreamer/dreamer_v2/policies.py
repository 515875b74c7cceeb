"""The policy: builds world model and behavior from spaces and sizes, acts, and predicts as SB3's policies do."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_dreamer.behavior.actor_critic import ActorCritic
from sb3_dreamer.behavior.exploration import RANDOM, Exploration
from sb3_dreamer.common.functional import check_number, noisy_actions
from sb3_dreamer.common.layers import initialise_weights
from sb3_dreamer.common.observations import ObservationFormat, split_space
from sb3_dreamer.common.optimization import DreamerAdam, ParameterOptimizer
from sb3_dreamer.common.preprocessing import ImageSize, NumpyObs, action_blocks, decode_actions
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.dreamer_v2.networks import NetworkBuilder, PartOptions, checked_image_size, loss_names
from sb3_dreamer.world_model.encoders import DreamerEncoder
from sb3_dreamer.world_model.latents import make_latent

#: What ``predict(deterministic=True)`` takes of the latent state
EVALUATION_LATENTS = ("mode", "sample")


class ActingState(NamedTuple):
    """What an acting agent remembers between two steps."""

    latent: LatentState  # (n, ...)
    actions: th.Tensor  # (n, A) world-model vectors of the actions executed last


class DreamerPolicy(BasePolicy):
    """
    World model and actor-critic of DreamerV2 as an SB3 policy.

    The *parts* of ``net_arch``, ``activation_fn`` and ``layer_norm`` are ``encoder``, ``rssm`` (not in ``net_arch``),
    ``decoder``, ``reward``, ``discount``, ``actor`` and ``critic``.

    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or Dict of these; uint8 images channel first
    :param action_space: Discrete, MultiDiscrete, MultiBinary or bounded Box
    :param lr_schedule: learning rate of the world model; actor and critic have theirs set by the algorithm
    :param deterministic_size: D, width of the recurrent state (V2's code for Atari: 600)
    :param hidden_size: width of the RSSM's layers around the cell (V2's code for Atari: 600)
    :param latent: kind of the stochastic state, ``"categorical"`` (V2) or ``"gaussian"`` (V1)
    :param stochastic_size: S, number of stochastic variables (V2: 32, V1: 30)
    :param stochastic_classes: K, classes of each categorical variable; None is 32, as in V2
    :param latent_min_std: smallest standard deviation of a Gaussian latent; None is 0.1, as in both papers' code
    :param latent_std_activation: of a Gaussian latent, see ``STD_ACTIVATIONS``; None is ``"sigmoid2"``, as in V2
    :param net_arch: widths of the fully connected layers: one list for all parts, or a dict with lists for some (V2's code:
        4 x 400); those of the decoder are for vectors only
    :param cnn_depth: channels of the encoder's first convolution (V2's code: 48)
    :param activation_fn: activation class everywhere but in the recurrent cell (V2: ELU), or a dict of parts
    :param layer_norm: normalise before every activation, everywhere or in a list of parts (V2's code: for Crafter); the
        recurrent cell always does
    :param image_size: (height, width) to which images are resized on entry; None keeps the native size
    :param encoder_keys: keys of a Dict space that the encoder sees; None for all
    :param decoder_keys: keys that are reconstructed; None for all
    :param normalize_observations: numbers in units of their running standard deviation, which is saved with the networks;
        images, classes and bits are left alone (V2's code: no)
    :param use_discount_head: learn when episodes end (V2's code: yes for Atari); otherwise the discount is constant
    :param actor_distribution: for Box actions: ``"truncated_normal"`` (V2), ``"tanh_normal"`` (V1) or ``"normal"``
    :param actor_min_std: smallest scale of a continuous actor (V2's code: 0.1)
    :param actor_init_std: added to the actor's raw scale before its activation (V2's code: 0)
    :param actor_exact_gradient: use the exact reparameterisation gradient of the truncated normal instead of the original's
    :param exploration_class: who collects experience in place of the actor: ``"random"``, ``"plan2explore"``,
        ``"model_loss"`` or a subclass of :class:`~sb3_dreamer.behavior.exploration.Exploration`; None is the actor itself
    :param exploration_kwargs: its arguments
    :param evaluation_noise: amount of action noise in :meth:`predict` (V2's code, ``eval_noise``: 0)
    :param evaluation_latent: whether ``predict(deterministic=True)`` takes the latent's ``"mode"``, which needs no random
        number, or a ``"sample"``, as V2's code does
    :param features_extractor_class: the encoder; sees encoded observations (images x / 255 - 0.5, resized; vectors)
    :param features_extractor_kwargs: further arguments of the encoder
    :param normalize_images: False, as in SB3: float Boxes of rank 3 are images in the network's units, else flat.
        Images of bytes are always normalised inside
    :param optimizer_class: a PyTorch optimizer (V2: Adam, see :class:`~sb3_dreamer.common.optimization.DreamerAdam`)
    :param optimizer_kwargs: its further arguments (V2, table D.1: eps 1e-5, weight_decay 1e-6)
    """

    #: Which kind of observation space a subclass takes, None for any
    _takes: str | None = None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        deterministic_size: int = 600,
        hidden_size: int = 600,
        latent: str = "categorical",
        stochastic_size: int = 32,
        stochastic_classes: int | None = None,
        latent_min_std: float | None = None,
        latent_std_activation: str | None = None,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        cnn_depth: int = 48,
        activation_fn: type[nn.Module] | dict[str, type[nn.Module]] = nn.ELU,
        layer_norm: bool | list[str] = False,
        image_size: ImageSize = (64, 64),
        encoder_keys: list[str] | None = None,
        decoder_keys: list[str] | None = None,
        normalize_observations: bool = False,
        use_discount_head: bool = True,
        actor_distribution: str = "truncated_normal",
        actor_min_std: float = 0.1,
        actor_init_std: float = 0.0,
        actor_exact_gradient: bool = False,
        exploration_class: str | type[Exploration] | None = None,
        exploration_kwargs: dict[str, Any] | None = None,
        evaluation_noise: float = 0.0,
        evaluation_latent: str = "mode",
        features_extractor_class: type[BaseFeaturesExtractor] = DreamerEncoder,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = DreamerAdam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__", "lr_schedule")}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=isinstance(action_space, spaces.Box),
        )
        self._arguments = arguments
        self.image_size = checked_image_size(image_size)
        self._check_observation_space()
        self.observations = ObservationFormat(observation_space, self.image_size, float_images=not normalize_images)
        self.loss_names = loss_names(self.observations)
        self._action_blocks = action_blocks(action_space)
        check_number("evaluation_noise", evaluation_noise, 0.0, np.inf if self.squash_output else 1.0)
        if evaluation_latent not in EVALUATION_LATENTS:
            raise ValueError(f"evaluation_latent must be one of {EVALUATION_LATENTS}, but is {evaluation_latent!r}.")
        self.evaluation_noise, self.evaluation_latent = evaluation_noise, evaluation_latent
        self.explores_randomly = isinstance(exploration_class, str) and exploration_class == RANDOM
        self._make_networks(**arguments)
        initialise_weights(self)
        self._make_optimizers(lr_schedule(1))

    def _check_observation_space(self) -> None:
        """Refuse, by name, a space that this kind of policy does not take."""
        space = self.observation_space
        name, kinds = type(self).__name__, {"image": "an image", "vector": "a vector", "dict": "a Dict"}
        is_image = is_image_space(space) or (not self.normalize_images and has_float_image(space))
        kind = "dict" if isinstance(space, spaces.Dict) else ("image" if is_image else "vector")
        assert self._takes in (None, kind), (
            f"{name} takes {kinds.get(str(self._takes))} observation space, but {space} was given. Use MultiInputPolicy for "
            "Dict spaces, CnnPolicy for uint8 images of shape (height, width, channels) (and for float images of rank 3 with "
            "policy_kwargs=dict(normalize_images=False)), MlpPolicy for everything else."
        )
        if not (self.normalize_images or has_float_image(space)):
            raise ValueError(
                f"normalize_images=False says that float Boxes of rank 3 are images, but there is none in {space}. Leave it "
                "out: uint8 images are normalised inside."
            )

    def _make_networks(
        self,
        net_arch: Any,
        activation_fn: Any,
        layer_norm: Any,
        cnn_depth: int,
        latent: str,
        stochastic_size: int,
        stochastic_classes: int | None,
        latent_min_std: float | None,
        latent_std_activation: str | None,
        deterministic_size: int,
        hidden_size: int,
        encoder_keys: list[str] | None,
        decoder_keys: list[str] | None,
        use_discount_head: bool,
        exploration_class: Any,
        exploration_kwargs: dict[str, Any] | None,
        **options: Any,
    ) -> None:
        """World model, behavior and exploration, from the constructor's arguments."""
        parts = PartOptions(net_arch, activation_fn, layer_norm)
        build = NetworkBuilder(self.observations, self.action_space, parts, cnn_depth)
        encoder = build.encoder(encoder_keys, self.features_extractor_class, dict(self.features_extractor_kwargs))
        state = make_latent(latent, stochastic_size, stochastic_classes, latent_min_std, latent_std_activation)
        keys = encoder_keys, decoder_keys
        flags = use_discount_head, options["normalize_observations"]
        self.world_model = build.world_model(encoder, state, deterministic_size, hidden_size, *keys, *flags)
        names = ("distribution", "min_std", "init_std", "exact_gradient")
        actor_kwargs = {name: options[f"actor_{name}"] for name in names}
        self.behavior = build.behavior(self.world_model.rssm.features_size, actor_kwargs)
        self.exploration = build.exploration(exploration_class, exploration_kwargs, self.world_model, actor_kwargs)

    def _make_optimizers(self, learning_rate: float) -> None:
        """One optimizer each for world model, actor and critic, and those of exploration; target critics have none."""

        def make(parameters: Iterable[nn.Parameter]) -> ParameterOptimizer:
            return ParameterOptimizer(parameters, self.optimizer_class, learning_rate, self.optimizer_kwargs)

        self.world_model_optimizer = make(self.world_model.parameters())
        self.actor_optimizer = make(self.behavior.actor.parameters())
        self.critic_optimizer = make(self.behavior.critic.parameters())
        if self.exploration is not None:
            self.exploration_optimizer = make(self.exploration.head_parameters())
            self.exploration_actor_optimizer = make(self.exploration.behavior.actor.parameters())
            self.exploration_critic_optimizer = make(self.exploration.behavior.critic.parameters())

    @property
    def behaviors(self) -> list[ActorCritic]:
        """The task's actor-critic, and the one of exploration if there is one."""
        return [self.behavior] if self.exploration is None else [self.behavior, self.exploration.behavior]

    @property
    def optimizers_by_rate(self) -> tuple[list[ParameterOptimizer], ...]:
        """Those that learn at the world model's rate, at the actor's, and at the critic's."""
        groups = ([self.world_model_optimizer], [self.actor_optimizer], [self.critic_optimizer])
        if self.exploration is not None:
            own = self.exploration_optimizer, self.exploration_actor_optimizer, self.exploration_critic_optimizer
            groups = tuple([*group, optimizer] for group, optimizer in zip(groups, own, strict=True))  # type: ignore[assignment]
        return groups

    @property
    def optimizer(self) -> th.optim.Optimizer:  # type: ignore[override]
        """The world model's PyTorch optimizer, under the name that SB3 expects."""
        return self.world_model_optimizer.optimizer

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._arguments, "lr_schedule": self._dummy_schedule}

    # ---------------------------------------------------------------- acting

    def initial_state(self, n_envs: int) -> ActingState:
        """
        :param n_envs: n
        :return: what an agent remembers before its first step
        """
        latent = self.world_model.rssm.initial_state(n_envs)
        return ActingState(latent, latent.stochastic.new_zeros(n_envs, self.world_model.rssm.action_size))

    def stored_tensors(self, observations: NumpyObs) -> dict[str, th.Tensor]:
        """
        Observations of a VecEnv as the world model takes them: resized, on the device.

        :param observations: (n, *shape), or a dict of these, channel first
        :return: per key (n, *stored shape)
        """
        stored = self.observations.to_stored(observations)
        return {key: th.as_tensor(value, device=self.device) for key, value in stored.items()}

    @th.no_grad()
    def act(
        self,
        observations: dict[str, th.Tensor],
        state: ActingState,
        episode_starts: th.Tensor,
        sample_latent: bool = True,
        sample_action: bool = True,
        latent_noise: th.Tensor | None = None,
        action_noise: th.Tensor | None = None,
        explore: bool = False,
        noise_amount: float = 0.0,
    ) -> ActingState:
        """
        One acting step: filter the observation, choose an action.

        :param observations: of :meth:`stored_tensors`, per key (n, *shape)
        :param state: after the previous step
        :param episode_starts: bool, (n,); True forgets state and previous action
        :param sample_latent: sample the posterior, as the original does even in evaluation, or take its mode
        :param sample_action: sample the action, or take its mode
        :param latent_noise: for the latent's sample, or None to draw it
        :param action_noise: for the action's sample, or None to draw it
        :param explore: let the exploration's actor choose
        :param noise_amount: disturbs the chosen action, see :func:`~sb3_dreamer.common.functional.noisy_actions`
        :return: latent state and chosen action vectors
        """
        latent = self.world_model.filter(
            state.latent, state.actions, observations, episode_starts, sample_latent, latent_noise
        )
        behavior = self.exploration.behavior if explore and self.exploration is not None else self.behavior
        policy = behavior.actor(latent.features)
        actions = policy.sample(action_noise) if sample_action else policy.mode
        if noise_amount > 0.0:
            noise = th.randn_like(actions) if self._action_blocks is None else th.empty_like(actions).exponential_()
            actions = noisy_actions(actions, noise_amount, self._action_blocks, noise)
        return ActingState(latent, actions)

    def predict(
        self,
        observation: NumpyObs,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Action for an observation, with memory: pass the returned state to the next call, as with RecurrentPPO.

        Without a state every call begins an episode, i.e. the agent has no memory.

        :param observation: in the environment's own form, with or without a batch axis
        :param state: returned by the last call, or None at the start: deterministic state (n, D), stochastic state (n, Z),
            previous action (n, A)
        :param episode_start: bool (n,), True where a new episode begins, so that the state is not used
        :param deterministic: take the mode of the latent state and of the action; needs no random number (unless
            ``evaluation_latent`` or ``evaluation_noise`` ask for one)
        :return: action and next state
        """
        self.set_training_mode(False)
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError(
                "predict() was given a tuple: that is what reset() returns in the Gym API (obs, info). Pass the observation "
                "alone; a VecEnv's reset() returns just that."
            )
        arrays, vectorized = self.observations.with_batch_axis(observation)
        stored = self.stored_tensors(arrays)
        n_envs = len(next(iter(stored.values())))
        acting = self._acting_state(state, n_envs)
        starts = np.zeros(n_envs, dtype=bool) if episode_start is None else np.array(episode_start).astype(bool).reshape(-1)
        if len(starts) != n_envs:
            raise ValueError(f"episode_start has {len(starts)} entries, but there are {n_envs} observations.")
        sample_latent = not deterministic or self.evaluation_latent == "sample"
        acting = self.act(
            stored,
            acting,
            th.as_tensor(starts, device=self.device),
            sample_latent,
            not deterministic,
            noise_amount=self.evaluation_noise,
        )
        actions = decode_actions(acting.actions, self.action_space)
        next_state = tuple(x.cpu().numpy() for x in (*acting.latent, acting.actions))
        return actions if vectorized else actions.squeeze(axis=0), next_state

    def _acting_state(self, state: tuple[np.ndarray, ...] | None, n_envs: int) -> ActingState:
        """The user's state as tensors, checked against what this policy returns."""
        initial = self.initial_state(n_envs)
        if state is None:
            return initial
        expected = [tuple(x.shape) for x in (*initial.latent, initial.actions)]
        given = [tuple(np.shape(x)) for x in state]
        if given != expected:
            raise ValueError(f"The state has shapes {given}, expected {expected}: pass what the last predict() returned.")
        deterministic, stochastic, actions = (th.as_tensor(x, dtype=th.float32, device=self.device) for x in state)
        return ActingState(LatentState(deterministic, stochastic), actions)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        Memoryless action vectors, for SB3 code that calls this directly.

        :param observation: tensors with a batch axis, channel first
        :param deterministic: take the modes
        :return: (n, A), one-hot vectors side by side or values in [-1, 1]
        """
        numpy_obs = (
            {k: v.cpu().numpy() for k, v in observation.items()}
            if isinstance(observation, dict)
            else observation.cpu().numpy()
        )
        stored = self.stored_tensors(numpy_obs)
        n_envs = len(next(iter(stored.values())))
        starts = th.ones(n_envs, dtype=th.bool, device=self.device)
        return self.act(stored, self.initial_state(n_envs), starts, not deterministic, not deterministic).actions

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """:meth:`_predict`, by the name that other policies of SB3 have for it."""
        return self._predict(observation, deterministic)


def has_float_image(space: spaces.Space) -> bool:
    """
    :param space: of observations
    :return: whether a Box of rank 3 holds floats
    """
    boxes = [part for part in split_space(space).values() if isinstance(part, spaces.Box)]
    return any(len(box.shape) == 3 and np.issubdtype(box.dtype, np.floating) for box in boxes)


class CnnPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` for images."""

    _takes = "image"


class MlpPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` for vectors and everything else that is neither an image nor a Dict."""

    _takes = "vector"


class MultiInputPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` for Dict observations."""

    _takes = "dict"
