"""
What a rollout and its update cost with W ranks: a simulator of the lockstep of ``sb3_dreamer/algorithm/team.py``.

    each rank:  collect F steps of n environments  | update: world model | actor and critic
    between:                         agreement (small)         gradients          gradients

Every bar is a point at which all ranks wait for the slowest. The time of an all-reduce is that of a ring: 2 (W - 1) messages
one after the other, which carry 2 (W - 1) / W of the bytes (Thakur, Rabenseifner and Gropp, Optimization of Collective
Communication Operations in MPICH, 2005).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Link:
    """
    What connects the ranks.

    :param latency: seconds per message
    :param bandwidth: bytes per second
    """

    latency: float
    bandwidth: float

    def all_reduce(self, bytes_: float, ranks: int) -> float:
        """
        :param bytes_: of the flat gradients
        :param ranks: W
        :return: seconds
        """
        if ranks == 1:
            return 0.0
        return 2 * (ranks - 1) * (self.latency + bytes_ / ranks / self.bandwidth)


@dataclass(frozen=True)
class Costs:
    """
    What one rank needs, measured; several measurements stand for what varies.

    :param step: seconds of one step of its environments: acting, stepping, storing
    :param update: seconds of an update on its share of the batch, communication excluded
    :param shares: of the world model, and of actor and critic, in the update
    :param bytes_: of the gradients of the world model, and of actor and critic
    :param copying: seconds per byte to make gradients flat and to take them apart again
    """

    step: Sequence[float]
    update: Sequence[float]
    shares: tuple[float, float]
    bytes_: tuple[float, float]
    copying: float = 0.0


@dataclass
class Prediction:
    """
    Of one setting.

    :param seconds: of a rollout with its update
    :param waiting: share of it that is spent waiting for the slowest rank
    :param communication: share of it that is spent in all-reduces and agreements
    """

    seconds: float
    waiting: float
    communication: float
    rollouts: list[float] = field(default_factory=list, repr=False)


def affine_update(fixed: float, per_sequence: float, batch: float) -> float:
    """
    :param fixed: seconds of an update whatever its batch: launching, optimizers, recurrent steps
    :param per_sequence: seconds that each sequence adds
    :param batch: sequences of this rank
    :return: seconds of an update
    """
    return fixed + per_sequence * batch


def simulate(costs: Costs, link: Link, ranks: int, steps: int, rollouts: int = 400, seed: int = 0) -> Prediction:
    """
    :param costs: of one rank
    :param link: between all of them
    :param ranks: W
    :param steps: environment steps of a rank between two updates (``train_freq``)
    :param rollouts: that are simulated
    :param seed: of the draws from the measurements
    :return: mean seconds of a rollout with its update, and where they go
    """
    random = np.random.default_rng(seed)
    step, update = np.asarray(costs.step), np.asarray(costs.update)
    collecting = random.choice(step, (rollouts, ranks, steps)).sum(-1)
    computing = random.choice(update, (rollouts, ranks))
    agreement = link.all_reduce(1000.0, ranks)  # what only one rank knows, and the metrics
    slowest, own = collecting.max(1), collecting.mean(1)
    talking = np.full(rollouts, agreement)
    for share, bytes_ in zip(costs.shares, costs.bytes_, strict=True):
        slowest += share * computing.max(1)
        own += share * computing.mean(1)
        talking += link.all_reduce(bytes_, ranks) + (costs.copying * bytes_ if ranks > 1 else 0.0)
    total = slowest + talking
    mean = float(total.mean())
    return Prediction(mean, float((slowest - own).mean()) / mean, float(talking.mean()) / mean, total.tolist())
