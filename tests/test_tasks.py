"""The learning tasks are what they say: solvable, not by chance, and with the answer only where it is shown."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from tests.tasks import HoldCue, MemoryCue, PerfectCatch, PerfectMemory, PixelCatch


class RandomPolicy:
    def __init__(self, n_actions: int) -> None:
        self.n_actions = n_actions
        self.rng = np.random.default_rng(0)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return self.rng.integers(self.n_actions, size=len(observation)), state


def mean_return(policy, env: gym.Env, episodes: int) -> float:
    vec_env = DummyVecEnv([lambda: env])
    vec_env.seed(0)
    mean, _ = evaluate_policy(policy, vec_env, n_eval_episodes=episodes, warn=False)
    assert isinstance(mean, float)
    return mean


@pytest.mark.parametrize("env", [PixelCatch(), PixelCatch(columns=8, rows=10, channels=3), MemoryCue(), HoldCue()], ids=str)
def test_is_a_proper_env(env):
    check_env(env)


@pytest.mark.parametrize("shape", [(5, 9), (8, 10), (3, 16), (16, 16)])
def test_catch_can_be_perfect_from_the_picture(shape):
    assert mean_return(PerfectCatch(), PixelCatch(*shape), 60) == 1.0


@pytest.mark.parametrize("corridor", [1, 4, 8])
def test_memory_can_be_perfect_from_the_picture(corridor):
    assert mean_return(PerfectMemory(), MemoryCue(corridor), 60) == 1.0
    assert mean_return(PerfectMemory(), HoldCue(min(corridor + 1, 7)), 60) == pytest.approx(1.0)


def test_chance():
    assert mean_return(RandomPolicy(3), PixelCatch(), 1000) == pytest.approx(-0.6, abs=0.1)
    assert mean_return(RandomPolicy(2), MemoryCue(), 1000) == pytest.approx(0.0, abs=0.1)
    assert mean_return(RandomPolicy(2), HoldCue(), 1000) == pytest.approx(0.0, abs=0.1)


def test_memory_needs_the_mask_and_the_state():
    class Forgetful(PerfectMemory):
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return super().predict(observation, None, None)

    assert mean_return(Forgetful(), MemoryCue(), 300) == pytest.approx(0.0, abs=0.2)
    assert mean_return(Forgetful(), HoldCue(), 300) <= 0.4  # right in the first step, by chance in the others


def test_cue_is_seen_only_at_the_first_step():
    pictures = {}
    for seed in range(10):
        env = MemoryCue()
        first, _ = env.reset(seed=seed)
        pictures[env.cue] = [first] + [env.step(0)[0] for _ in range(env.corridor + 2)]
    assert set(pictures) == {0, 1}
    assert not np.array_equal(pictures[0][0], pictures[1][0])
    for left, right in zip(pictures[0][1:], pictures[1][1:], strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("env, steps", [(PixelCatch(), 8), (PixelCatch(rows=11), 10), (MemoryCue(), 6), (MemoryCue(2), 4)])
def test_reward_comes_only_with_the_end(env, steps):
    env.reset(seed=0)
    results = [env.step(1) for _ in range(steps)]
    assert [terminated for _, _, terminated, _, _ in results] == [False] * (steps - 1) + [True]
    assert all(reward == 0 for _, reward, _, _, _ in results[:-1])
    assert abs(results[-1][1]) == 1


def test_ball_and_paddle_are_crisp():
    env = PixelCatch()
    image, _ = env.reset(seed=1)
    assert set(np.unique(image)) == {0, 128, 255}
    assert (image == 255).sum() == 7 * 10 and (image == 128).sum() == 7 * 12


@pytest.mark.parametrize(
    "make", [lambda: PixelCatch(columns=10, rows=9), lambda: PixelCatch(channels=2), lambda: MemoryCue(0), lambda: HoldCue(8)]
)
def test_bad_sizes_are_refused(make):
    with pytest.raises(ValueError, match=r"field|corridor|HoldCue"):
        make()
