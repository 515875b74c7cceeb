"""Sequence replay buffer: a scripted environment's records come out as they went in, whatever happened in between."""

import pickle
from collections import Counter
from multiprocessing import set_forkserver_preload
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from tests.collector import Collector, check_samples, make_collector, make_env, windows
from tests.envs import ScriptedEnv, Step

CASES: dict[str, dict[str, Any]] = {
    "vector": dict(),
    "image": dict(observation="image"),
    "dict-box": dict(observation="dict", continuous=True),
    "length-1": dict(lengths=(1,)),
    "terminated": dict(lengths=(3, 5), endings=("terminated",)),
    "truncated": dict(lengths=(3, 5), endings=("truncated",)),
    "both": dict(lengths=(3, 5), endings=("both",)),
    "endless": dict(lengths=(10**6,)),
}


@pytest.mark.parametrize("sample_running", [True, False])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_records_come_out_as_they_went_in(case: str, n_envs: int, sample_running: bool) -> None:
    collector = make_collector(make_env(n_envs, **CASES[case]), 20 * n_envs, CASES[case], sample_running=sample_running)
    seen: set[Step] = set()
    for round_ in range(12):  # the rings wrap several times
        collector.collect(7)
        if round_ % 4 == 1:
            collector.buffer = pickle.loads(pickle.dumps(collector.buffer))
            collector.reset()
        if case == "endless" and not sample_running:
            collector.reset()
        seen |= check_samples(collector)
    stored = {step for ring in collector.expected for step in ring}
    assert all(seen & steps for steps in kinds(stored, collector.script))
    assert collector.buffer.full and min(len(ring) for ring in collector.expected) > 3 * collector.buffer.buffer_size


def kinds(steps: set[Step], script: ScriptedEnv) -> list[set[Step]]:
    """First observations, those on the way, last ones: as far as there are any."""
    first = {step for step in steps if step.step == 0}
    last = {step for step in steps - first if script.ending(step)}
    return [kind for kind in (first, last, steps - first - last) if kind]


@pytest.mark.parametrize("n_envs", [1, 3])
def test_subproc_vec_env(n_envs: int) -> None:
    set_forkserver_preload(["stable_baselines3.common.vec_env"])  # imported once instead of once per environment
    env = make_env(n_envs, SubprocVecEnv, **CASES["dict-box"])
    collector = make_collector(env, 20 * n_envs, CASES["dict-box"])
    for _ in range(5):
        collector.collect(11)
        check_samples(collector)
    env.close()


def expected_masses(collector: Collector, length: int) -> dict[tuple[Step, ...], float]:
    """By enumeration: the mass of every window that may be drawn."""
    buffer, script = collector.buffer, collector.script
    masses = {}
    for ring, starting in zip(collector.held(), collector.starting, strict=True):
        if not buffer.sample_running and not starting:  # without the records of the running episode
            ring = [step for step in ring if step.episode != ring[-1].episode]
        for begin in range(len(ring) - length + 1):
            window = tuple(ring[begin : begin + length])
            at_end = window[-1].step > 0 and script.ending(window[-1]) is not None
            masses[window] = 1.0 + length * (at_end and buffer.prioritize_ends)
    return masses


@pytest.mark.parametrize("n_steps", [25, 230])
@pytest.mark.parametrize("reloaded", [False, True])
@pytest.mark.parametrize("sample_running", [True, False])
@pytest.mark.parametrize("prioritize_ends", [True, False])
def test_every_window_has_its_mass(n_steps: int, reloaded: bool, sample_running: bool, prioritize_ends: bool) -> None:
    script: dict[str, Any] = dict(lengths=(9, 2, 1, 14), endings=("terminated", "truncated"))
    collector = make_collector(
        make_env(2, **script), 2 * 70, script, sample_running=sample_running, prioritize_ends=prioritize_ends
    )
    collector.collect(n_steps // 2)
    collector.reset()  # cuts off the running episodes: nothing ends there
    collector.collect(n_steps - n_steps // 2)
    if reloaded:
        collector.buffer = pickle.loads(pickle.dumps(collector.buffer))
        collector.starting = [True] * 2
    masses = expected_masses(collector, 4)
    total, draws = sum(masses.values()), 8_000
    counts = Counter(tuple(steps) for steps in windows(collector.buffer.sample(draws, batch_length=4)))
    assert set(counts) == set(masses)  # each of them, and no other
    expected = {window: draws * mass / total for window, mass in masses.items()}
    chi_square = sum((counts[window] - n) ** 2 / n for window, n in expected.items())
    freedom = len(masses) - 1
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_options_change_the_masses() -> None:
    """The enumeration above depends on the options as intended, by hand: one ring, episodes of 2 steps (3 records)."""
    script: dict[str, Any] = dict(lengths=(2,))
    collector = make_collector(make_env(**script), 100, script)
    collector.collect(5)  # 8 records: 0 1 2 | 0 1 2 | 0 1
    ends = [collector.expected[0][:3], collector.expected[0][3:6]]
    masses = expected_masses(collector, 3)
    assert len(masses) == 6 and all(masses[tuple(window)] == 4.0 for window in ends) and sum(masses.values()) == 12.0
    counts = Counter(tuple(steps) for steps in windows(collector.buffer.sample(6_000, batch_length=3)))
    assert all(abs(counts[window] - 500 * mass) < 5 * np.sqrt(500 * mass) for window, mass in masses.items())
    assert collector.buffer.num_sampleable == 8
    collector.buffer.sample_running = False
    assert len(expected_masses(collector, 3)) == 4
    assert collector.buffer.num_sampleable == 6
    collector.reset()
    assert collector.buffer.num_sampleable == 8  # cut off: its records need not wait any longer


def test_reset_without_done_starts_an_episode() -> None:
    collector = make_collector(make_env(2, lengths=(9,)))
    collector.collect(2)
    collector.buffer.start_episodes([1])
    collector.collect(1)
    assert collector.buffer.num_records == 2 * 4 + 1
    episode_starts = collector.buffer.storage.view("episode_start")[:, :5]
    assert episode_starts.tolist() == [[True, False, False, False, False], [True, False, False, True, False]]
    assert collector.buffer.positions.tolist() == [4, 5]
    assert collector.buffer.pos == collector.buffer.size() == 5


def test_vec_normalize_vector() -> None:
    env = VecNormalize(make_env(2), clip_reward=3.0)
    collector = make_collector(env, 60)
    collector.collect(40)
    for seed in range(3):
        collector.buffer.seed(seed)
        raw = collector.buffer.sample(30)
        collector.buffer.seed(seed)
        normalized = collector.buffer.sample(30, env=env)
        steps = raw.observations["observation"].numpy()
        assert np.allclose(steps, steps.round(), atol=1e-3)  # originals are stored, terminal ones too
        assert np.array_equal(normalized.observations["observation"], np.asarray(env.normalize_obs(steps)))
        assert np.array_equal(normalized.rewards, env.normalize_reward(raw.rewards.numpy()))
        assert normalized.observations["observation"].dtype == normalized.rewards.dtype == th.float32
        assert not th.equal(normalized.rewards, raw.rewards)


def test_vec_normalize_dict_keys() -> None:
    env = VecNormalize(make_env(1, observation="dict"), norm_obs_keys=["vector"], norm_reward=False)
    collector = make_collector(env, 60)
    collector.collect(20)
    collector.buffer.seed(1)
    raw = collector.buffer.sample(5)
    collector.buffer.seed(1)
    normalized = collector.buffer.sample(5, env=env)
    assert th.equal(raw.observations["image"], normalized.observations["image"])
    assert not th.equal(raw.observations["vector"], normalized.observations["vector"])
    assert th.equal(raw.rewards, normalized.rewards)
    env.norm_obs_keys = ["vector", "image"]
    with pytest.raises(ValueError, match=r"\['image'\].*norm_obs_keys"):
        collector.buffer.sample(5, env=env)
    env.norm_obs = False
    collector.buffer.seed(1)
    assert th.equal(collector.buffer.sample(5, env=env).observations["vector"], raw.observations["vector"])
