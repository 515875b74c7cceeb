"""The same seed gives the same run on the CPU, to the bit."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer import DreamerV2
from tests.small import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    VECTOR,
    RandomEnv,
    copy_space,
    inner_env,
    random_envs,
    random_model,
    same_weights,
    small_model,
    weights,
)


def run(observation_space: spaces.Space, action_space: spaces.Space, **kwargs: Any) -> tuple[Any, list[Any], list[float]]:
    """Weights, actions and rewards of a short training."""
    model = random_model(observation_space, action_space, **kwargs).learn(80)
    assert model._n_updates >= 2
    return weights(model), inner_env(model).actions, inner_env(model).rewards


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("action_space", [DISCRETE, BOX])
@pytest.mark.parametrize("observation_space", [VECTOR, IMAGE, DICT])
def test_same_seed_same_run(observation_space: spaces.Space, action_space: spaces.Space, n_envs: int) -> None:
    first, second = (run(observation_space, action_space, n_envs=n_envs, seed=7) for _ in range(2))
    assert same_weights(first[0], second[0])
    assert np.array_equal(first[1], second[1]) and first[2] == second[2]


@pytest.mark.parametrize("action_space", [DISCRETE, BOX])
def test_other_seed_other_run(action_space: spaces.Space) -> None:
    first, second = (run(VECTOR, action_space, seed=seed) for seed in (7, 8))
    assert not same_weights(first[0], second[0])
    assert not np.array_equal(first[1][:50], second[1][:50]) and not np.array_equal(first[1][50:], second[1][50:])
    assert first[2] != second[2]


def test_no_seed_is_no_fixed_seed() -> None:
    first, second = (random_model(VECTOR, DISCRETE) for _ in range(2))
    assert not same_weights(weights(first), weights(second))
    assert first.replay_buffer._rng.bit_generator.state != second.replay_buffer._rng.bit_generator.state


def sample(model: DreamerV2) -> th.Tensor:
    return model.replay_buffer.sample(8).observations["observation"]


def test_set_random_seed_covers_the_buffer() -> None:
    model = random_model().learn(40)
    samples = []
    for seed in (3, 3, 4):
        model.set_random_seed(seed)
        samples.append(sample(model))
    assert th.equal(samples[0], samples[1]) and not th.equal(samples[0], samples[2])
    model.set_random_seed(3)
    model.set_random_seed(None)  # no change
    assert th.equal(sample(model), samples[0]) and not th.equal(sample(model), samples[0])


def test_global_seeds_are_enough() -> None:
    """SB3's ``set_random_seed`` before the constructor, as the zoo does without a seed of the model."""
    results = []
    for _ in range(2):
        np.random.seed(1)
        th.manual_seed(1)
        model = random_model()
        results.append((weights(model), model.replay_buffer._rng.bit_generator.state))
    assert same_weights(results[0][0], results[1][0]) and results[0][1] == results[1][1]


def test_loading_with_a_seed_repeats_the_continuation(tmp_path: Any) -> None:
    model = random_model(seed=0).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    results = []
    for _ in range(2):
        loaded = DreamerV2.load(tmp_path / "model", env=random_envs(), device="cpu")
        loaded.load_replay_buffer(tmp_path / "buffer")
        loaded.set_random_seed(5)
        results.append(weights(loaded.learn(60, reset_num_timesteps=False)))
    assert same_weights(*results) and not same_weights(results[0], weights(model))


class AsDict(gym.ObservationWrapper):
    """The vector under a key."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"vec": env.observation_space})

    def observation(self, observation: Any) -> Any:
        return {"vec": observation}


@pytest.mark.parametrize("action_space", [DISCRETE, BOX])
def test_a_dict_with_one_vector_is_that_vector(action_space: spaces.Space) -> None:
    def env() -> RandomEnv:
        return RandomEnv(copy_space(VECTOR), copy_space(action_space))

    vector, as_dict = (small_model(wrapped, seed=2).learn(80) for wrapped in (env(), AsDict(env())))
    assert vector._n_updates == 4 and as_dict.replay_buffer.observations.keys() == {"vec"}  # type: ignore[union-attr]
    assert np.array_equal(inner_env(vector).actions, inner_env(as_dict).actions)
    assert same_weights(weights(vector), weights(as_dict))
    obs = inner_env(vector).observations[0]
    assert np.array_equal(vector.predict(obs, deterministic=True)[0], as_dict.predict({"vec": obs}, deterministic=True)[0])
