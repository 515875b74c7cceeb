"""Environments as users wrap them: normalized, stacked, transposed, monitored, resized."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
)

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.preprocessing import resize_images
from tests.small import DICT, IMAGE, VECTOR, RandomEnv, inner_env, noting, random_envs, random_model, small_model, spy_on_act


@pytest.mark.parametrize("space", [VECTOR, DICT])
def test_vec_normalize(space: spaces.Space) -> None:
    env = VecNormalize(random_envs(space, n_envs=2), clip_obs=5.0)
    model = small_model(env, learning_starts=20).learn(60)
    assert model._n_updates > 0
    held = model.replay_buffer.observations
    parts = held if isinstance(held, dict) else {"observation": held}
    inner = inner_env(model)
    given = [obs if isinstance(obs, dict) else {"observation": obs} for obs in inner.observations]
    for key, value in parts.items():  # originals: one more than there are steps for each episode, as given
        size = model.replay_buffer.size()
        assert np.allclose(value[:size, 0], [obs[key] for obs in given[:size]], atol=1e-6)  # SB3 un-normalizes the last ones
    arrivals = [t for t in range(model.replay_buffer.size()) if t % 11 != 0]
    assert np.allclose(model.replay_buffer.rewards[arrivals, 0], inner.rewards)

    model.replay_buffer.seed(0)
    raw = model.replay_buffer.sample(5)
    model.replay_buffer.seed(0)
    normalized = model.replay_buffer.sample(5, env=env)
    originals = {key: value.numpy() for key, value in raw.observations.items()}
    expected = env.normalize_obs(originals if isinstance(held, dict) else originals["observation"])
    expected = expected if isinstance(expected, dict) else {"observation": expected}
    for key, batch in normalized.observations.items():
        assert np.allclose(batch, expected[key], atol=1e-6) and not np.allclose(batch, originals[key])
    assert np.allclose(normalized.rewards, env.normalize_reward(raw.rewards.numpy()), atol=1e-6)
    model.predict(env.reset())  # type: ignore[arg-type]


def test_the_agent_acts_on_normalized_observations() -> None:
    env = VecNormalize(random_envs())
    model = small_model(env, gradient_steps=0)
    seen: list[np.ndarray] = []
    spy_on_act(model, seen, lambda obs, state, starts, result: obs["observation"].numpy().copy())
    given: list[np.ndarray] = []
    model.learn(20, callback=noting("new_obs", given))
    assert np.array_equal(np.concatenate(seen[1:20]), np.concatenate(given[:19]).astype(np.float32))


def held_frames(model: DreamerV2) -> np.ndarray:
    held = model.replay_buffer.observations
    return held["image"] if isinstance(held, dict) else held


def test_vec_normalize_inside_of_image_wrappers() -> None:
    """Rewards, and the vectors of a Dict, are normalized; frames go past VecNormalize, and are transposed outside of it."""
    frames = VecNormalize(random_envs(IMAGE), norm_obs=False)
    mixed = VecNormalize(random_envs(spaces.Dict({"image": IMAGE, "arm": VECTOR})), norm_obs_keys=["arm"])
    for env in (frames, VecFrameStack(frames, 2), mixed):
        model = small_model(env, policy_kwargs=dict(image_size=None), learning_starts=20).learn(40)
        inner, held = inner_env(model), held_frames(model)
        given = inner.observations[-45:]  # the last run: 4 episodes of 10 steps and one more reset
        images = np.array([obs["image"] if isinstance(obs, dict) else obs for obs in given])[..., 0]
        assert model._n_updates > 0 and np.array_equal(held[:44, 0, -1], images[:44])
        assert np.allclose(model.replay_buffer.rewards[[1, 10, 12], 0], np.array(inner.rewards)[[-40, -31, -30]])
        if env is mixed:
            arms = model.replay_buffer.observations["arm"][:44, 0]  # type: ignore[call-overload]
            assert np.allclose(arms, [obs["arm"] for obs in given[:44]], atol=1e-6)


def test_image_wrappers() -> None:
    env = VecMonitor(DummyVecEnv([lambda: RandomEnv(spaces.Box(0, 255, (48, 40, 3), np.uint8))] * 2))
    for wrapped, channels in ((env, 3), (VecTransposeImage(env), 3), (VecFrameStack(env, 4), 12)):
        model = small_model(wrapped, "CnnPolicy", learning_starts=20).learn(40)
        assert held_frames(model).shape[2:] == (channels, 64, 64) and model._n_updates > 0
        assert model.env is not None and is_vecenv_wrapped(model.env, VecTransposeImage)
        assert len(model.ep_info_buffer or []) == 4  # episodes, from VecMonitor
        model.predict(wrapped.reset(), deterministic=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels_order", ["first", "last"])
def test_stacked_images_skip_the_transposition(channels_order: str) -> None:
    shape = (1, 40, 36) if channels_order == "first" else (40, 36, 1)
    env = DummyVecEnv([lambda: RandomEnv(spaces.Box(0, 255, shape, np.uint8))])
    stacked = VecTransposeImage(VecFrameStack(env, 5, channels_order=channels_order), skip=channels_order == "first")
    model = small_model(stacked, "CnnPolicy", policy_kwargs=dict(image_size=None), learning_starts=10).learn(20)
    assert held_frames(model).shape[2:] == (5, 40, 36) and model._n_updates > 0


@pytest.mark.parametrize("shape", [(210, 160, 3), (84, 84, 1), (96, 96, 3), (41, 40, 50)])
@pytest.mark.parametrize("image_size", [(64, 64), None])
def test_image_sizes(shape: tuple[int, int, int], image_size: tuple[int, int] | None) -> None:
    """Acting, storing and predicting see the same bytes, whatever the size."""
    space = spaces.Box(0, 255, shape, np.uint8)
    model = random_model(space, policy_kwargs=dict(image_size=image_size), learning_starts=10, batch_length=4, batch_size=2)
    seen: list[np.ndarray] = []
    spy_on_act(model, seen, lambda obs, state, starts, result: obs["observation"].numpy().copy())
    model.learn(16)
    assert model._n_updates == 1
    held = held_frames(model)
    assert held.dtype == np.uint8
    assert held.shape[2:] == (shape[2], *(image_size or shape[:2]))
    given = np.array(inner_env(model).observations).transpose(0, 3, 1, 2)  # episodes of 10 steps: 11 observations each
    assert np.array_equal(held[:18, 0], resize_images(given, image_size))
    acted = [t for t in range(16 + 1) if t != 10]  # all but the terminal one
    assert np.array_equal(np.concatenate(seen), held[acted, 0])
    for t in (0, 7):
        model.predict(inner_env(model).observations[t])
        assert np.array_equal(seen[-1], held[t : t + 1, 0])
