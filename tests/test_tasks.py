"""The learning tasks are what they say: solvable, not by chance, and with the answer only where it is shown."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.tasks.images import HoldCue, MemoryCue, PerfectCatch, PerfectMemory, PixelCatch
from benchmarks.tasks.reacher import PixelReacher, ScriptedReacher


class RandomPolicy:
    def __init__(self, n_actions: int) -> None:
        self.n_actions = n_actions
        self.rng = np.random.default_rng(0)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return self.rng.integers(self.n_actions, size=len(observation)), state


class MovePolicy:
    """Moves for :class:`PixelReacher`: uniform ones, or always the same."""

    def __init__(self, move: tuple[float, float] | None = None) -> None:
        self.move = move
        self.rng = np.random.default_rng(0)

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        shape = (len(observation), 2)
        return self.rng.uniform(-1, 1, shape) if self.move is None else np.full(shape, self.move), state


class ToTheMiddle(ScriptedReacher):
    @classmethod
    def _action(cls, image):
        return np.clip((32 - cls.center(image, PixelReacher.hand_value)) / PixelReacher.step_size, -1, 1)


def mean_return(policy, env: gym.Env, episodes: int) -> float:
    vec_env = DummyVecEnv([lambda: env])
    vec_env.seed(0)
    mean, _ = evaluate_policy(policy, vec_env, n_eval_episodes=episodes, warn=False)
    assert isinstance(mean, float)
    return mean


@pytest.mark.parametrize(
    "env", [PixelCatch(), PixelCatch(columns=8, rows=10, channels=3), MemoryCue(), HoldCue(), PixelReacher()], ids=str
)
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


def test_reacher_returns_are_those_of_its_docstring():
    assert mean_return(ScriptedReacher(), PixelReacher(), 100) == pytest.approx(23.1, abs=0.3)
    assert mean_return(MovePolicy(), PixelReacher(), 150) == pytest.approx(5.3, abs=0.8)
    assert mean_return(MovePolicy((0.0, 0.0)), PixelReacher(), 150) == pytest.approx(5.3, abs=0.8)
    assert mean_return(ToTheMiddle(), PixelReacher(), 150) == pytest.approx(9.8, abs=0.8)


def test_reacher_shows_hand_and_target_wherever_they_are():
    """The rectangles are those of the centers, also where the hand lies over the target."""
    env = PixelReacher()
    covered = 0
    for seed in range(300):
        image = env.reset(seed=seed)[0][..., 0]
        env.hand = np.clip(env.target + env.np_random.uniform(-15, 15, 2), 6, 58) if seed % 2 else env.hand
        image = env._image()[..., 0]
        assert (image == 255).sum() == 12 * 12 and (image > 0).sum() >= 20 * 20
        covered += (image == 128).sum() < 20 * 20
        np.testing.assert_allclose(ScriptedReacher.center(image, 255), env.hand, atol=0.51)
        np.testing.assert_allclose(ScriptedReacher.center(image, 128), env.target, atol=0.51)
    assert covered > 100


def test_reacher_moves_and_rewards_in_pixels():
    env = PixelReacher()
    env.reset(seed=0)
    env.hand, env.target = np.array([30.0, 40.0]), np.array([40.0, 30.0])
    _, reward, _, _, _ = env.step(np.array([1.0, -0.5], np.float32))  # right and up
    np.testing.assert_array_equal(env.hand, [36.0, 37.0])
    assert reward == pytest.approx(1 - np.hypot(4, 7) / 28)
    image = env.step(np.array([5.0, -7.0]))[0]  # no more than a step
    np.testing.assert_array_equal(env.hand, [42.0, 31.0])
    assert image[31, 42, 0] == 255 and image[42, 31, 0] == 0  # row y, column x
    env.target = np.array([10.0, 54.0])
    assert env.step(np.array([0.0, 0.0]))[1] == 0.0  # not below nothing, however far
    endings = [env.step(np.array([1.0, 1.0]))[2:4] for _ in range(22)]
    assert endings == [(False, False)] * 21 + [(False, True)]
    np.testing.assert_array_equal(env.hand, [58.0, 58.0])
