"""
Structured tensors that are passed between the subpackages, and the letters of their shapes.

T time of a replayed sequence, B sequences, N = T*B flattened start states, H imagination horizon, A action vector,
D deterministic state, S x K stochastic variables x classes, Z flat stochastic state, E embedding, F = Z + D features,
C/h/w image channels, height, width. Time always comes first.
"""

from typing import NamedTuple

import torch as th

from sb3_dreamer.common.one_hot import Features, OneHotFeatures, accepts_one_hot


class LatentState(NamedTuple):
    """Compact state s_t of the world model (V2, section 2.1)."""

    deterministic: th.Tensor  # (..., D) recurrent state h_t
    stochastic: th.Tensor  # (..., Z) flat sample z_t, gradients straight-through

    @property
    def features(self) -> th.Tensor:
        """Input of every head: [z_t; h_t], shape (..., F)."""
        return th.cat([self.stochastic, self.deterministic], dim=-1)

    def detach(self) -> "LatentState":
        """The same values without their gradient history: sg(s_t)."""
        return LatentState(self.deterministic.detach(), self.stochastic.detach())


class SequenceBatch(NamedTuple):
    """B sub-sequences of T consecutive arrival records of the replay buffer."""

    observations: dict[str, th.Tensor]  # per key (T, B, *shape), dtype as stored (uint8 images, float32 vectors)
    actions: th.Tensor  # (T, B, A) world-model vector that led to step t; zeros where an episode starts
    rewards: th.Tensor  # (T, B) received on arrival at t, as the environment gave it
    continues: th.Tensor  # (T, B) 0 where the environment terminated on arrival at t (not at time limits), else 1
    episode_starts: th.Tensor  # (T, B) bool, True where the latent state is reset; always True at t = 0, unless in a context


class ContextBatch(NamedTuple):
    """Sub-sequences that begin in mid-episode, with the latent states that were stored there (V3)."""

    steps: SequenceBatch  # T steps
    context: LatentState  # states before the first step, (B, ...)


class Experience(NamedTuple):
    """The world model's view of replayed sequences, as constants: what exploration learns from."""

    states: LatentState  # posterior states, (T, B, ...)
    embeddings: th.Tensor  # of the observations, (T, B, E)
    actions: th.Tensor  # (T, B, A) that led to step t; zeros where an episode starts
    episode_starts: th.Tensor  # (T, B) bool
    kl: th.Tensor  # (T, B) KL(posterior, prior) without free nats


class ImaginedTrajectory(NamedTuple):
    """Imagined latent trajectories of horizon H from N start states; row 0 is the start itself (V2, section 2.2)."""

    states: LatentState  # (H + 1, N, ...)
    features: th.Tensor  # (H + 1, N, F)
    actions: th.Tensor  # (H + 1, N, A) action that led to the row; zeros in row 0
    rewards: th.Tensor  # (H + 1, N) predicted on arrival, in units of the (transformed) reward
    discounts: th.Tensor  # (H + 1, N) gamma times the probability that the episode continues
    weights: th.Tensor  # (H + 1, N) sg(product of the discounts of all earlier rows); row 0 is 1
    one_hot: OneHotFeatures | None = None  # the same features without their zeros, where that is faster; no gradient

    def inputs_for(self, network: object) -> Features:
        """
        The features in the cheapest form that a network accepts.

        :param network: of actor or critic
        :return: (H + 1, N, F)
        """
        return self.one_hot if self.one_hot is not None and accepts_one_hot(network) else self.features
