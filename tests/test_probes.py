"""Probes are what their table says: proper, solvable from what they show, not by chance, and split by a rule."""

from collections import Counter
from typing import Any
from zlib import crc32

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.tasks.boards import Board, KeyDoor
from benchmarks.tasks.decisions import Choice, Cues, Dials, Recall, Timer
from benchmarks.tasks.probes import HALVES, PROBES, Probe, chosen, halves, play
from benchmarks.tasks.task import RandomPlay
from sb3_dreamer.presets import default_section

each_probe = pytest.mark.parametrize("probe", PROBES.values(), ids=list(PROBES))
KINDS = {"reaction", "dials", "memory", "sparse", "lumps", "timing", "observations", "images", "rewards", "ends", "long"}


def episodes_of(probe: Probe) -> int:
    """Fewer where an episode has 200 steps or more."""
    return 20 if probe.kind == "long" or probe.name == "cartpole-hidden" else 100


def trajectory(env: gym.Env, seed: int, actions: list[Any]) -> list[Any]:
    return [env.reset(seed=seed)[0], *(env.step(action)[:4] for action in actions)]


@each_probe
@pytest.mark.filterwarnings("ignore")
def test_is_a_proper_env(probe: Probe) -> None:
    check_env(probe.make(), skip_render_check=True)
    is_image = len(probe.make().observation_space.shape or ()) == 3
    assert probe.is_image == is_image == (probe.kind == "images")
    assert default_section(probe.make().observation_space)[0] == ("default_pixels" if is_image else "default")


@each_probe
def test_scripted_and_random_play_have_the_returns_of_the_table(probe: Probe) -> None:
    episodes = episodes_of(probe)
    for policy, expected in ((probe.scripted(), probe.best), (RandomPlay(probe.make, seed=1), probe.random)):
        returns = play(probe.make, policy, episodes, seed=3)
        error = 4.0 * returns.std() / episodes**0.5 + 0.01 * (probe.best - probe.random)
        assert returns.mean() == pytest.approx(expected, abs=error)


@each_probe
def test_episodes_repeat_with_their_seed(probe: Probe) -> None:
    env, other = probe.make(), probe.make()
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(3)]
    first = trajectory(env, 5, actions[:1])
    np.testing.assert_equal(trajectory(env, 5, actions[:1]), first)
    np.testing.assert_equal(trajectory(other, 5, actions[:1]), first)
    starts = {str(env.reset(seed=seed)[0]) for seed in range(8)}
    assert len(starts) > 1 or probe.kind in ("lumps", "timing", "images") or probe.name == "corner", "str shortens images"


def test_every_kind_is_there_in_both_halves() -> None:
    assert len(PROBES) >= 28
    assert {probe.kind for probe in PROBES.values()} == KINDS
    for kind in KINDS:
        count = Counter(probe.half for probe in PROBES.values() if probe.kind == kind)
        assert count["tuning"] - count["validation"] in (0, 1)
        names = sorted((p.name for p in PROBES.values() if p.kind == kind), key=lambda name: crc32(name.encode()))
        assert [PROBES[name].half for name in names] == [HALVES[i % 2] for i in range(len(names))]
    assert halves({"only": "kind"}) == {"only": "tuning"}
    assert chosen() == list(PROBES.values()) and len(chosen(half="tuning")) + len(chosen(half="validation")) == len(PROBES)
    assert {probe.half for probe in chosen(half="validation")} == {"validation"}
    assert [probe.name for probe in chosen(["trickle", "cue-4"])] == ["cue-4", "trickle"]


@each_probe
def test_thresholds_follow_the_rule(probe: Probe) -> None:
    assert probe.name == next(name for name, other in PROBES.items() if other is probe)
    assert probe.threshold == pytest.approx(0.2 * probe.random + 0.8 * probe.best)
    assert probe.random < probe.threshold < probe.best
    assert 0 < probe.steps <= (5_000 if probe.is_image else 15_000), "three minutes on a CPU"


def test_kinds_of_actions() -> None:
    actions = [probe.make().action_space for probe in PROBES.values() if probe.kind in ("reaction", "dials")]
    assert {type(space) for space in actions} == {spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box}
    low = [space.low for space in actions if isinstance(space, spaces.Box)]
    high = [space.high for space in actions if isinstance(space, spaces.Box)]
    assert any((-a != b).any() for a, b in zip(low, high, strict=True)), "asymmetric bounds"


@pytest.mark.parametrize(
    "name, factor, bonus", [("fetch-x0.01", 0.01, 0.0), ("fetch-x100", 100.0, 0.0), ("fetch-plus-1", 1.0, 1.0)]
)
def test_rewards_are_exact_multiples(name: str, factor: float, bonus: float) -> None:
    base, paid = PROBES["fetch"], PROBES[name]
    actions = list(np.random.default_rng(0).integers(5, size=30))
    for one, other in zip(trajectory(base.make(), 1, actions)[1:], trajectory(paid.make(), 1, actions)[1:], strict=True):
        assert np.array_equal(one[0], other[0]) and one[1] * factor + bonus == other[1] and one[2:] == other[2:]
    for value, in_units in ((base.best, paid.best), (base.random, paid.random), (base.threshold, paid.threshold)):
        assert in_units == pytest.approx(factor * value + bonus * 30)


def test_observations_are_the_same_in_other_units() -> None:
    plain = PROBES["fetch"].make().reset(seed=4)[0]
    for name, factor in (("fetch-1000", 1e3), ("fetch-0.001", 1e-3)):
        np.testing.assert_allclose(PROBES[name].make().reset(seed=4)[0], factor * plain, rtol=1e-6)
    noisy = PROBES["fetch-noise"].make()
    first, second = noisy.reset(seed=4)[0], noisy.step(0)[0]
    np.testing.assert_array_equal(first["task"], plain)
    assert not np.array_equal(first["noise"], second["noise"]) and first["noise"].shape == (8,)
    image = PROBES["fetch-image"].make().reset(seed=4)[0]
    assert set(np.unique(image)) == {0, 128, 255} and (image == 255).sum() == (image == 128).sum() == 16 * 16


def test_same_task_ends_in_two_ways() -> None:
    """Best play earns the same; one is terminated upon arrival, the other truncated when the time is over."""
    ends, stays = PROBES["exit-ends"], PROBES["exit-stays"]
    np.testing.assert_array_equal(play(ends.make, ends.scripted(), 1, 7), play(stays.make, stays.scripted(), 1, 7))
    env = Board("exit", length=2)
    env.reset(seed=0)
    env.piece, env.target = np.array([0, 0]), np.array([0, 1])
    assert env.step(3)[1:4] == (0.0, True, False)
    env = Board("stay", length=2)
    env.reset(seed=0)
    env.piece, env.target = np.array([0, 0]), np.array([0, 1])
    assert [env.step(action)[1:4] for action in (3, 4)] == [(0.0, False, False), (0.0, False, True)]


def test_cues() -> None:
    env = Cues(spaces.Discrete(3), length=6, delay=2)
    assert [len(env.cues), env.reset(seed=0)[0].sum()] == [0, 1.0]
    rewards = [env.step(env.cues[max(len(env.cues) - 3, 0)][0])[1] for _ in range(6)]
    assert rewards == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    late = Cues(spaces.Discrete(3), length=3, late=True, ends=True)
    late.reset(seed=0)
    results = [late.step(late.cues[-1][0]) for _ in range(3)]
    assert [result[1:4] for result in results] == [(0.0, False, False), (0.0, False, False), (3.0, True, False)]
    assert [result[0][-1] for result in results] == pytest.approx([1 / 3, 2 / 3, 1.0])
    fatal = Cues(spaces.Discrete(3), fatal=True)
    fatal.reset(seed=0)
    assert fatal.step(fatal.cues[-1][0])[1:3] == (1.0, False)
    assert fatal.step((fatal.cues[-1][0] + 1) % 3)[1:3] == (0.0, True)
    parts = Cues(spaces.MultiDiscrete([3, 3, 2]))
    parts.reset(seed=0)
    assert parts.step(parts.cues[-1] + np.array([0, 0, 1]))[1] == pytest.approx(2 / 3)


def test_dials_pay_for_being_near() -> None:
    env = Dials([0.0, -3.0], [10.0, 1.0])
    target = env.reset(seed=0)[0]
    assert env.step(target)[1] == pytest.approx(1.0, abs=1e-6)
    target = env._observe()
    assert env.step(target + np.array([1.0, 0.0]) * np.sign(5.0 - target[0]))[1] == pytest.approx(0.8, abs=1e-6)
    slow = Dials([-1.0], [3.0], speed=0.1)
    slow.reset(seed=0)
    slow.dials, slow.target = np.array([0.2]), np.array([0.6])
    observation, reward, *_ = slow.step(np.array([3.0], np.float32))
    np.testing.assert_allclose(observation, [0.5, 0.6], rtol=1e-6)
    assert reward == pytest.approx(0.6)


@pytest.mark.parametrize("gap", [3, 5, 8, 12])
def test_cue_is_shown_only_at_the_start(gap: int) -> None:
    env = Recall(gap)
    seen: dict[int, list[np.ndarray]] = {}
    for seed in range(10):
        first = env.reset(seed=seed)[0]
        seen[env.cue] = [first, *(env.step(0)[0] for _ in range(gap))]
    left, right = seen[0], seen[1]
    assert not np.array_equal(left[0], right[0])
    np.testing.assert_array_equal(left[1:], right[1:])
    assert [list(place).index(1.0) for place in left[1:]] == [2] * (gap - 1) + [3]


def test_walking_costs_and_turning_too_early_does_nothing() -> None:
    env = Recall(2, walking=True)
    env.reset(seed=0)
    assert [env.step(action)[1:3] for action in (env.cue, 2, 2, 2)] == [(-0.01, False)] * 4
    assert env.step(1 - env.cue)[1:3] == (-1.0, True)


def test_choices_and_moments() -> None:
    env = Choice([(1, 1), (-2, 5)])
    observations = [env.reset(seed=0)[0]]
    results = [env.step(action) for action in (1, 0)]
    assert [result[1:4] for result in results] == [(-2.0, False, False), (5.0, True, False)]
    np.testing.assert_array_equal([*observations, results[0][0]], [[1, 0, 0, 0, 0], [0, 1, 0, 0, 1]])
    for wait, reward in ((6, 1.0), (5, 2 / 3), (8, 1 / 3), (2, 0.0)):
        timer = Timer(6)
        timer.reset(seed=0)
        assert not any(timer.step(0)[0].any() for _ in range(wait))
        assert timer.step(1)[1:3] == (pytest.approx(reward), True)
    rhythm = Timer(2, again=3)
    rhythm.reset(seed=0)
    assert [rhythm.step(press)[1] for press in (0, 1, 1, 0, 1, 0)] == [0.0, 1.0, 0.0, 0.0, 1.0, 0.0]


def test_button_and_key() -> None:
    env = Board("grab", 5)
    env.reset(seed=0)
    env.piece, env.target = np.array([0, 0]), np.array([1, 1])
    assert env.step(np.array([1, 1, 1]))[1] == -0.05, "pressed elsewhere"
    assert env.step(np.array([2, 2, 0]))[1] == 0.0, "not pressed"
    assert env.step(np.array([1, 1, 1]))[1] == 1.0 and not (env.piece == env.target).all()
    door = KeyDoor()
    assert door.reset(seed=0)[0].shape == (76,)
    door.piece, door.key, door.door = np.array([0, 0]), np.array([0, 2]), np.array([0, 1])
    results = [door.step(action) for action in (3, 3, 2)]
    assert [result[1:3] for result in results] == [(-0.01, False), (-0.01, False), (1.0, True)]
    assert results[1][0][25:50].sum() == 0.0 and results[1][0][-1] == 1.0


@pytest.mark.parametrize("name", ["grab", "recall-3-image", "fetch-noise", "back-3", "dials-slow"])
def test_scripted_policies_play_many_environments_at_once(name: str) -> None:
    probe = PROBES[name]
    env = DummyVecEnv([probe.make] * 4)
    env.seed(0)
    mean, std = evaluate_policy(probe.scripted(), env, n_eval_episodes=40, warn=False)
    assert mean == pytest.approx(probe.best, abs=float(4 * std / 40**0.5 + 1e-6))
