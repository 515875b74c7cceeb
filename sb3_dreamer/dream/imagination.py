"""The world model's own steps, for many dreams at once: what the dream environments are made of."""

from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.functional import INVERSE_REWARD_TRANSFORMS
from sb3_dreamer.common.one_hot import Features, OneHotFeatures, features_for
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.preprocessing import encode_actions, scale_actions
from sb3_dreamer.common.type_aliases import LatentState, SequenceBatch
from sb3_dreamer.world_model.rssm import ObservedSequence

#: How an episode ends in a dream
TERMINATIONS = ("threshold", "sample", "never")

#: Dreams from which on sums of rows are faster than products with one-hot states: before them, the weights are transposed
SMALLEST_SPARSE_BATCH = 16


class DreamStep(NamedTuple):
    """What one step of some dreams has brought."""

    rewards: np.ndarray  # (n,) float32, in the environment's units
    continues: np.ndarray  # (n,) float32 probability that the episode goes on; ones without a discount head
    terminated: np.ndarray  # (n,) bool


class Imagination:
    """
    Prior steps of a world model, and what its heads say about them.

    :param model: a trained algorithm
    :param termination: ``"threshold"``: an episode ends where going on has a probability below ``threshold``; ``"sample"``: it
        ends with the predicted probability; ``"never"``: only the time limit ends it, as for models without discount head
    :param threshold: see there
    :param transformed_rewards: leave rewards as the reward head learned them (``reward_transform``), not undone
    :param generator: where all random numbers come from
    :raises ValueError: for an unknown kind of termination or an impossible threshold
    """

    def __init__(
        self,
        model: SequenceOffPolicyAlgorithm,
        generator: th.Generator,
        termination: str = "threshold",
        threshold: float = 0.5,
        transformed_rewards: bool = False,
    ) -> None:
        if termination not in TERMINATIONS:
            raise ValueError(f"termination must be one of {TERMINATIONS}, but is {termination!r}.")
        check_number("threshold", threshold, 0.0, 1.0)
        self.world_model, self.generator, self._action_space = model.policy.world_model, generator, model.action_space
        self._gamma = model.gamma
        #: Whether there is something that says when episodes end; with gamma = 0 its labels are all the same
        self._knows_ends = self.world_model.discount_head is not None and self._gamma > 0.0
        self._termination = termination if self._knows_ends else "never"
        self._threshold = threshold
        transform = "identity" if transformed_rewards else model.model_objective.reward_transform  # type: ignore[attr-defined]
        self._inverse = INVERSE_REWARD_TRANSFORMS[transform]

    def noise(self, *leading: int) -> th.Tensor:
        """
        :param leading: shape before the parameters
        :return: noise for samples of the latent state, (*leading, P)
        """
        rssm = self.world_model.rssm
        return rssm.latent.draw_noise(rssm.input.weight.new_empty(*leading, rssm.latent.parameter_size), self.generator)

    @th.no_grad()
    def observe(self, batch: SequenceBatch) -> ObservedSequence:
        """
        Follow the posterior through recorded steps.

        :param batch: (T, B, ...)
        :return: states, posteriors and priors, (T, B, ...)
        """
        observations = self.world_model.encode(batch.observations)
        flat = {key: value.flatten(0, 1) for key, value in observations.items()}
        embeddings = self.world_model.embed(flat).unflatten(0, batch.rewards.shape)
        noise = self.noise(*batch.rewards.shape)
        return self.world_model.rssm.observe(embeddings, batch.actions, batch.episode_starts, noise=noise)

    def filter(self, batch: SequenceBatch) -> LatentState:
        """
        :param batch: (T, B, ...)
        :return: posterior states of all steps, (T, B, ...)
        """
        return self.observe(batch).states

    @th.no_grad()
    def advance(self, state: LatentState, actions: th.Tensor) -> LatentState:
        """
        One step of the prior: s_t ~ p(s_t | s_{t-1}, a_{t-1}) (V2, eq. 1).

        :param state: (n, ...)
        :param actions: as the world model sees them, (n, A)
        :return: (n, ...)
        """
        rssm = self.world_model.rssm
        return rssm.imagine_step(state, actions, self.noise(len(actions)), self._one_hot(state))

    @th.no_grad()
    def judge(self, features: Features) -> DreamStep:
        """
        What reward and discount head say of states.

        :param features: (n, F)
        :return: of each state
        """
        rewards = self._inverse(self.world_model.predict_rewards(features))
        continues = th.ones_like(rewards)
        if self._knows_ends:  # the label is gamma where an episode goes on
            head = self.world_model.discount_head
            continues = (head(features_for(head, features)).mean / self._gamma).clamp(0.0, 1.0)  # type: ignore[misc]
        limit: th.Tensor | float = self._threshold
        if self._termination == "sample":
            limit = th.empty_like(continues).uniform_(generator=self.generator)
        terminated = continues < limit if self._termination != "never" else th.zeros_like(continues, dtype=th.bool)
        return DreamStep(rewards.cpu().numpy(), continues.cpu().numpy(), terminated.cpu().numpy())

    @th.no_grad()
    def step(self, state: LatentState, actions: np.ndarray) -> tuple[LatentState, DreamStep]:
        """
        :param state: (n, ...)
        :param actions: of the environment's action space, (n, *shape)
        :return: (n, ...), and what came of it
        """
        state = self.advance(state, self.action_vectors(actions, len(state.deterministic)))
        one_hot = self._one_hot(state)
        return state, self.judge(state.features if one_hot is None else one_hot)

    def _one_hot(self, state: LatentState) -> OneHotFeatures | None:
        return self.world_model.rssm.one_hot(state) if len(state.stochastic) >= SMALLEST_SPARSE_BATCH else None

    def action_vectors(self, actions: np.ndarray, count: int) -> th.Tensor:
        """
        :param actions: of the environment's action space, (n, *shape)
        :param count: n
        :return: as the world model sees them, (n, A)
        :raises ValueError: for another number of actions, or such as are not in the space
        """
        space, chosen = self._action_space, np.asarray(actions)
        if chosen.shape != (count, *space.shape):  # type: ignore[misc]
            raise ValueError(f"The dream needs actions of shape {(count, *space.shape)}, but was given {chosen.shape}.")  # type: ignore[misc]
        if isinstance(space, spaces.Box):
            clipped = np.clip(chosen, space.low, space.high)
            return encode_actions(self._tensor(scale_actions(clipped, space).reshape(count, -1)), space)
        largest = np.broadcast_to(action_counts(space), chosen.shape)
        if ((chosen < 0) | (chosen >= largest)).any():
            raise ValueError(f"The dream takes actions of {space}, but was given {chosen.tolist()}.")
        return encode_actions(self._tensor(chosen.reshape(count, -1).astype(np.int64)), space)

    def _tensor(self, values: np.ndarray) -> th.Tensor:
        return th.as_tensor(values, device=self.world_model.rssm.input.weight.device)


def action_counts(space: spaces.Space) -> np.ndarray:
    """
    :param space: Discrete, MultiDiscrete or MultiBinary
    :return: number of choices in each place
    """
    if isinstance(space, spaces.MultiBinary):
        return np.array(2)
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
    return np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec)
