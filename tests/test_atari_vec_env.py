"""Games in C++ threads are the same games."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from sb3_dreamer.envs import AtariVecEnv, make_dreamer_atari_env
from tests.small import small_model

PLAIN: dict[str, Any] = dict(noop_max=0, repeat_action_probability=0.0)


@pytest.fixture
def made() -> Iterator[list[VecEnv]]:
    envs: list[VecEnv] = []
    yield envs
    for env in envs:
        env.close()


def play(env: VecEnv, steps: int, seed: int = 0) -> list[Any]:
    """Random actions, the same for all games; everything that comes of them."""
    rng, results = np.random.default_rng(seed), [env.reset()]
    actions = rng.integers(env.action_space.n, size=steps)  # type: ignore[attr-defined]
    return results + [env.step(np.full(env.num_envs, action)) for action in actions]


@pytest.mark.parametrize("env_id, full", [("ALE/Breakout-v5", False), ("SpaceInvadersNoFrameskip-v4", True)])
def test_same_bytes_as_the_wrapper(env_id: str, full: bool, made: list[VecEnv]) -> None:
    made += [
        AtariVecEnv(env_id, 2, max_frames=802, full_action_space=full, **PLAIN),
        make_dreamer_atari_env(env_id, 2, full_action_space=full, wrapper_kwargs={**PLAIN, "max_frames": 802}),
    ]
    assert made[0].observation_space == made[1].observation_space and made[0].action_space == made[1].action_space
    ours, wrapped = (play(env, 450) for env in made)
    assert np.array_equal(ours[0], wrapped[0]) and ours[0].dtype == np.uint8
    scores, ends = 0.0, 0
    for (obs, rewards, dones, infos), (obs2, rewards2, dones2, infos2) in zip(ours[1:], wrapped[1:], strict=True):
        assert np.array_equal(obs, obs2) and np.array_equal(rewards, rewards2) and np.array_equal(dones, dones2)
        scores, ends = max(scores, rewards.max()), ends + dones.sum()
        for info, info2 in zip(infos, infos2, strict=True):
            assert info.get("TimeLimit.truncated", False) == info2.get("TimeLimit.truncated", False)
            assert ("terminal_observation" in info) == ("terminal_observation" in info2)
    assert ends >= 4 and scores >= (5 if "Space" in env_id else 1)  # not clipped


def test_an_episode_ends_with_the_game_or_the_limit(made: list[VecEnv]) -> None:
    made += [AtariVecEnv("ALE/Breakout-v5", 1, **PLAIN), AtariVecEnv("ALE/Breakout-v5", 1, max_frames=200, **PLAIN)]
    whole, cut = (play(env, 400) for env in made)
    first_reset = whole[0]
    lost_life = [step for step in whole[1:] if 0 < step[3][0]["lives"] < 5]
    assert lost_life and not any(step[2][0] for step in lost_life)
    for results, truncated in ((whole, False), (cut, True)):
        ends = [step for step in results[1:] if step[2][0]]
        assert ends
        for observation, _, _, infos in ends:
            assert infos[0]["TimeLimit.truncated"] is truncated
            assert infos[0]["terminal_observation"].shape == (64, 64, 1)
            assert np.array_equal(observation, first_reset)
            assert infos[0]["episode_frame_number"] > 100, "of the episode that has ended, not of the one that begins"
            assert infos[0]["lives"] == 0 or truncated
            assert not np.array_equal(infos[0]["terminal_observation"], observation[0])


def test_seeds(made: list[VecEnv]) -> None:
    made += [AtariVecEnv("ALE/Pong-v5", 2, seed=seed) for seed in (3, 3, 4)]
    first, same, other = (play(env, 60) for env in made)
    for a, b in zip(first[1:], same[1:], strict=True):
        assert np.array_equal(a[0], b[0])
    frames = [np.stack([step[0] for step in run[1:]], axis=1) for run in (first, other)]
    assert not np.array_equal(frames[0][0], frames[0][1])  # no-ops and stickiness differ
    assert np.array_equal(frames[0][1], frames[1][0])  # game 1 of seed 3 is game 0 of seed 4
    for large in (2**31, 2**32 - 1):  # SB3 draws from all of these
        made[0].seed(large)
        made[0].reset()
    made[0].seed(4)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(play(made[0], 60)[1:], other[1:], strict=True))


def test_observations_stay_as_they_were(made: list[VecEnv]) -> None:
    made += [AtariVecEnv("ALE/Pong-v5", 1, seed=0)]
    results = play(made[0], 30)
    copies = [results[0].copy()]
    made[0].step(np.zeros(1, dtype=np.int64))
    assert np.array_equal(copies[0], results[0]) and not np.shares_memory(results[1][0], results[2][0])


def test_trains_and_is_evaluated(made: list[VecEnv]) -> None:
    made += [VecMonitor(AtariVecEnv("ALE/Pong-v5", 2, max_frames=120)) for _ in range(2)]
    model = small_model(made[0], "CnnPolicy", policy_kwargs={"cnn_depth": 2}, seed=0).learn(120)
    assert model._n_updates > 2 and len(model.ep_info_buffer) >= 2  # type: ignore[arg-type]
    returns, lengths = evaluate_policy(model, made[1], n_eval_episodes=2, return_episode_rewards=True)
    assert len(returns) == 2 and max(lengths) <= 30  # type: ignore[arg-type]


def test_what_it_is_not(made: list[VecEnv]) -> None:
    made += [env := AtariVecEnv("ALE/Pong-v5", 2)]
    assert env.get_attr("env_id", [1]) == ["ALE/Pong-v5"] and env.env_is_wrapped(object) == [False] * 2  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="no method 'render'"):
        env.env_method("render")
    with pytest.raises(NotImplementedError, match="no attribute 'mode'"):
        env.set_attr("mode", 1)


@pytest.mark.parametrize("actions", [[0], [0, 6], [-1, 0], [[0, 1]], [0.5, 1.9]])
def test_bad_actions(actions: Any, made: list[VecEnv]) -> None:
    made += [env := AtariVecEnv("ALE/Pong-v5", 2, seed=0, **PLAIN)]
    env.reset()
    with pytest.raises(ValueError, match="needs 2 actions from 0 to 5, but was given"):
        env.step(np.array(actions))
    env.step(np.array([0, 5]))  # goes on


@pytest.mark.parametrize(
    "env_id, options, message",
    [
        ("CartPole-v1", {}, "id of an Atari game is needed, such as 'ALE/Pong-v5', but 'CartPole-v1' was given"),
        ("ALE/Pung-v5", {}, "'ALE/Pung-v5' was given"),
        (3, {}, "3 was given"),
        ("ALE/Pong-v5", {"n_envs": 0}, "n_envs should be an integer of at least 1, but 0"),
        ("ALE/Pong-v5", {"n_envs": True}, "n_envs should be an integer of at least 1, but True"),
        ("ALE/Pong-v5", {"repeat_action_probability": "a"}, r"repeat_action_probability should be in \[0, 1\), but 'a'"),
        ("ALE/Pong-v5", {"action_repeat": 0}, "action_repeat should be"),
        ("ALE/Pong-v5", {"noop_max": -1}, "noop_max should be"),
        ("ALE/Pong-v5", {"max_frames": 1.5}, "max_frames should be an integer of at least 1, but 1.5"),
        ("ALE/Pong-v5", {"repeat_action_probability": 1.0}, r"repeat_action_probability should be in \[0, 1\), but 1.0"),
    ],
)
def test_bad_arguments(env_id: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AtariVecEnv(env_id, **options)


def test_other_ways_to_say_it(made: list[VecEnv]) -> None:
    made += [AtariVecEnv("ale_py:ALE/Pong-v5", np.int64(2))]  # type: ignore[arg-type]
    assert made[0].reset().shape == (2, 64, 64, 1)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="id of an Atari game is needed, such as 'ALE/Pong-v5', but 'CartPole-v1' was given"):
        make_dreamer_atari_env("CartPole-v1")
