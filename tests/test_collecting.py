"""Collecting experience: what the agent remembers, what the buffer is given, and what a stop in between does to them."""

from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
)

from sb3_dreamer import DreamerV2
from tests.collector import make_env, read_steps
from tests.envs import ScriptedEnv, Step
from tests.small import (
    ASYMMETRIC,
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    VECTOR,
    RandomEnv,
    inner_env,
    noting,
    random_envs,
    random_model,
    same_weights,
    small_model,
    spy_on_act,
    weights,
)


class StopAt(BaseCallback):
    """Stops the training when a number of steps is reached."""

    def __init__(self, num_timesteps: int) -> None:
        super().__init__()
        self.at = num_timesteps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.at


def scripted_model(n_envs: int = 1, **kwargs: Any) -> DreamerV2:
    return small_model(make_env(n_envs), **kwargs)


def records(model: DreamerV2, env: int = 0) -> list[Step]:
    """Everything in one ring that has not wrapped."""
    buffer = model.replay_buffer
    assert isinstance(buffer.observations, np.ndarray) and buffer.rings.written[env] <= buffer.buffer_size
    return read_steps(buffer.observations[: buffer.rings.written[env], env])


def check_records(model: DreamerV2, seams: int = 0) -> None:
    """
    Each ring holds episodes without a gap, and sequences from it know where they start.

    :param seams: episodes that were cut short, in every ring
    """
    script, buffer = ScriptedEnv(), model.replay_buffer
    for env in range(buffer.n_envs):
        steps, cuts = records(model, env), 0
        assert steps[0] == Step(env, steps[0].episode, 0)
        for t, (step, following) in enumerate(pairwise(steps)):
            assert buffer.rewards[t, env] == (step.reward if step.step else 0.0)
            assert buffer.dones[t, env] == (step.step > 0 and script.ending(step) is not None)
            if following == step._replace(step=step.step + 1):
                assert not buffer.dones[t, env]
            else:
                assert following == Step(env, step.episode + 1, 0)
                cuts += not buffer.dones[t, env]
        assert cuts == seams
    batch = buffer.sample(200, batch_length=4)
    starts = batch.observations["observation"][..., 2] == 0
    starts[0] = True
    assert th.equal(batch.episode_starts, starts)


# -------------------------------------------------------------------------------------------------- what the agent remembers


@pytest.mark.parametrize("learning_starts", [1000, 0])
@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_acting_follows_episodes_and_executed_actions(n_envs: int, continuous: bool, learning_starts: int) -> None:
    env = make_env(n_envs, continuous=continuous)
    model = small_model(env, learning_starts=learning_starts, gradient_steps=0)
    seen: list[Any] = []
    spy_on_act(model, seen, lambda obs, state, starts, result: (read_steps(obs["observation"]), state, starts.tolist()))
    executed: list[np.ndarray] = []
    model.learn(32 * n_envs, callback=noting("actions", executed))

    assert len(seen) == 32
    previous = np.zeros((n_envs, 2 if continuous else 7))
    for (steps, state, starts), action in zip(seen, executed, strict=True):
        assert starts == [step.step == 0 for step in steps]
        for i in range(n_envs):
            assert starts[i] or np.allclose(state.actions[i], previous[i], atol=1e-6)
        previous = (action.reshape(n_envs, 2) / 3.0) if continuous else np.eye(7)[action]
    assert model._last_episode_starts is not None
    assert model._last_episode_starts.tolist() == [step.step == 0 for step in read_steps(model._last_obs)]


@pytest.mark.parametrize("action_space", [DISCRETE, BOX, ASYMMETRIC])
def test_the_buffer_holds_the_executed_action_in_the_memory_scale(action_space: spaces.Space) -> None:
    model = random_model(action_space=action_space, learning_starts=20).learn(40)
    executed = np.array(inner_env(model).actions, dtype=np.float64).reshape(40, -1)
    held = np.asarray(model.replay_buffer.actions[: model.replay_buffer.size(), 0], dtype=np.float64)
    expected = executed
    if isinstance(action_space, spaces.Box):
        expected = 2 * (executed - action_space.low) / (action_space.high - action_space.low) - 1
    arrivals = [t for t in range(len(held)) if t % 11 != 0]  # an episode of 10 steps has 11 records
    assert np.allclose(held[arrivals], expected, atol=1e-5)
    memory = model._acting_state
    assert memory is not None
    last = np.eye(3)[int(expected[-1, 0])] if isinstance(action_space, spaces.Discrete) else expected[-1]
    assert np.allclose(memory.actions[0], last, atol=1e-5)


def test_warm_up_actions_cover_the_space() -> None:
    model = random_model(learning_starts=1000).learn(60)
    assert {int(action) for action in inner_env(model).actions} == {0, 1, 2} and model._n_updates == 0


@pytest.mark.parametrize("evaluations", ["evaluate", "predict"])
def test_evaluation_does_not_disturb_the_training(evaluations: str) -> None:
    def run(callback: Any) -> tuple[DreamerV2, list[np.ndarray]]:
        model = random_model(seed=3, n_envs=2)
        return model.learn(120, callback=callback), inner_env(model).actions

    class Predict(BaseCallback):
        def _on_step(self) -> bool:
            self.model.predict(np.ones((5, 3), np.float32), deterministic=True)
            return True

    callback = (
        EvalCallback(random_envs(), eval_freq=7, n_eval_episodes=2, verbose=0) if evaluations == "evaluate" else Predict()
    )
    (plain, actions), (evaluated, actions_evaluated) = run(None), run(callback)
    assert plain._n_updates == evaluated._n_updates == 5
    assert np.array_equal(actions, actions_evaluated) and same_weights(weights(plain), weights(evaluated))


# --------------------------------------------------------------------------------------------------- interrupted and continued


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("stop", range(5, 10))  # before, at and after the end of an episode
def test_stopped_by_a_callback_and_continued(n_envs: int, stop: int) -> None:
    model = scripted_model(n_envs, learning_starts=1000)
    model.learn(1000, callback=StopAt(stop * n_envs))
    assert model.num_timesteps == stop * n_envs and sum(s.step > 0 for s in records(model)) == stop  # the last one too
    model.learn(30 * n_envs, reset_num_timesteps=False)
    assert model.num_timesteps >= (30 + stop) * n_envs
    assert sum(step.step > 0 for step in records(model)) == model.num_timesteps // n_envs
    check_records(model)


def test_continued_learning_keeps_the_memory() -> None:
    model = scripted_model(learning_starts=0, train_freq=6).learn(6)  # in mid-episode
    memory = model._acting_state
    seen: list[Any] = []
    spy_on_act(model, seen, lambda obs, state, starts, result: (state, starts.tolist()))
    model.learn(2, reset_num_timesteps=False)
    assert seen[0][0] is memory and seen[0][1] == [False]
    check_records(model)


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_second_learn_resets(n_envs: int) -> None:
    model = small_model(make_env(n_envs, lengths=(9,)))
    model.learn(14 * n_envs)
    seen: list[Any] = []
    spy_on_act(model, seen, lambda obs, state, starts, result: (state, starts.all()))
    model.learn(14 * n_envs)
    assert model.num_timesteps >= 14 * n_envs and seen[0][1] and not seen[0][0].actions.any()
    steps = records(model)
    seam = [t for t in range(1, len(steps)) if steps[t].step == 0 and not model.replay_buffer.dones[t - 1, 0]]
    assert len(seam) == 1 and not model.replay_buffer.actions[seam[0], 0].any() and not model.replay_buffer.rewards[seam[0], 0]
    batch = model.replay_buffer.sample(200, batch_length=4)
    assert th.equal(batch.episode_starts[1:], batch.observations["observation"][1:, :, 2] == 0)


@pytest.mark.parametrize("force_reset", [True, False])
def test_set_env(force_reset: bool) -> None:
    model = scripted_model(train_freq=6, learning_starts=1000).learn(6)
    env = model.get_env()
    assert env is not None
    model.set_env(env, force_reset=force_reset)
    model.learn(6, reset_num_timesteps=False)
    check_records(model, seams=int(force_reset))
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(make_env(2))


class Failing(ScriptedEnv):
    """Fails once, at the seventh step."""

    left = 7

    def step(self, action: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise ConnectionError("lost")
        return super().step(action)


@pytest.mark.parametrize("where", ["env", "callback"])
def test_learning_goes_on_after_an_exception(where: str) -> None:
    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 7:
                raise ConnectionError("lost")
            return True

    model = small_model(Failing() if where == "env" else ScriptedEnv(), learning_starts=1000)
    with pytest.raises(ConnectionError):
        model.learn(100, callback=None if where == "env" else Interrupt())
    model.learn(30, reset_num_timesteps=False)
    check_records(model, seams=1)


# ----------------------------------------------------------------------------------------------------------------- bad input


class Broken(RandomEnv):
    """
    Gives something wrong once.

    :param what: "observation" or "reward"
    :param at: number of the step, 0 is the reset
    :param value: what it gives
    """

    def __init__(self, what: str, at: int, value: float, space: spaces.Space = VECTOR, length: int = 10) -> None:
        super().__init__(space, length=length)
        self.what, self.at, self.value = what, at, value
        self.sound = False

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        return self._spoil(obs), info

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.what == "reward" and len(self.actions) == self.at:
            reward = self.value
        return self._spoil(obs), reward, terminated, truncated, info

    def _spoil(self, obs: Any) -> Any:
        if self.what != "observation" or len(self.actions) != self.at or self.sound:
            return obs
        self.sound = True
        spoilt = {key: value.copy() for key, value in obs.items()} if isinstance(obs, dict) else obs.copy()
        (spoilt["leg"] if isinstance(spoilt, dict) else spoilt)[1] = self.value
        return spoilt


@pytest.mark.parametrize("learning_starts", [0, 1000])
@pytest.mark.parametrize(
    ("what", "at"), [("observation", 0), ("observation", 5), ("observation", 10), ("reward", 5), ("reward", 10)]
)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_not_finite(what: str, value: float, at: int, learning_starts: int) -> None:
    """At the reset, in mid-episode, and at its end."""
    envs: list[gym.Env] = [RandomEnv(), Broken(what, at, value)]
    model = small_model(DummyVecEnv([lambda env=env: env for env in envs]), learning_starts=learning_starts)  # type: ignore[misc]
    with pytest.raises(ValueError, match=rf"{what if what == 'reward' else 'obs'}.* of environment 1 is {value}.*finite"):
        model.learn(50)
    assert model.replay_buffer.num_records == (0 if at == 0 else 2 * at)  # the start and all steps but the bad one
    assert model._n_updates == (1 if learning_starts == 0 and at == 10 else 0)
    model.learn(20, reset_num_timesteps=False)  # the environment is sound again, and was reset


def test_not_finite_part_of_a_dict_and_first_observation_of_a_later_episode() -> None:
    model = small_model(Broken("observation", 3, np.nan, DICT))
    with pytest.raises(ValueError, match="'leg' of environment 0 is nan at index 1"):
        model.learn(20)

    class AtSecondReset(RandomEnv):
        def reset(self, **kwargs: Any) -> Any:
            obs, info = super().reset(**kwargs)
            return np.where(self.episode == 2, np.nan, obs).astype(np.float32), info

    model = small_model(AtSecondReset())
    with pytest.raises(ValueError, match="observation' of environment 0 is nan at index 0"):
        model.learn(20)
    assert model.replay_buffer.num_records == 11  # the first episode is whole


def test_image_of_another_dtype_than_its_space() -> None:
    class Floats(RandomEnv):
        def _observe(self) -> Any:
            return super()._observe() / 255.0

    envs = random_envs(IMAGE)
    buffers: Any = envs.buf_obs
    buffers[None] = buffers[None].astype(np.float64)  # DummyVecEnv would cast
    envs.envs = [Floats(IMAGE)]
    with pytest.raises(ValueError, match="'observation' has dtype float64, expected uint8"):
        small_model(envs).learn(10)
