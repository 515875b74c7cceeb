"""Images as users of SB3 have them, and the networks for them."""

import io
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize, VecTransposeImage, is_vecenv_wrapped

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.observations import OBSERVATION_KEY
from tests.small import FLOAT_IMAGE, LEARN, OBSERVATIONS, image, random_envs, same_weights, samples, small_model, weights

NATIVE: dict[str, Any] = dict(image_size=None)


def reloaded(model: DreamerV2) -> DreamerV2:
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return DreamerV2.load(file, device="cpu")


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("channel_first", [True, False])
@pytest.mark.parametrize(("height", "width", "channels"), [(40, 40, 1), (36, 44, 3), (37, 41, 4)])
def test_fake_images(channel_first: bool, discrete: bool, height: int, width: int, channels: int) -> None:
    """Frames with the channels last are transposed by SB3's wrapper, others need none; the networks see the same."""
    env = FakeImageEnv(6, height, width, channels, discrete, channel_first)
    model = small_model(env, buffer_size=60, policy_kwargs=NATIVE, seed=1, **LEARN).learn(40)
    assert model._n_updates == 3
    assert is_vecenv_wrapped(model.get_env(), VecTransposeImage) != channel_first  # type: ignore[arg-type]
    encoder: Any = model.policy.world_model.encoder
    assert encoder.cnn[0].in_channels == channels and encoder.mlp is None
    assert model.policy.observations.encoded[OBSERVATION_KEY].shape == (channels, height, width)

    obs, _ = env.reset()
    for _ in range(3):
        assert env.action_space.contains(model.predict(obs, deterministic=False)[0])
    action, state = model.predict(obs, deterministic=True)
    same_action, same_state = reloaded(model).predict(obs, deterministic=True)
    assert np.array_equal(action, same_action)
    assert all(np.array_equal(a, b) for a, b in zip(state or (), same_state or (), strict=True))


def test_channels_may_outnumber_rows() -> None:
    """Fifty stacked channels of 41 x 40 pixels: SB3 would transpose them once too often, which users prevent with ``skip``."""
    env = DummyVecEnv([lambda: FakeImageEnv(6, 41, 40, 10, channel_first=True)])
    stacked = VecFrameStack(env, 5, channels_order="first")
    assert VecTransposeImage(stacked).observation_space.shape != stacked.observation_space.shape
    model = small_model(VecTransposeImage(stacked, skip=True), policy_kwargs=NATIVE, **LEARN).learn(24)
    assert model.replay_buffer.observations.shape[2:] == (50, 41, 40)  # type: ignore[union-attr]
    assert model._n_updates == 1
    model.predict(stacked.reset(), deterministic=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("channel_first", [True, False])
def test_normalized_images_are_floats(channel_first: bool) -> None:
    """VecNormalize makes floats of frames, which CnnPolicy takes if it is told so, and refuses otherwise."""

    def make() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: FakeImageEnv(6, 36, 30, 1, channel_first=channel_first)]))

    with pytest.raises(AssertionError, match=r"CnnPolicy takes an image .*normalize_images=False"):
        DreamerV2("CnnPolicy", make(), buffer_size=60)
    env = make()
    model = small_model(env, buffer_size=60, policy_kwargs=dict(normalize_images=False), seed=1, **LEARN).learn(40)
    assert model._n_updates == 3 and type(model.policy).__name__ == "CnnPolicy"
    assert model.policy.observations.encoded[OBSERVATION_KEY].shape == (1, 64, 64)
    held = model.replay_buffer.observations
    assert isinstance(held, np.ndarray) and held[:40].max() > 200.0 and np.array_equal(held, np.rint(held))  # originals
    seen = model.replay_buffer.sample(4, env=env).observations[OBSERVATION_KEY]
    assert abs(seen.mean().item()) < 0.5 and 0.5 < seen.std().item() < 1.5


# ---------------------------------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("image_size", [(64, 64), None, (20, 33)])
@pytest.mark.parametrize("kind", ["image rgb", "image of odd size", "image of one pixel", "float image"])
def test_reconstruction_has_the_size_of_what_is_seen(kind: str, image_size: tuple[int, int] | None) -> None:
    kwargs = dict(image_size=image_size, normalize_images=not kind.startswith("float"))
    policy = small_model(random_envs(OBSERVATIONS[kind]), policy_kwargs=kwargs).policy
    shape = policy.observations.encoded[OBSERVATION_KEY].shape
    assert shape[1:] == image_size or image_size is None
    prediction = policy.world_model.decoder(th.randn(2, 3, policy.world_model.rssm.features_size))[OBSERVATION_KEY]
    assert prediction.mean.shape == (2, 3, *shape)
    target = th.rand(2, 3, *shape) - 0.5
    by_hand = -0.5 * ((target - prediction.mean) ** 2 + math.log(2 * math.pi)).flatten(2).sum(-1)
    assert th.allclose(prediction.log_prob(target), by_hand, rtol=1e-4)


@pytest.mark.parametrize("image_size", [64, (64,), (0, 64), (64, -1), (1.5, 64), ("64", "64")])
def test_impossible_image_size(image_size: Any) -> None:
    with pytest.raises(ValueError, match=r"image_size must be .*, but is"):
        small_model(random_envs(image(10, 10, 3)), policy_kwargs=dict(image_size=image_size))


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_features_extractor_of_sb3(kind: str) -> None:
    """SB3's NatureCNN in place of our encoder; it does what it did before saving."""
    space = image(40, 36, 3) if kind == "bytes" else spaces.Box(0.0, 1.0, (40, 36, 3), np.float32)
    extractor_kwargs = dict(features_dim=9) | ({} if kind == "bytes" else dict(normalized_image=True))
    options = dict(features_extractor_class=NatureCNN, features_extractor_kwargs=extractor_kwargs, image_size=(40, 36))
    model = small_model(random_envs(space), policy_kwargs=options | dict(normalize_images=kind == "bytes"), **LEARN)
    before = weights(model)
    model.learn(24)
    assert model._n_updates == 1 and isinstance(model.policy.world_model.encoder, NatureCNN)
    assert model.policy.world_model.rssm.get_submodule("posterior_hidden").in_features == 16 + 9
    trained = [name for name, value in weights(model).items() if "encoder.cnn" in name and not th.equal(value, before[name])]
    assert len(trained) == 6
    obs = samples(space, 2)
    states = [one.predict(obs, deterministic=True)[1] for one in (model, reloaded(model))]
    assert all(np.array_equal(a, b) for a, b in zip(*(state or () for state in states), strict=True))


def test_target_critic() -> None:
    """A full copy at the first update, then nothing until the interval is over, then a step of tau."""
    model = small_model(FakeImageEnv(6, 36, 36), policy_kwargs=NATIVE, tau=0.25, target_update_interval=3, **LEARN).learn(16)
    assert model._n_updates == 0

    def critics() -> tuple[dict[str, th.Tensor], dict[str, th.Tensor]]:
        behavior = model.policy.behavior
        return weights(behavior.critic), weights(behavior.critic_target)

    assert not same_weights(*critics())  # initial values of their own
    model.train(1, 2)
    first, target = critics()
    assert same_weights(first, target)
    model.train(2, 2)
    later, target = critics()
    assert same_weights(first, target) and not same_weights(later, target)
    model.train(1, 2)
    latest, target = critics()
    for name, value in target.items():
        assert th.allclose(value, 0.75 * first[name] + 0.25 * latest[name], atol=1e-7)
    model.tau = 0.0
    model.train(3, 2)
    assert same_weights(critics()[1], target)


@pytest.mark.parametrize(
    ("space", "policy"),
    [
        (spaces.Box(0, 1, (10,)), "MlpPolicy"),
        (spaces.Box(0, 255, (10, 10, 3)), "MlpPolicy"),  # floats
        (spaces.Box(0, 255, (10, 10), np.uint8), "MlpPolicy"),  # rank 2
        (spaces.Box(0, 10, (10, 10, 3), np.uint8), "MlpPolicy"),  # other bounds
        (image(10, 10, 3), "CnnPolicy"),
        (image(3, 10, 10), "CnnPolicy"),
        (image(10, 10, 5), "CnnPolicy"),
        (image(10, 3, 11), "CnnPolicy"),  # with SB3's warning
    ],
)
def test_what_counts_as_an_image(space: spaces.Space, policy: str) -> None:
    """As in SB3: uint8 of rank 3 from 0 to 255, and nothing else."""
    other = {"MlpPolicy": "CnnPolicy", "CnnPolicy": "MlpPolicy"}[policy]
    model = small_model(random_envs(space), policy, policy_kwargs=NATIVE)
    assert type(model.policy).__name__ == policy
    assert (model.policy.world_model.decoder.image_keys == []) == (policy == "MlpPolicy")
    with pytest.raises(AssertionError, match=f"{other} takes"):
        small_model(random_envs(space), other, policy_kwargs=NATIVE)


def test_frames_of_floats_next_to_frames_of_bytes() -> None:
    """Each in its own units, resized to one size, in one network."""
    space = spaces.Dict({"bytes": image(20, 16, 1), "floats": FLOAT_IMAGE})
    model = small_model(random_envs(space), policy_kwargs=dict(image_size=(6, 5), normalize_images=False), **LEARN).learn(24)
    assert model._n_updates == 1 and model.policy.world_model.encoder.cnn[0].in_channels == 4  # type: ignore[index, union-attr]
    policy, obs = model.policy, samples(space, 2)
    encoded = policy.observations.encode(policy.stored_tensors(policy.observations.with_batch_axis(obs)[0]))
    assert encoded["bytes"].shape == (2, 1, 6, 5) and encoded["floats"].shape == (2, 3, 6, 5)
    assert -0.5 <= encoded["bytes"].min().item() and encoded["bytes"].max().item() <= 0.5
    means = np.moveaxis(obs["floats"], -1, 1).reshape(2, 3, 6, 2, 5, 2).mean(axis=(3, 5))
    assert np.allclose(encoded["floats"], means, atol=1e-6)


def test_a_time_limit_around_an_image_environment() -> None:
    env = gym.wrappers.TimeLimit(FakeImageEnv(6, 36, 36), 3)
    model = small_model(env, policy_kwargs=NATIVE, **LEARN).learn(24)
    ends = model.replay_buffer.dones[: model.replay_buffer.size(), 0]
    assert ends.sum() == 8 and np.array_equal(ends, model.replay_buffer.timeouts[: len(ends), 0])
