"""Every kind of observation and of action: what the networks see of it, what is stored, and what comes back."""

import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from torch.distributions import Bernoulli, Categorical, Normal

from sb3_dreamer import DreamerV3
from sb3_dreamer.common.observations import OBSERVATION_KEY, ObservationFormat, split_space
from sb3_dreamer.common.preprocessing import action_size, decode_actions, encode_actions, resize_images, scale_actions
from tests.small import (
    ACTIONS,
    DISCRETE,
    FLOAT_IMAGE,
    LEARN,
    OBSERVATIONS,
    VECTOR,
    RandomEnv,
    image,
    inner_env,
    random_envs,
    row,
    samples,
    small_model,
)


def model_of(kind: str, actions: spaces.Space = DISCRETE, n_envs: int = 2, **options: Any) -> Any:
    """A model whose images keep their size."""
    kwargs = dict(image_size=None, normalize_images=not kind.startswith("float image"))
    return small_model(random_envs(OBSERVATIONS[kind], actions, n_envs), policy_kwargs=kwargs, **(LEARN | options))


def parts_of(space: spaces.Space, value: Any) -> list[tuple[str, spaces.Space, np.ndarray]]:
    """Key, space and value of all parts of an observation."""
    given = value if isinstance(space, spaces.Dict) else {OBSERVATION_KEY: value}
    return [(key, part, np.asarray(given[key])) for key, part in split_space(space).items()]


def is_frame(space: spaces.Space) -> bool:
    return space.shape is not None and len(space.shape) == 3 and space.shape != (2, 3, 4)  # "rank 3" is no image


def channels_first(space: spaces.Space, value: np.ndarray) -> np.ndarray:
    return value if int(np.argmin(space.shape)) == 0 else np.moveaxis(value, -1, -3)  # type: ignore[arg-type]


def encoded_by_hand(space: spaces.Space, value: np.ndarray) -> np.ndarray:
    """What the networks should see of one value."""
    if isinstance(space, spaces.Discrete):
        return np.eye(space.n)[value - space.start]
    if isinstance(space, spaces.MultiDiscrete):
        blocks = zip(space.nvec.flat, (value - space.start).flat, strict=True)
        return np.concatenate([np.eye(n)[index] for n, index in blocks])
    if not is_frame(space):
        return value.astype(np.float64).reshape(-1)
    frames = channels_first(space, value).astype(np.float64)
    return frames / 255.0 - 0.5 if space.dtype == np.uint8 else frames


# ------------------------------------------------------------------------------------------------------------- observations


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_the_networks_see(kind: str) -> None:
    model, given = model_of(kind), samples(OBSERVATIONS[kind], 5)
    policy, seen = model.policy, {}
    arrays, vectorized = policy.observations.with_batch_axis(given)
    encoded = policy.observations.encode(policy.stored_tensors(arrays))
    for key, space, values in parts_of(OBSERVATIONS[kind], given):
        expected = np.stack([encoded_by_hand(space, value) for value in values])
        assert vectorized and encoded[key].dtype == th.float32
        assert encoded[key].shape == expected.shape == (5, *policy.observations.encoded[key].shape)
        assert np.allclose(encoded[key], expected, atol=1e-6)
        seen[key] = encoded[key]

    # Images side by side into one network, everything else into the other, in the order of the space
    encoder: Any = policy.world_model.encoder
    inputs: dict[str, th.Tensor] = {}
    for name in ("cnn", "mlp"):
        if getattr(encoder, name) is not None:
            getattr(encoder, name).register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]}))
    policy.world_model.embed(encoded)
    for name, rank in (("cnn", 3), ("mlp", 1)):
        kept = [value for value in seen.values() if value.ndim == rank + 1]
        assert (name in inputs) == bool(kept)
        assert not kept or th.equal(inputs[name], th.cat(kept, dim=1))


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_observations_are_stored_learnt_from_and_saved(kind: str, algorithm: Any) -> None:
    space, model = OBSERVATIONS[kind], model_of(kind, seed=0)
    model.learn(48)
    assert model._n_updates == 2 and all(bool(th.isfinite(p).all()) for p in model.policy.parameters())

    held: Any = model.replay_buffer.observations
    for env in range(2):
        given = inner_env(model, env).observations  # episodes of 10 steps: 11 observations each, and no gap between them
        for t in range(model.replay_buffer.size()):
            for key, part, value in parts_of(space, given[t]):
                row_held = (held[key] if isinstance(space, spaces.Dict) else held)[t, env]
                expected = channels_first(part, value) if is_frame(part) and part.dtype == np.uint8 else value
                exact = expected.astype(np.float32) if part.dtype.kind == "f" else expected  # type: ignore[union-attr]
                assert np.array_equal(row_held, exact), key
        assert model.replay_buffer.size() == 24 + 3

    returns, lengths = evaluate_policy(
        model, random_envs(space, n_envs=3, length=4), 3, return_episode_rewards=True, deterministic=False
    )
    assert lengths == [4, 4, 4] and np.isfinite(returns).all()

    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = algorithm.load(file, device="cpu")
    obs, state = samples(space, 3), None
    for _ in range(2):
        action, after = model.predict(obs, state, deterministic=True)
        loaded_action, loaded_after = loaded.predict(obs, state, deterministic=True)
        assert np.array_equal(action, loaded_action) and after is not None and loaded_after is not None
        assert all(np.array_equal(a, b) for a, b in zip(after, loaded_after, strict=True))
        state = after


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_predict_with_and_without_a_batch_axis(kind: str, algorithm: Any) -> None:
    model, obs = model_of(kind, seed=0), samples(OBSERVATIONS[kind], 4)
    _, memory = model.predict(samples(OBSERVATIONS[kind], 4, seed=1))
    actions, states = model.predict(obs, memory, deterministic=True)
    assert actions.shape == (4,) and states is not None and memory is not None
    for i in range(4):
        action, state = model.predict(row(obs, i), tuple(x[i : i + 1] for x in memory), deterministic=True)
        assert np.shape(action) == () and action == actions[i] and state is not None
        for one, all_rows in zip(state, states, strict=True):
            assert one.shape == (1, *all_rows.shape[1:]) and np.allclose(one, all_rows[i : i + 1], atol=1e-5)


def reference_log_prob(space: spaces.Space, outputs: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """Sum over the event of the log-probabilities of PyTorch's distributions, (n,)."""
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(logits=outputs).log_prob(targets).sum(-1)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.reshape(-1).tolist()
        blocks = zip(outputs.split(sizes, -1), targets.split(sizes, -1), strict=True)
        return th.stack([Categorical(logits=x).log_prob(target.argmax(-1)) for x, target in blocks]).sum(0)
    return Normal(outputs, 1.0).log_prob(targets).flatten(1).sum(1)


@pytest.mark.parametrize("kind", OBSERVATIONS)
def test_reconstruction_is_the_right_distribution(kind: str) -> None:
    policy, given = model_of(kind).policy, samples(OBSERVATIONS[kind], 3)
    encoded = policy.observations.encode(policy.stored_tensors(policy.observations.with_batch_axis(given)[0]))
    features = th.randn(3, policy.world_model.rssm.features_size)
    decoded = policy.world_model.decoder(features)
    assert set(decoded) == set(encoded)
    for key, space in split_space(OBSERVATIONS[kind]).items():
        outputs = th.randn_like(encoded[key])
        likelihood = policy.observations.likelihoods[key](outputs)
        assert type(likelihood) is type(decoded[key])
        expected = reference_log_prob(space, outputs, encoded[key])
        assert th.allclose(likelihood.log_prob(encoded[key]), expected, rtol=1e-4, atol=1e-4)
        assert decoded[key].mean.shape == encoded[key].shape and decoded[key].log_prob(encoded[key]).shape == (3,)


# ------------------------------------------------------------------------------------------------------------------ actions


def world_model_vector(space: spaces.Space, action: np.ndarray) -> np.ndarray:
    """What the world model should see of one executed action."""
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        return (2.0 * (action.astype(np.float64) - low) / (high - low) - 1.0).reshape(-1)
    if isinstance(space, spaces.MultiBinary):
        return np.concatenate([np.eye(2)[bit] for bit in action.flat])
    counts = np.array([space.n]) if isinstance(space, spaces.Discrete) else space.nvec  # type: ignore[attr-defined]
    return np.concatenate([np.eye(n)[index] for n, index in zip(counts.flat, action.flat, strict=True)])


@pytest.mark.parametrize("kind", ACTIONS)
def test_actions(kind: str, algorithm: Any) -> None:
    space, memory = ACTIONS[kind], []
    model = small_model(random_envs(VECTOR, space, 2, length=7), seed=0, **LEARN)

    def note(local_vars: dict[str, Any], _: dict[str, Any]) -> bool:
        memory.append(local_vars["self"]._acting_state.actions.numpy().copy())
        return True

    model.learn(48, callback=note)  # the environment refuses actions that its space does not contain
    assert model._n_updates == 2
    exact = 1e-5 if not isinstance(space, spaces.Box) or np.issubdtype(space.dtype, np.floating) else None
    for env in range(2):
        executed = inner_env(model, env).actions
        assert len(executed) == 24 and action_size(space) == memory[0].shape[1]
        for t, action in enumerate(executed):  # warm-up and policy alike
            rounding = exact or float(np.max(1.0 / (space.high.astype(float) - space.low))) + 1e-5  # type: ignore[attr-defined]
            # V3's samples are not clipped, but what is executed is
            remembered = memory[t][env].clip(-1.0, 1.0) if algorithm is DreamerV3 else memory[t][env]
            assert np.allclose(remembered, world_model_vector(space, action), atol=rounding), t

    # Replayed sequences: row t holds the action that led there, zero where a sequence or an episode begins
    model.replay_buffer.prioritize_ends = False
    rows = model.replay_buffer.size()
    batch = model.replay_buffer.sample(50, batch_length=rows)  # everything: both environments have as many records
    for b in range(50):
        vectors = batch.actions[:, b][~batch.episode_starts[:, b]].numpy()
        assert any(np.allclose(vectors, [m[env] for m in memory[: len(vectors)]], atol=1e-6) for env in range(2))
    assert not batch.actions[batch.episode_starts].any() and rows == 24 + 4

    for deterministic in (True, False):
        actions, state = model.predict(samples(VECTOR, 5), deterministic=deterministic)
        assert actions.dtype == space.dtype and actions.shape == (5, *(space.shape or ()))
        assert state is not None and all(space.contains(action) for action in actions)
        single, _ = model.predict(samples(VECTOR, 1)[0], deterministic=deterministic)
        assert space.contains(single) and np.shape(single) == space.shape


@pytest.mark.parametrize("kind", ACTIONS)
def test_actions_come_back_from_their_vectors(kind: str) -> None:
    space = ACTIONS[kind]
    actions = samples(space, 200)
    buffered = scale_actions(actions, space) if isinstance(space, spaces.Box) else actions
    vectors = encode_actions(th.as_tensor(buffered.reshape(200, -1)), space)
    assert vectors.shape == (200, action_size(space)) and vectors.dtype == th.float32
    assert np.allclose(vectors, [world_model_vector(space, action) for action in actions], atol=1e-6)
    back = decode_actions(vectors, space)
    assert back.dtype == space.dtype and back.shape == actions.shape
    tolerance = 0.0 if space.dtype.kind in "iu" else 1e-6 * 25.0  # type: ignore[union-attr]
    assert np.allclose(back, actions, rtol=0.0, atol=tolerance)


def test_integer_boxes_are_rounded_to_the_nearest() -> None:
    space = spaces.Box(-2, 2, (1,), np.int32)
    given = [-1.0, -0.76, -0.74, -0.26, -0.24, 0.24, 0.26, 0.74, 0.76, 1.0]  # steps of 0.5, halfway at odd quarters
    assert decode_actions(th.tensor(given)[:, None], space)[:, 0].tolist() == [-2, -2, -1, -1, 0, 0, 1, 1, 2, 2]
    whole = spaces.Box(-128, 127, (1,), np.int8)  # a range that int8 itself cannot hold
    everything = np.arange(-128, 128).astype(np.int8)[:, None]
    assert np.array_equal(decode_actions(th.as_tensor(scale_actions(everything, whole)), whole), everything)


# ------------------------------------------------------------------------------------- what users of SB3 have in these spaces


class Subclassed(spaces.Box):
    pass


def test_subclasses_of_spaces() -> None:
    env = RandomEnv(Subclassed(-1.0, 1.0, (2,)), Subclassed(-1.0, 1.0, (2,)))
    model = small_model(env, **LEARN).learn(40)
    assert model._n_updates > 0
    assert env.action_space.contains(model.predict(env.reset()[0])[0])


def test_taxi() -> None:
    """A Discrete space of 500 observations, by its id, in two environments."""
    version = "Taxi-v4" if "Taxi-v4" in gym.registry else "Taxi-v3"
    model = small_model(make_vec_env(version, n_envs=2, seed=0), **LEARN).learn(60)
    assert model._n_updates > 0 and model.policy.world_model.encoder.mlp[0].in_features == 500  # type: ignore[index, union-attr]
    assert model.replay_buffer.observations.dtype == np.int32  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["bytes", "integers", "matrix", "float image", "float image channel first", "number"])
def test_vec_normalize(kind: str, algorithm: Any) -> None:
    """The agent acts on normalized numbers; originals are stored exactly, and normalized when they are sampled."""
    env = VecNormalize(random_envs(OBSERVATIONS[kind], n_envs=2), clip_obs=3.0)
    kwargs = dict(image_size=None, normalize_images=not kind.startswith("float image"))
    model = small_model(env, policy_kwargs=kwargs, **LEARN).learn(48)
    held, given = model.replay_buffer.observations, np.array(inner_env(model).observations)
    assert isinstance(held, np.ndarray) and held.dtype == (np.uint8 if kind == "bytes" else np.float32)
    whole = OBSERVATIONS[kind].dtype.kind in "iu"  # type: ignore[union-attr]
    inside = (
        np.abs(np.asarray(env.normalize_obs(given[:27]))) < 2.9
    )  # SB3 un-normalizes the last one of an episode after clipping
    error = np.abs(held[:27, 0].astype(np.float64) - given[:27].astype(np.float32))
    assert (error[inside] <= (0.0 if whole else 1e-5)).all() and (error == 0.0).mean() > 0.8

    seed, batches = 5, []
    for normalize in (None, env):
        model.replay_buffer.seed(seed)
        batches.append(model.replay_buffer.sample(6, env=normalize).observations[OBSERVATION_KEY].numpy())
    assert np.allclose(batches[1], np.asarray(env.normalize_obs(batches[0])), atol=1e-6) and batches[1].dtype == np.float32
    acted = model.policy.stored_tensors(model._last_obs)[OBSERVATION_KEY].numpy()  # type: ignore[arg-type]
    assert np.array_equal(acted, np.asarray(env.normalize_obs(env.get_original_obs()), dtype=np.float32))
    model.predict(env.reset())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- float images


def encode_floats(space: spaces.Box, frames: np.ndarray, image_size: tuple[int, int] | None) -> np.ndarray:
    observations = ObservationFormat(space, image_size, float_images=True)
    stored = {key: th.as_tensor(value) for key, value in observations.to_stored(frames).items()}
    return observations.encode(stored)[OBSERVATION_KEY].numpy()


def test_float_images_are_resized_by_area() -> None:
    frames = samples(FLOAT_IMAGE, 4)  # 12 x 10 pixels, channels last
    blocks = np.moveaxis(frames, -1, 1).reshape(4, 3, 6, 2, 5, 2).mean(axis=(3, 5))
    assert np.allclose(encode_floats(FLOAT_IMAGE, frames, (6, 5)), blocks, atol=1e-6)
    bytes_ = (255 * np.moveaxis(frames, -1, 1)).astype(np.uint8)
    first = spaces.Box(0.0, 255.0, (3, 12, 10), np.float32)
    for size in ((7, 3), (64, 64), (5, 20)):  # neither multiples nor smaller only; the same as bytes but for the rounding
        floats = encode_floats(first, bytes_.astype(np.float32), size)
        assert np.abs(floats - resize_images(bytes_, size)).max() <= 0.5 + 1e-3 and floats.shape == (4, 3, *size)


@pytest.mark.parametrize("image_size", [(64, 64), (5, 7), None])
def test_float_images_learn_in_any_size(image_size: tuple[int, int] | None) -> None:
    kwargs = dict(image_size=image_size, normalize_images=False)
    model = small_model(random_envs(FLOAT_IMAGE), policy_kwargs=kwargs, **LEARN).learn(32)
    assert model._n_updates > 0
    assert model.policy.observations.encoded[OBSERVATION_KEY].shape == (3, *(image_size or (12, 10)))
    assert model.replay_buffer.observations.shape[2:] == (12, 10, 3)  # type: ignore[union-attr]  # as VecNormalize needs them


def test_float_boxes_of_rank_3_are_numbers_by_default() -> None:
    model = small_model(random_envs(FLOAT_IMAGE))
    assert type(model.policy).__name__ == "MlpPolicy"
    assert model.policy.observations.encoded[OBSERVATION_KEY].shape == (360,)


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 9, 4), (3, 3, 3), (5, 200, 3)])
def test_images_of_any_size(shape: tuple[int, int, int]) -> None:
    for image_size in (None, (64, 64)):
        model = small_model(random_envs(image(*shape)), policy_kwargs=dict(image_size=image_size), **LEARN).learn(24)
        assert model._n_updates > 0
        model.predict(samples(image(*shape), 2))
