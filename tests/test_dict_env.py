"""Dict observations: which parts are seen and reconstructed, and Dict environments as users of SB3 have and wrap them."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_dreamer import DreamerV2
from sb3_dreamer.common.type_aliases import SequenceBatch
from tests.small import (
    ACTIONS,
    BOX,
    DISCRETE,
    LEARN,
    OBSERVATIONS,
    SMALL,
    VECTOR,
    RandomEnv,
    copy_space,
    image,
    inner_env,
    random_envs,
    random_model,
    same_weights,
    samples,
    small_model,
    weights,
)

MIXED = OBSERVATIONS["dict"]
KEYS = list(MIXED.spaces)  # type: ignore[attr-defined]
NATIVE: dict[str, Any] = dict(image_size=None)


def mixed_model(**policy_kwargs: Any) -> DreamerV2:
    return random_model(MIXED, policy_kwargs=NATIVE | policy_kwargs, seed=0, **LEARN)


def stored(model: DreamerV2, obs: dict[str, np.ndarray]) -> dict[str, th.Tensor]:
    return model.policy.stored_tensors(model.policy.observations.with_batch_axis(obs)[0])


def embedding(model: DreamerV2, obs: dict[str, np.ndarray]) -> th.Tensor:
    with th.no_grad():
        return model.policy.world_model.embed(model.policy.observations.encode(stored(model, obs)))


def batch_of(model: DreamerV2, seed: int = 0) -> SequenceBatch:
    model.learn(16)
    model.replay_buffer.seed(seed)
    return model.replay_buffer.sample(3)


# --------------------------------------------------------------------------------------------- which keys are seen and decoded


@pytest.mark.parametrize("seen", [["vector"], ["image"], ["multi-discrete", "image rgb", "bytes"], KEYS[::-1]])
def test_encoder_keys(seen: list[str]) -> None:
    model = mixed_model(encoder_keys=seen)
    obs, other = samples(MIXED, 3), samples(MIXED, 3, seed=7)
    before = embedding(model, obs)
    for key in KEYS:
        changed = embedding(model, obs | {key: other[key]})
        assert not np.array_equal(obs[key], other[key])
        assert th.equal(changed, before) == (key not in seen), key
    encoder: Any = model.policy.world_model.encoder
    assert encoder.image_keys + encoder.vector_keys == [k for k in KEYS if k in seen and "image" in k] + [
        k for k in KEYS if k in seen and "image" not in k  # the order is the space's, not the option's
    ]
    model.learn(24)
    assert model._n_updates == 1 and set(model.replay_buffer.observations) == set(KEYS)


@pytest.mark.parametrize("decoded", [["vector"], ["image", "discrete from -2"], KEYS[::-1], []])
def test_decoder_keys(decoded: list[str]) -> None:
    model = mixed_model(decoder_keys=decoded)
    batch = batch_of(model)
    loss = model.policy.world_model.loss(batch, model.model_objective)
    assert set(loss.observations) == set(decoded)
    terms = model.reward_scale * loss.reward + model.kl_scale * loss.kl + sum(loss.observations.values())
    assert loss.discount is not None
    assert loss.total.item() == pytest.approx((terms + model.discount_scale * loss.discount).item(), rel=1e-5)
    reconstructed = {f"{key}_loss" for key in KEYS} & set(model.update(batch).metrics)
    assert reconstructed == {model.policy.loss_names[key] for key in decoded}


def test_encoded_and_decoded_keys_may_differ() -> None:
    """Something that is not seen can be predicted from what is: privileged information in training."""
    model = mixed_model(encoder_keys=["image"], decoder_keys=["vector"])
    assert set(model.policy.world_model.loss(batch_of(model), model.model_objective).observations) == {"vector"}
    obs, other = samples(MIXED, 3), samples(MIXED, 3, seed=7)
    th.manual_seed(0)
    action, state = model.predict(obs)
    th.manual_seed(0)
    same_action, same_state = model.predict({**other, "image": obs["image"]})
    assert np.array_equal(action, same_action) and state is not None and same_state is not None
    assert all(np.array_equal(a, b) for a, b in zip(state, same_state, strict=True))


def test_observation_scale_per_key() -> None:
    scales = {"vector": 0.5, "image": 0.0, "multi-discrete": 3.0}
    batch = batch_of(mixed_model())
    gradients = []
    for scale in (1.0, scales):
        model = random_model(MIXED, policy_kwargs=NATIVE, seed=0, observation_scale=scale, **LEARN)
        th.manual_seed(1)
        loss = model.policy.world_model.loss(batch, model.model_objective)
        assert loss.discount is not None
        values, rest = loss.observations, loss.reward + model.kl_scale * loss.kl + model.discount_scale * loss.discount
        by_hand = rest + sum((scale.get(k, 1.0) if isinstance(scale, dict) else scale) * x for k, x in values.items())
        assert loss.total.item() == pytest.approx(by_hand.item(), rel=1e-5)
        decoder: Any = model.policy.world_model.decoder
        loss.total.backward()
        gradients.append({key: decoder.outputs[str(i)].weight.grad for i, key in enumerate(decoder.vector_keys)})
    for key, gradient in gradients[0].items():  # an output layer has no other loss than its key's
        assert gradient.abs().max() > 0.0
        assert th.allclose(gradients[1][key], scales.get(key, 1.0) * gradient, rtol=1e-4, atol=1e-6), key


# ---------------------------------------------------------------------------------------------------- a Dict and a plain space


@pytest.mark.parametrize("actions", [DISCRETE, BOX])
def test_a_dict_of_one_vector_is_that_vector(actions: spaces.Space) -> None:
    """Same weights, same actions and the same learning as on the flattened environment."""

    class Fixed(RandomEnv):
        """Draws the same numbers, whatever form the space has."""

        def _observe(self) -> Any:
            vector = np.random.default_rng(100 * self.episode + self.steps).normal(size=3).astype(np.float32)
            return {"vec": vector} if isinstance(self.observation_space, spaces.Dict) else vector

        def step(self, action: Any) -> Any:
            result = super().step(action)
            return result[0], float(np.sum(action)), *result[2:]

    results: list[list[np.ndarray]] = []
    learned = []
    for space, obs in ((spaces.Dict({"vec": VECTOR}), {"vec": samples(VECTOR, 4)}), (VECTOR, samples(VECTOR, 4))):
        model = small_model(Fixed(space, copy_space(actions)), seed=1, **LEARN)
        action, state = model.predict(obs, deterministic=True)
        model.learn(60)
        assert model._n_updates == 6
        later_action, later_state = model.predict(obs, deterministic=True)
        results.append([action, later_action, *(state or ()), *(later_state or ())])
        learned.append(weights(model))
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True)) and len(results[0]) == 8
    assert same_weights(*learned)


# ------------------------------------------------------------------------------------------------- environments of SB3's users


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_the_other_policies_name_the_right_one(policy: str) -> None:
    with pytest.raises(ValueError, match="must use `MultiInputPolicy`"):
        DreamerV2(policy, BitFlippingEnv(n_bits=4), **SMALL)


@pytest.mark.parametrize("options", [{}, {"discrete_obs_space": True}, {"image_obs_space": True}, {"continuous": True}])
def test_goal_environment(options: dict[str, Any]) -> None:
    """Observation, achieved and desired goal: bits, class numbers, or pictures."""
    env = BitFlippingEnv(n_bits=4, **options)
    model = small_model(env, policy_kwargs=NATIVE, **LEARN).learn(40)
    assert model._n_updates == 3
    mean, _ = evaluate_policy(model, model.get_env(), 3)  # type: ignore[arg-type]
    assert isinstance(mean, float) and -4.0 <= mean <= 0.0


@pytest.mark.parametrize("kind", ["discrete", "multi-discrete", "multi-binary", "asymmetric"])
def test_mixed_observations_with_every_action(kind: str) -> None:
    model = small_model(random_envs(MIXED, ACTIONS[kind], n_envs=3), policy_kwargs=NATIVE, **LEARN).learn(48)
    assert model._n_updates > 0
    _, lengths = evaluate_policy(model, random_envs(MIXED, ACTIONS[kind], n_envs=2, length=5), 4, return_episode_rewards=True)
    assert lengths == [5] * 4


def test_environments_in_processes() -> None:
    env = make_vec_env(lambda: RandomEnv(MIXED), n_envs=2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork"))
    try:
        model = small_model(env, policy_kwargs=NATIVE, **LEARN).learn(40)
        assert model._n_updates > 0 and model.replay_buffer.num_records == 2 * 24 + 2 * 3
    finally:
        env.close()


@pytest.mark.parametrize("channel_last", [False, True])
@pytest.mark.parametrize("discrete_actions", [False, True])
def test_stacked_frames_of_a_grid_world(channel_last: bool, discrete_actions: bool) -> None:
    """Vectors (float64) and pictures are stacked, three of each."""

    def make() -> gym.Env:
        return SimpleMultiObsEnv(random_start=True, discrete_actions=discrete_actions, channel_last=channel_last)

    env = VecFrameStack(DummyVecEnv([make]), 3, {"vec": None, "img": "last" if channel_last else "first"})  # type: ignore[dict-item]
    model = small_model(env, buffer_size=64, seed=0, **LEARN).learn(24)
    assert model._n_updates == 1
    held: Any = model.replay_buffer.observations
    assert held["img"].shape[2:] == (3, 64, 64) and held["vec"].shape[2:] == (15,)
    goes_on = ~model.replay_buffer.dones[1:9, 0]  # a lucky walk may end within these steps
    assert goes_on.sum() > 3
    older, newer = held["img"][2:10, 0, 0], held["img"][1:9, 0, 1]
    assert np.array_equal(newer[goes_on], older[goes_on])  # the last but one becomes the last but two
    assert model.predict(env.reset(), deterministic=True)[0].shape[0] == 1  # type: ignore[arg-type]


def test_vec_normalize_of_some_keys() -> None:
    env = VecNormalize(random_envs(MIXED, n_envs=2), norm_obs_keys=["vector", "bytes", "number"])
    model = small_model(env, policy_kwargs=NATIVE, **LEARN).learn(48)
    buffer, batches = model.replay_buffer, []
    for normalize in (None, env):
        buffer.seed(3)
        batches.append({key: value.numpy() for key, value in buffer.sample(4, env=normalize).observations.items()})
    expected = env.normalize_obs({key: batches[0][key] for key in env.norm_obs_keys or ()})
    for key in KEYS:
        normalized = key in ("vector", "bytes", "number")
        assert np.allclose(batches[1][key], expected[key] if normalized else batches[0][key], atol=1e-6)  # type: ignore[call-overload]
        assert normalized != np.array_equal(batches[0][key], batches[1][key])
    inner, held = inner_env(model), buffer.observations
    for key in ("bytes", "discrete from -2", "multi-binary matrix"):  # whole numbers stay exact, the terminal ones too
        given = [obs[key] for obs in inner.observations[: buffer.size()]]
        assert np.array_equal(held[key][: buffer.size(), 0], given)  # type: ignore[call-overload]


def test_several_images_of_their_own_sizes() -> None:
    space = spaces.Dict({"wide": image(8, 30, 3), "depth": image(20, 6, 1), "high": image(31, 9, 4)})
    with pytest.raises(ValueError, match=r"one height and width.*'high': \(4, 31, 9\), 'wide': \(3, 8, 30\).*image_size"):
        random_model(space, policy_kwargs=NATIVE)
    model = random_model(space, policy_kwargs=dict(image_size=(10, 12)), **LEARN).learn(24)
    assert model._n_updates == 1
    held: Any = model.replay_buffer.observations
    assert {key: value.shape[2:] for key, value in held.items()} == {
        "wide": (3, 10, 12),
        "depth": (1, 10, 12),
        "high": (4, 10, 12),
    }


def test_features_extractor_of_sb3() -> None:
    """SB3's own extractor in place of ours: it sees encoded observations."""
    space = spaces.Dict({"camera": image(36, 36, 1), "arm": VECTOR, "gear": spaces.Discrete(3)})
    kwargs = dict(features_extractor_class=CombinedExtractor, features_extractor_kwargs=dict(cnn_output_dim=7))
    model = random_model(space, policy_kwargs=NATIVE | kwargs, **LEARN).learn(24)
    assert model._n_updates == 1 and isinstance(model.policy.world_model.encoder, CombinedExtractor)
    assert embedding(model, samples(space, 2)).shape == (2, 7 + 3 + 3)
