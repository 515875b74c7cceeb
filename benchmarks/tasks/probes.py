"""
Probes: some forty tiny environments, each of which asks one thing of an agent and takes minutes on a CPU.

Each has a scripted policy that solves it from its observations, and a threshold. They fall into two halves by a fixed rule:
settings are chosen on the tuning half alone, and the validation half is run once, to report.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple
from zlib import crc32

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from benchmarks.tasks.boards import Board, KeyDoor
from benchmarks.tasks.decisions import Choice, Cues, Dials, Recall, Timer
from benchmarks.tasks.grid import SparseGrid
from benchmarks.tasks.images import PerfectCatch, PixelCatch
from benchmarks.tasks.presentations import Distracted, Drawn, HiddenVelocities, Paid, Units
from benchmarks.tasks.task import Scripted

#: Share of the way from random to scripted play that counts as learned
LEARNED = 0.8
HALVES = ("tuning", "validation")
Make = Callable[[], gym.Env]


class Probe(NamedTuple):
    """
    One environment and what is expected of an agent.

    :param name: key of ``PROBES``
    :param kind: what it asks for
    :param make: makes the environment
    :param steps: training budget
    :param best: mean return of the scripted policy
    :param random: mean return of uniformly random actions
    :param threshold: mean return that counts as learned
    :param half: ``"tuning"`` or ``"validation"``
    :param is_image: whether images are observed
    :param scripted: makes the scripted policy, which has SB3's ``predict``
    """

    name: str
    kind: str
    make: Make
    steps: int
    best: float
    random: float
    threshold: float
    half: str
    is_image: bool
    scripted: Callable[[], Any]


class _Entry(NamedTuple):
    """What the table says of a probe; ``best`` and ``random`` are exact or measured over 4,000 episodes."""

    kind: str
    make: Make
    steps: int
    best: float
    random: float
    scripted: Callable[[], Any] | None = None


def wrapped(wrapper: Callable[..., gym.Env], make: Make, **kwargs: Any) -> Make:
    """
    Compose a wrapper and an environment.

    :param wrapper: takes the environment and ``kwargs``
    :param make: makes the environment
    :param kwargs: of the wrapper
    :return: makes the wrapped environment
    """
    return lambda: wrapper(make(), **kwargs)


def halves(kinds: dict[str, str]) -> dict[str, str]:
    """
    Split probes: within each kind by ``crc32`` of the name, in turn to tuning and validation.

    :param kinds: of each probe, by name
    :return: half of each probe, by name
    """
    split = {}
    for kind in dict.fromkeys(kinds.values()):
        names = sorted((name for name in kinds if kinds[name] == kind), key=lambda name: crc32(name.encode()))
        split.update({name: HALVES[index % 2] for index, name in enumerate(names)})
    return split


def threshold_of(best: float, random: float) -> float:
    """
    Mean return that counts as learned.

    :param best: of the scripted policy
    :param random: of random actions
    :return: the return at ``LEARNED`` of the way
    """
    return random + LEARNED * (best - random)


def play(make: Make, policy: Any, episodes: int, seed: int = 0) -> np.ndarray:
    """
    Play whole episodes, one after the other.

    :param make: makes the environment
    :param policy: with SB3's ``predict``
    :param episodes: how many
    :param seed: of the first episode; the others continue its random numbers
    :return: returns, (episodes,)
    """
    env, returns = make(), np.zeros(episodes)
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        state, start, over = None, np.ones(1, bool), False
        while not over:
            batch = {k: v[None] for k, v in observation.items()} if isinstance(observation, dict) else observation[None]
            actions, state = policy.predict(batch, state, start, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(actions[0])
            returns[episode] += float(reward)
            start, over = np.zeros(1, bool), terminated or truncated
    return returns


_CUE = partial(Cues, spaces.Discrete(4))
_FETCH, _FETCH_CELLS = Board, partial(Board, one_hot_cells=True)
_FETCH_BEST, _FETCH_RANDOM, _FETCH_STEPS = 11.06, 0.80, 6_000


def _lump(amount: float, step: int, length: int) -> tuple[float, ...]:
    """Rewards of a stream that pays once."""
    return (0.0,) * step + (amount,) + (0.0,) * (length - step - 1)


def _paid(factor: float, bonus: float) -> _Entry:
    """The base task in another currency; its numbers follow exactly."""
    best, random = (factor * value + bonus * Board().length for value in (_FETCH_BEST, _FETCH_RANDOM))
    return _Entry("rewards", wrapped(Paid, _FETCH, factor=factor, bonus=bonus), _FETCH_STEPS, best, random)


_TABLE: dict[str, _Entry] = {
    "cue-4": _Entry("reaction", _CUE, 4_000, 20.0, 5.0),
    "cue-multi": _Entry("reaction", partial(Cues, spaces.MultiDiscrete([3, 3, 2])), 4_000, 20.0, 7.778),
    "cue-binary": _Entry("reaction", partial(Cues, spaces.MultiBinary(4)), 4_000, 20.0, 10.0),
    "bandit": _Entry("reaction", partial(_CUE, length=1, luck=0.8, ends=True), 4_000, 0.8, 0.35),
    "grab": _Entry("reaction", partial(Board, "grab", 5), 10_000, 12.5, -0.3),
    "dial-1": _Entry("dials", partial(Dials, [-1.0], [1.0]), 5_000, 20.0, 4.583),
    "dials-2": _Entry("dials", partial(Dials, [0.0, -3.0], [10.0, 1.0]), 6_000, 20.0, 4.583),
    "dials-4": _Entry("dials", partial(Dials, [-100.0, 0.0, 2.0, -5.0], [100.0, 1.0, 3.0, 0.0]), 8_000, 20.0, 4.583),
    "dials-slow": _Entry("dials", partial(Dials, [-1.0, -3.0], [3.0, 1.0], speed=0.1), 8_000, 18.83, 3.22),
    "recall-3": _Entry("memory", partial(Recall, 3), 8_000, 1.0, 0.0),
    "tmaze-5": _Entry("memory", partial(Recall, 5, walking=True), 10_000, 0.95, -0.16),
    "recall-8": _Entry("memory", partial(Recall, 8), 10_000, 1.0, 0.0),
    "recall-12": _Entry("memory", partial(Recall, 12), 12_000, 1.0, 0.0),
    "back-3": _Entry("memory", partial(Cues, spaces.Discrete(3), length=23, delay=3), 8_000, 20.0, 6.667),
    "cartpole-hidden": _Entry("memory", HiddenVelocities, 12_000, 200.0, 22.1),
    "key-door": _Entry("sparse", KeyDoor, 15_000, 0.944, -0.19),
    "corner": _Entry("sparse", partial(SparseGrid, 5, 20), 8_000, 1.0, 0.064),
    "cue-late": _Entry("sparse", partial(Cues, spaces.Discrete(3), length=6, late=True, ends=True), 8_000, 6.0, 2.0),
    "lump-4": _Entry("lumps", partial(Choice, [(1, 1, 1, 1), (-2, -2, 0, 12)]), 4_000, 8.0, 6.0),
    "annuity": _Entry("lumps", partial(Choice, [(1,) * 12, _lump(14, 5, 12), _lump(19, 11, 12)]), 6_000, 19.0, 15.0),
    "patience": _Entry(
        "lumps", partial(Choice, [_lump(4, 0, 8), (1,) * 8, _lump(6, 3, 8), _lump(10, 7, 8)]), 8_000, 10.0, 7.0
    ),
    "trickle": _Entry("lumps", partial(Choice, [_lump(10, 0, 10), (1.5,) * 10, _lump(11, 9, 10)]), 6_000, 15.0, 12.0),
    "timer-6": _Entry("timing", partial(Timer, 6), 8_000, 1.0, 0.032),
    "rhythm-4": _Entry("timing", partial(Timer, 4, again=7), 8_000, 7.0, 0.812),
    "fetch-onehot": _Entry("observations", _FETCH_CELLS, _FETCH_STEPS, _FETCH_BEST, _FETCH_RANDOM),
    "fetch-1000": _Entry("observations", wrapped(Units, _FETCH, factor=1e3), _FETCH_STEPS, _FETCH_BEST, _FETCH_RANDOM),
    "fetch-0.001": _Entry("observations", wrapped(Units, _FETCH, factor=1e-3), _FETCH_STEPS, _FETCH_BEST, _FETCH_RANDOM),
    "fetch-noise": _Entry("observations", wrapped(Distracted, _FETCH), _FETCH_STEPS, _FETCH_BEST, _FETCH_RANDOM),
    "catch-image": _Entry("images", PixelCatch, 5_000, 1.0, -0.6, PerfectCatch),
    "cue-4-image": _Entry("images", wrapped(Drawn, _CUE), 4_000, 20.0, 5.0),
    "fetch-image": _Entry("images", wrapped(Drawn, _FETCH_CELLS), 5_000, _FETCH_BEST, _FETCH_RANDOM),
    "recall-3-image": _Entry("images", wrapped(Drawn, partial(Recall, 3)), 5_000, 1.0, 0.0),
    "fetch": _paid(1.0, 0.0),
    "fetch-x0.01": _paid(0.01, 0.0),
    "fetch-x100": _paid(100.0, 0.0),
    "fetch-plus-1": _paid(1.0, 1.0),
    "exit-ends": _Entry("ends", partial(Board, "exit", length=40), 5_000, -0.168, -2.4),
    "exit-stays": _Entry("ends", partial(Board, "stay", length=40), 5_000, -0.168, -3.757),
    "cue-fatal": _Entry("ends", partial(_CUE, fatal=True), 5_000, 20.0, 1 / 3),
    "cue-long": _Entry("long", partial(_CUE, length=400), 6_000, 400.0, 100.0),
    "fetch-long": _Entry("long", partial(Board, length=400), 8_000, 150.3, 9.75),
}


def _probe(name: str, entry: _Entry, half: str) -> Probe:
    kind, make, steps, best, random, scripted = entry
    is_image = len(make().observation_space.shape or ()) == 3
    policy = scripted or partial(Scripted, make)
    return Probe(name, kind, make, steps, best, random, threshold_of(best, random), half, is_image, policy)


_SPLIT = halves({name: entry.kind for name, entry in _TABLE.items()})
PROBES: dict[str, Probe] = {name: _probe(name, entry, _SPLIT[name]) for name, entry in _TABLE.items()}


def chosen(names: Iterable[str] = (), half: str | None = None) -> list[Probe]:
    """
    Select probes.

    :param names: of probes; none for all
    :param half: one half only
    :return: the probes, in the order of the table
    """
    wanted = list(names)
    return [probe for probe in PROBES.values() if (not wanted or probe.name in wanted) and half in (None, probe.half)]
