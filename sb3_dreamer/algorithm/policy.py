"""The policy of an agent with a world model: acts with a memory, and predicts as SB3's recurrent policies do."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_dreamer.behavior.actor_critic import Behavior
from sb3_dreamer.behavior.exploration import Exploration
from sb3_dreamer.common.functional import noisy_actions
from sb3_dreamer.common.observations import ObservationFormat, split_space
from sb3_dreamer.common.optimization import ParameterOptimizer
from sb3_dreamer.common.options import check_number, whole_number
from sb3_dreamer.common.preprocessing import ImageSize, NumpyObs, action_blocks, decode_actions
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.world_model.base import BaseWorldModel

#: What ``predict(deterministic=True)`` takes of the latent state
EVALUATION_LATENTS = ("mode", "sample")


class ActingState(NamedTuple):
    """What an acting agent remembers between two steps."""

    latent: LatentState  # (n, ...)
    actions: th.Tensor  # (n, A) world-model vectors of the actions executed last


class WorldModelPolicy(BasePolicy):
    """
    An SB3 policy that acts through a world model: it follows the latent state, and its actor sees that state alone.

    A subclass builds ``world_model``, ``behavior``, ``exploration`` and the optimizers.

    :param observation_space: see the subclass
    :param action_space: see the subclass
    :param image_size: (height, width) to which images are resized on entry; None keeps the native size
    :param random_exploration: uniformly random actions while exploring
    :param evaluation_noise: amount of action noise in :meth:`predict`
    :param evaluation_latent: what ``predict(deterministic=True)`` takes of the latent state, see ``EVALUATION_LATENTS``
    :param normalize_images: False for float images in the network's units
    :param options: of SB3's ``BasePolicy``
    """

    #: Kind of observation space that a subclass takes, None for any
    _takes: str | None = None
    world_model: BaseWorldModel
    behavior: Behavior
    exploration: Exploration | None
    #: Logged name of each observation's loss
    loss_names: dict[str, str]

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *,
        image_size: ImageSize,
        random_exploration: bool,
        evaluation_noise: float,
        evaluation_latent: str,
        normalize_images: bool,
        **options: Any,
    ):
        squash_output = isinstance(action_space, spaces.Box)
        super().__init__(
            observation_space, action_space, normalize_images=normalize_images, squash_output=squash_output, **options
        )
        self.image_size = checked_image_size(image_size)
        self._check_observation_space()
        self.observations = ObservationFormat(observation_space, self.image_size, float_images=not normalize_images)
        self._action_blocks = action_blocks(action_space)
        check_number("evaluation_noise", evaluation_noise, 0.0, np.inf if squash_output else 1.0)
        if evaluation_latent not in EVALUATION_LATENTS:
            raise ValueError(f"evaluation_latent must be one of {EVALUATION_LATENTS}, but is {evaluation_latent!r}.")
        self.evaluation_noise, self.evaluation_latent = evaluation_noise, evaluation_latent
        self.explores_randomly = random_exploration

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
                "out: uint8 images are normalized inside."
            )

    @property
    def behaviors(self) -> list[Behavior]:
        """The task's actor-critic, and the one of exploration if there is one."""
        return [self.behavior] if self.exploration is None else [self.behavior, self.exploration.behavior]

    @property
    def optimizers(self) -> dict[str, ParameterOptimizer]:
        """All optimizers by attribute name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, ParameterOptimizer)}

    @property
    def optimizer(self) -> th.optim.Optimizer:  # type: ignore[override]
        """The PyTorch optimizer that was made first, under the name that SB3 expects."""
        return next(iter(self.optimizers.values())).optimizer

    def initial_state(self, n_envs: int) -> ActingState:
        """What n agents remember before their first step."""
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
        Predict actions, with memory: pass the returned state to the next call, as with RecurrentPPO. Without a state every
        call begins an episode.

        :param observation: in the environment's own form, with or without a batch axis
        :param state: of the last call, or None at the start: deterministic state (n, D), stochastic state (n, Z), previous
            action (n, A)
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
        given = np.zeros(n_envs, dtype=bool) if episode_start is None else np.array(episode_start).astype(bool).reshape(-1)
        if len(given) != n_envs:
            raise ValueError(f"episode_start has {len(given)} entries, but there are {n_envs} observations.")
        starts, sample_action = th.as_tensor(given, device=self.device), not deterministic
        sample_latent = sample_action or self.evaluation_latent == "sample"
        acting = self.act(stored, acting, starts, sample_latent, sample_action, noise_amount=self.evaluation_noise)
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
        """Memoryless action vectors (n, A), for SB3 code that calls this directly with tensors, channel first."""
        arrays: NumpyObs = observation.cpu().numpy() if isinstance(observation, th.Tensor) else {}
        if isinstance(observation, dict):
            arrays = {key: value.cpu().numpy() for key, value in observation.items()}
        stored = self.stored_tensors(arrays)
        n_envs = len(next(iter(stored.values())))
        starts = th.ones(n_envs, dtype=th.bool, device=self.device)
        return self.act(stored, self.initial_state(n_envs), starts, not deterministic, not deterministic).actions

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """See :meth:`_predict`."""
        return self._predict(observation, deterministic)


def has_float_image(space: spaces.Space) -> bool:
    """Whether an observation space contains a Box of floats of rank 3."""
    boxes = [part for part in split_space(space).values() if isinstance(part, spaces.Box)]
    return any(len(box.shape) == 3 and np.issubdtype(box.dtype, np.floating) for box in boxes)


def checked_image_size(image_size: Any) -> ImageSize:
    """
    Check an image size.

    :param image_size: as given
    :return: (height, width), or None for the native size
    :raises ValueError: if it is anything else
    """
    if image_size is None:
        return None
    if not isinstance(image_size, tuple | list) or len(image_size) != 2:
        raise ValueError(f"image_size must be (height, width), or None for the native size, but is {image_size!r}.")
    height, width = (whole_number("image_size", side, 1) for side in image_size)
    return height, width
