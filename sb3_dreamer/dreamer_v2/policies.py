"""The policy: builds world model and behavior from spaces and sizes, acts, and predicts as SB3's policies do."""

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
from sb3_dreamer.common.distributions import Bernoulli, UnitNormal
from sb3_dreamer.common.functional import check_number
from sb3_dreamer.common.heads import ScalarHead
from sb3_dreamer.common.layers import initialise_weights
from sb3_dreamer.common.optimization import DreamerAdam, ParameterOptimizer
from sb3_dreamer.common.preprocessing import (
    OBSERVATION_KEY,
    ImageSize,
    NumpyObs,
    action_size,
    decode_actions,
    stored_spaces,
    to_stored,
)
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.world_model.decoders import DreamerDecoder
from sb3_dreamer.world_model.encoders import DreamerEncoder
from sb3_dreamer.world_model.latents import CategoricalLatent
from sb3_dreamer.world_model.rssm import RSSM
from sb3_dreamer.world_model.world_model import WorldModel

#: Parts of the policy that have fully connected layers of their own, see ``net_arch``
NET_ARCH_PARTS = ("encoder", "decoder", "reward", "discount", "actor", "critic")
#: V2's released code for Atari: four layers of 400 everywhere
DEFAULT_NET_ARCH = (400, 400, 400, 400)
#: Longest name of an observation key in the log; SB3's table cuts keys at 36 characters and refuses collisions
LONGEST_LOGGED_KEY = 20
#: Names in the log that an observation key, such as "reward", must not take
OTHER_LOSSES = ("model_loss", "reward_loss", "discount_loss", "kl_loss", "actor_loss", "critic_loss")


class ActingState(NamedTuple):
    """What an acting agent remembers between two steps."""

    latent: LatentState  # (n, ...)
    actions: th.Tensor  # (n, A) world-model vectors of the actions executed last


class DreamerPolicy(BasePolicy):
    """
    World model and actor-critic of DreamerV2 as an SB3 policy.

    :param observation_space: image or vector Box, or Dict of these; images channel first
    :param action_space: Discrete or Box
    :param lr_schedule: learning rate of the world model; actor and critic have theirs set by the algorithm
    :param deterministic_size: D, width of the recurrent state (V2's code for Atari: 600)
    :param hidden_size: width of the RSSM's layers around the cell (V2's code for Atari: 600)
    :param stochastic_size: S, number of categorical variables (V2: 32)
    :param stochastic_classes: K, classes of each (V2: 32)
    :param net_arch: widths of the fully connected layers: one list for all parts, or a dict with lists for some of
        ``encoder``, ``decoder`` (vectors only), ``reward``, ``discount``, ``actor``, ``critic`` (V2's code: 4 x 400)
    :param cnn_depth: channels of the encoder's first convolution (V2's code: 48)
    :param activation_fn: activation class everywhere but in the recurrent cell (V2: ELU)
    :param image_size: (height, width) to which images are resized on entry; None keeps the native size
    :param use_discount_head: learn when episodes end (V2's code: yes for Atari); otherwise the discount is the constant gamma
    :param actor_min_std: smallest scale of a continuous actor (V2's code: 0.1)
    :param actor_exact_gradient: use the exact reparameterisation gradient of the truncated normal instead of the original's
    :param features_extractor_class: the encoder; sees normalised observations (images x / 255 - 0.5), resized
    :param features_extractor_kwargs: further arguments of the encoder
    :param normalize_images: must be True: images are uint8 and are normalised inside
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
        stochastic_size: int = 32,
        stochastic_classes: int = 32,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        cnn_depth: int = 48,
        activation_fn: type[nn.Module] = nn.ELU,
        image_size: ImageSize = (64, 64),
        use_discount_head: bool = True,
        actor_min_std: float = 0.1,
        actor_exact_gradient: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = DreamerEncoder,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = DreamerAdam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
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
        self.image_size = checked_image_size(image_size)
        check_number("actor_min_std", actor_min_std, 1e-6)
        self._check_observation_space()
        self.deterministic_size, self.hidden_size = deterministic_size, hidden_size
        self.stochastic_size, self.stochastic_classes = stochastic_size, stochastic_classes
        self.net_arch, self.cnn_depth, self.activation_fn = net_arch, cnn_depth, activation_fn
        self.use_discount_head = use_discount_head
        self.actor_min_std, self.actor_exact_gradient = actor_min_std, actor_exact_gradient
        self.stored_spaces = stored_spaces(observation_space, self.image_size)
        self.loss_names = _loss_names(self.stored_spaces)

        self.world_model = self._make_world_model()
        self.behavior = self._make_behavior(self.world_model.rssm.features_size)
        initialise_weights(self)
        self._make_optimizers(lr_schedule(1))

    def _check_observation_space(self) -> None:
        """Refuse, by name, a space that this kind of policy does not take."""
        space = self.observation_space
        name, kinds = type(self).__name__, {"image": "an image", "vector": "a vector", "dict": "a Dict"}
        kind = "dict" if isinstance(space, spaces.Dict) else ("image" if is_image_space(space) else "vector")
        assert self._takes in (None, kind), (
            f"{name} takes {kinds.get(str(self._takes))} observation space, but {space} was given. Use MlpPolicy for vectors, "
            "CnnPolicy for uint8 images of shape (height, width, channels), MultiInputPolicy for Dict spaces."
        )
        if not self.normalize_images:
            raise ValueError("normalize_images=False is not supported: give uint8 images, they are normalised inside.")

    def _part_net_arch(self, part: str) -> list[int]:
        """Widths of one part's layers."""
        if isinstance(self.net_arch, dict):
            unknown = set(self.net_arch) - set(NET_ARCH_PARTS)
            if unknown:
                raise ValueError(f"Unknown parts in net_arch: {sorted(unknown)}; known are {list(NET_ARCH_PARTS)}.")
            return list(self.net_arch.get(part, DEFAULT_NET_ARCH))
        return list(DEFAULT_NET_ARCH if self.net_arch is None else self.net_arch)

    def _make_world_model(self) -> WorldModel:
        kwargs = dict(self.features_extractor_kwargs)
        if issubclass(self.features_extractor_class, DreamerEncoder):
            own = dict(cnn_depth=self.cnn_depth, net_arch=self._part_net_arch("encoder"), activation_fn=self.activation_fn)
            kwargs = {**own, **kwargs}
        is_dict = isinstance(self.observation_space, spaces.Dict)
        space = spaces.Dict(list(self.stored_spaces.items())) if is_dict else self.stored_spaces[OBSERVATION_KEY]  # type: ignore[arg-type]
        encoder = self.features_extractor_class(space, **kwargs)
        rssm = RSSM(
            CategoricalLatent(self.stochastic_size, self.stochastic_classes),
            action_size(self.action_space),
            encoder.features_dim,
            self.deterministic_size,
            self.hidden_size,
            self.activation_fn,
        )
        size = rssm.features_size
        decoder = DreamerDecoder(self.stored_spaces, size, self.cnn_depth, self._part_net_arch("decoder"), self.activation_fn)
        reward = ScalarHead(size, self._part_net_arch("reward"), UnitNormal, self.activation_fn)
        discount = ScalarHead(size, self._part_net_arch("discount"), Bernoulli, self.activation_fn)
        return WorldModel(encoder, rssm, decoder, reward, discount if self.use_discount_head else None, takes_dict=is_dict)

    def _make_behavior(self, features_size: int) -> ActorCritic:
        return ActorCritic(
            features_size,
            self.action_space,
            self._part_net_arch("actor"),
            self._part_net_arch("critic"),
            self.activation_fn,
            self.actor_min_std,
            self.actor_exact_gradient,
        )

    def _make_optimizers(self, learning_rate: float) -> None:
        """One optimizer each for world model, actor and critic; the target critic has none."""

        def make(module: nn.Module) -> ParameterOptimizer:
            return ParameterOptimizer(module.parameters(), self.optimizer_class, learning_rate, self.optimizer_kwargs)

        self.world_model_optimizer = make(self.world_model)
        self.actor_optimizer = make(self.behavior.actor)
        self.critic_optimizer = make(self.behavior.critic)

    @property
    def optimizer(self) -> th.optim.Optimizer:  # type: ignore[override]
        """The world model's PyTorch optimizer, under the name that SB3 expects."""
        return self.world_model_optimizer.optimizer

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            lr_schedule=self._dummy_schedule,
            deterministic_size=self.deterministic_size,
            hidden_size=self.hidden_size,
            stochastic_size=self.stochastic_size,
            stochastic_classes=self.stochastic_classes,
            net_arch=self.net_arch,
            cnn_depth=self.cnn_depth,
            activation_fn=self.activation_fn,
            image_size=self.image_size,
            use_discount_head=self.use_discount_head,
            actor_min_std=self.actor_min_std,
            actor_exact_gradient=self.actor_exact_gradient,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )
        return data

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
        stored = to_stored(observations, self.stored_spaces)
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
        :return: latent state and chosen action vectors
        """
        latent = self.world_model.filter(
            state.latent, state.actions, observations, episode_starts, sample_latent, latent_noise
        )
        policy = self.behavior.actor(latent.features)
        return ActingState(latent, policy.sample(action_noise) if sample_action else policy.mode)

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
        :param deterministic: take the mode of the latent state and of the action; needs no random number
        :return: action and next state
        """
        self.set_training_mode(False)
        if isinstance(observation, tuple) and len(observation) == 2 and isinstance(observation[1], dict):
            raise ValueError(
                "predict() was given a tuple: that is what reset() returns in the Gym API (obs, info). Pass the observation "
                "alone; a VecEnv's reset() returns just that."
            )
        tensors, vectorized = self.obs_to_tensor(observation)
        arrays = {k: v.cpu().numpy() for k, v in tensors.items()} if isinstance(tensors, dict) else tensors.cpu().numpy()
        stored = self.stored_tensors(arrays)
        n_envs = len(next(iter(stored.values())))
        acting = self._acting_state(state, n_envs)
        starts = np.zeros(n_envs, dtype=bool) if episode_start is None else np.array(episode_start).astype(bool).reshape(-1)
        if len(starts) != n_envs:
            raise ValueError(f"episode_start has {len(starts)} entries, but there are {n_envs} observations.")
        acting = self.act(stored, acting, th.as_tensor(starts, device=self.device), not deterministic, not deterministic)
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
        :return: (n, A), one-hot or in [-1, 1]
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


def checked_image_size(image_size: Any) -> ImageSize:
    """
    :param image_size: as given
    :return: (height, width), or None
    :raises ValueError: if it is anything else
    """
    if image_size is None:
        return None
    if not isinstance(image_size, tuple | list) or len(image_size) != 2:
        raise ValueError(f"image_size must be (height, width), or None for the native size, but is {image_size!r}.")
    for side in image_size:
        check_number("image_size", side, 1)
    return int(image_size[0]), int(image_size[1])


def _loss_names(stored: dict[str, spaces.Box]) -> dict[str, str]:
    """Logged name of each observation key's loss."""
    if list(stored) == [OBSERVATION_KEY]:
        return {OBSERVATION_KEY: "image_loss" if stored[OBSERVATION_KEY].dtype == np.uint8 else "vector_loss"}
    names: dict[str, str] = {}
    for i, key in enumerate(stored):
        name = key if len(key) <= LONGEST_LOGGED_KEY else f"{key[:LONGEST_LOGGED_KEY - 3]}~{i}"
        while f"{name}_loss" in (*OTHER_LOSSES, *names.values()):
            name += "~"
        names[key] = f"{name}_loss"
    return names


class CnnPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` for images."""

    _takes = "image"


class MlpPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` for vectors."""

    _takes = "vector"


class MultiInputPolicy(DreamerPolicy):
    """:class:`DreamerPolicy` for Dict observations."""

    _takes = "dict"
