"""Steps of the world model itself, for many dreams at once: the core of the dream environments."""

from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.one_hot import Features, OneHotFeatures, features_for
from sb3_dreamer.common.options import check_number
from sb3_dreamer.common.preprocessing import action_blocks, encode_actions, scale_actions
from sb3_dreamer.common.type_aliases import LatentState, SequenceBatch
from sb3_dreamer.world_model.state_space import ObservedSequence

#: How an episode ends in a dream
TERMINATIONS = ("threshold", "sample", "never")

#: Dreams from which on sums of rows are faster than products with one-hot states: before them, the weights are transposed
SMALLEST_SPARSE_BATCH = 16


class DreamStep(NamedTuple):
    """Outcome of one step of some dreams."""

    rewards: np.ndarray  # (n,) float32, in the environment's units
    continues: np.ndarray  # (n,) float32 probability that the episode continues; ones without a discount head
    terminated: np.ndarray  # (n,) bool


class DreamDynamics:
    """
    Prior steps of a world model, and the rewards and ends that its heads predict.

    :param model: a trained algorithm
    :param generator: where all random numbers come from
    :param termination: ``"threshold"``: an episode ends where its probability to continue is below ``threshold``;
        ``"sample"``: it ends with the predicted probability; ``"never"``: only the time limit ends it, as for models without
        discount head
    :param threshold: of ``termination="threshold"``, from 0 to 1
    :param transformed_rewards: leave rewards as the reward head learned them, instead of undoing ``reward_transform``
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
        self._label = model.continue_label
        # Whether anything predicts ends; with a label of 0 all labels of the discount head are the same
        self._knows_ends = self.world_model.discount_head is not None and self._label > 0.0
        self._termination = termination if self._knows_ends else "never"
        self._threshold = threshold
        self._transform = "identity" if transformed_rewards else model.reward_transform

    def _noise(self, *leading: int) -> th.Tensor:
        """Noise for samples of the latent state, (*leading, P)."""
        rssm = self.world_model.rssm
        return rssm.latent.draw_noise(rssm.weight.new_empty(*leading, rssm.latent.parameter_size), self.generator)

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
        noise = self._noise(*batch.rewards.shape)
        return self.world_model.rssm.observe(embeddings, batch.actions, batch.episode_starts, noise=noise)

    @th.no_grad()
    def advance(self, state: LatentState, actions: th.Tensor) -> LatentState:
        """
        One step of the prior: s_t ~ p(s_t | s_{t-1}, a_{t-1}) (V2, eq. 1).

        :param state: (n, ...)
        :param actions: as the world model sees them, (n, A)
        :return: (n, ...)
        """
        rssm = self.world_model.rssm
        return rssm.imagine_step(state, actions, self._noise(len(actions)), self._one_hot(state))

    @th.no_grad()
    def judge(self, features: Features) -> DreamStep:
        """
        Predict reward and end of states by reward and discount head.

        :param features: (n, F)
        :return: of each state
        """
        rewards = self.world_model.invert_rewards(self.world_model.predict_rewards(features), self._transform)
        continues = th.ones_like(rewards)
        if self._knows_ends:  # the label where an episode continues is not 1
            head = self.world_model.discount_head
            continues = (head(features_for(head, features)).mean / self._label).clamp(0.0, 1.0)  # type: ignore[misc]
        limit: th.Tensor | float = self._threshold
        if self._termination == "sample":
            limit = th.empty_like(continues).uniform_(generator=self.generator)
        terminated = continues < limit if self._termination != "never" else th.zeros_like(continues, dtype=th.bool)
        return DreamStep(rewards.cpu().numpy(), continues.cpu().numpy(), terminated.cpu().numpy())

    @th.no_grad()
    def step(self, state: LatentState, actions: np.ndarray) -> tuple[LatentState, DreamStep]:
        """
        Act in all dreams.

        :param state: (n, ...)
        :param actions: of the environment's action space, (n, *shape)
        :return: the next states, (n, ...), and their rewards and ends
        :raises ValueError: for another number of actions, or actions that are not in the space
        """
        state = self.advance(state, self._action_vectors(actions, len(state.deterministic)))
        one_hot = self._one_hot(state)
        return state, self.judge(state.features if one_hot is None else one_hot)

    def _one_hot(self, state: LatentState) -> OneHotFeatures | None:
        return self.world_model.rssm.one_hot(state) if len(state.stochastic) >= SMALLEST_SPARSE_BATCH else None

    def _action_vectors(self, actions: np.ndarray, count: int) -> th.Tensor:
        """Actions of the environment's space as the world model sees them, (n, A)."""
        space, chosen, device = self._action_space, np.asarray(actions), self.world_model.rssm.weight.device
        shape = (count, *space.shape)  # type: ignore[misc]
        if chosen.shape != shape:
            raise ValueError(f"The dream needs actions of shape {shape}, but was given {chosen.shape}.")
        if isinstance(space, spaces.Box):
            values = scale_actions(np.clip(chosen, space.low, space.high), space)
        else:
            counts = np.array(action_blocks(space)).reshape(shape[1:])
            if ((chosen < 0) | (chosen >= counts)).any():
                raise ValueError(f"The dream takes actions of {space}, but was given {chosen.tolist()}.")
            values = chosen.astype(np.int64)
        return encode_actions(th.as_tensor(values.reshape(count, -1), device=device), space)
