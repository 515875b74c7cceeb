"""``predict``: a recurrent policy for any number of environments, without memory of its own."""

import io
import pathlib
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage

from sb3_dreamer import DreamerV2, DreamerV3
from tests.small import (
    ASYMMETRIC,
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    VECTOR,
    RandomEnv,
    random_envs,
    random_model,
    same_weights,
    small_models_of,
    weights,
)

MATRIX = spaces.Box(-2.0, 3.0, (2, 3), np.float64)
ACTION_SPACES = {"discrete": DISCRETE, "box": BOX, "asymmetric": ASYMMETRIC, "matrix": MATRIX}
OBSERVATION_SPACES: dict[str, spaces.Space] = {"vector": VECTOR, "image": IMAGE, "dict": DICT}

State = tuple[np.ndarray, ...]


def observations(space: spaces.Space, n: int | None = None, seed: int = 0) -> Any:
    """``n`` samples, or one without a batch axis; images height x width x channels, as an environment gives them."""
    space.seed(seed)
    samples = [space.sample() for _ in range(n or 1)]
    if n is None:
        return samples[0]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space.spaces}
    return np.stack(samples)


def equal(a: Any, b: Any) -> bool:
    """Bit-equal arrays, or tuples of these."""
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else np.array_equal(a, b)


@pytest.fixture(scope="module", params=[DreamerV2, DreamerV3], ids=["V2", "V3"])
def trained(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One trained model per kind of observation."""
    with small_models_of(request.param):
        return {kind: random_model(space, seed=0).learn(70) for kind, space in OBSERVATION_SPACES.items()}


@pytest.mark.parametrize("n", [None, 1, 5])
@pytest.mark.parametrize("kind", OBSERVATION_SPACES)
@pytest.mark.parametrize("actions", ACTION_SPACES)
def test_shapes_and_dtypes(actions: str, kind: str, n: int | None, algorithm: Any) -> None:
    action_space, space = ACTION_SPACES[actions], OBSERVATION_SPACES[kind]
    model = random_model(space, action_space, n_envs=2)  # the batch is another than in training
    state: State | None = None
    for deterministic in (True, False):
        action, state = model.predict(observations(space, n), state, deterministic=deterministic)
        assert state is not None and [x.shape for x in state] == [
            (n or 1, 16),
            (n or 1, 16),
            (n or 1, action.size // (n or 1)) if actions != "discrete" else (n or 1, 3),
        ]
        assert all(type(x) is np.ndarray and x.dtype == np.float32 and np.isfinite(x).all() for x in state)
        assert type(action) is np.ndarray or (n is None and isinstance(action, np.generic))
        assert action.dtype == action_space.dtype
        assert action.shape == (() if n is None else (n,)) + (action_space.shape or ())
        assert all(action_space.contains(one) for one in ([action] if n is None else np.asarray(action)))


def test_actions_fill_their_bounds() -> None:
    model = random_model(action_space=ASYMMETRIC)
    action, _ = model.predict(observations(VECTOR, 500))
    assert ASYMMETRIC.low == pytest.approx(action.min(axis=0), abs=0.5)
    assert ASYMMETRIC.high == pytest.approx(action.max(axis=0), abs=0.5)


@pytest.mark.parametrize("kind", OBSERVATION_SPACES)
def test_deterministic_is_exact_and_needs_no_random_number(kind: str, trained: dict[str, Any]) -> None:
    model, obs = trained[kind], observations(OBSERVATION_SPACES[kind], 4)
    _, state = model.predict(obs)
    torch_state, numpy_state = th.get_rng_state(), str(np.random.get_state())
    results = [model.predict(obs, state, np.zeros(4), deterministic=True) for _ in range(3)]
    assert th.equal(torch_state, th.get_rng_state()) and numpy_state == str(np.random.get_state())
    for action, next_state in results[1:]:
        assert equal(action, results[0][0]) and equal(next_state, results[0][1])


def test_samples_come_from_torch_alone(trained: dict[str, Any]) -> None:
    model, obs = trained["vector"], observations(VECTOR, 50)
    results = []
    for seed in (3, 3, 4):
        th.manual_seed(seed)
        results.append(model.predict(obs)[0])
    assert equal(results[0], results[1]) and not equal(results[0], results[2])


def test_rows_do_not_influence_each_other(trained: dict[str, Any]) -> None:
    obs = observations(VECTOR, 3)
    _, state = trained["vector"].predict(obs, deterministic=True)
    for i in range(3):
        _, single = trained["vector"].predict(obs[i], deterministic=True)
        assert all(np.allclose(a[i : i + 1], b, atol=1e-5) for a, b in zip(state or (), single or (), strict=True))


def test_state_is_returned_and_not_changed(trained: dict[str, Any]) -> None:
    model, obs = trained["vector"], observations(VECTOR, 2)
    _, state = model.predict(obs, deterministic=True)
    assert isinstance(state, tuple)
    copy, given = tuple(x.copy() for x in state), obs.copy()
    _, following = model.predict(obs, state, deterministic=True)
    assert equal(state, copy) and equal(obs, given)
    assert following is not None and not equal(following[0], state[0])  # the memory moves on
    assert not any(np.shares_memory(a, b) for a in state for b in following)


def test_state_holds_the_previous_action(trained: dict[str, Any]) -> None:
    action, state = trained["vector"].predict(observations(VECTOR, 6))
    assert state is not None and np.array_equal(state[2], np.eye(3)[action])
    model = random_model(action_space=ASYMMETRIC)
    action, state = model.predict(observations(VECTOR, 6))
    assert state is not None and np.allclose(state[2], 2 * (action - ASYMMETRIC.low) / (ASYMMETRIC.high - ASYMMETRIC.low) - 1)
    other = (*state[:2], -state[2])
    obs = observations(VECTOR, 6)
    assert not equal(model.predict(obs, state, deterministic=True)[1], model.predict(obs, other, deterministic=True)[1])


@pytest.mark.parametrize(
    "convert", [np.array, list, lambda x: np.array(x, dtype=np.float32), lambda x: np.array(x, dtype=int)]
)
def test_episode_start_resets_rows(convert: Any, trained: dict[str, Any]) -> None:
    model, obs = trained["vector"], observations(VECTOR, 3)
    fresh_action, fresh = model.predict(obs, deterministic=True)
    _, state = model.predict(observations(VECTOR, 3, seed=1), fresh, deterministic=True)
    _, kept = model.predict(obs, state, deterministic=True)
    action, mixed = model.predict(obs, state, convert([True, False, True]), deterministic=True)
    assert fresh is not None and kept is not None and mixed is not None
    for new, continued, result in zip(fresh, kept, mixed, strict=True):
        assert equal(result[[0, 2]], new[[0, 2]]) and equal(result[1], continued[1])
    assert equal(action[[0, 2]], fresh_action[[0, 2]])
    assert not equal(fresh[0][1], kept[0][1])


def test_episode_start_without_a_state_and_changed_in_place(trained: dict[str, Any]) -> None:
    model, obs = trained["vector"], observations(VECTOR, 2)
    starts = np.zeros(2, dtype=bool)
    first = model.predict(obs, None, starts, deterministic=True)
    assert equal(first[1], model.predict(obs, deterministic=True)[1])  # the initial state, whatever episode_start
    expected = model.predict(obs, first[1], np.zeros(2, dtype=bool), deterministic=True)
    state = model.predict(obs, None, starts, deterministic=True)[1]
    starts[:] = True  # as evaluate_policy does
    starts[:] = False
    assert equal(model.predict(obs, state, starts, deterministic=True)[1], expected[1])


def test_wrong_state_or_episode_start(trained: dict[str, Any]) -> None:
    model, obs = trained["vector"], observations(VECTOR, 2)
    _, state = model.predict(observations(VECTOR, 3))
    with pytest.raises(ValueError, match=r"The state has shapes \[\(3, 16\).*expected \[\(2, 16\)"):
        model.predict(obs, state)
    with pytest.raises(ValueError, match="episode_start has 3 entries, but there are 2 observations"):
        model.predict(obs, episode_start=np.zeros(3))


def test_no_memory_in_the_model(trained: dict[str, Any]) -> None:
    model, obs = trained["vector"], observations(VECTOR, 2)
    before = model.predict(obs, deterministic=True)
    for seed in range(3):
        model.predict(observations(VECTOR, 4, seed), deterministic=True)
    after = model.predict(obs, deterministic=True)
    assert equal(before[0], after[0]) and equal(before[1], after[1])


@pytest.mark.parametrize("image_size", [(64, 64), None])
def test_images_in_either_layout(image_size: tuple[int, int] | None) -> None:
    model = random_model(IMAGE, policy_kwargs=dict(image_size=image_size), n_envs=2)
    obs = observations(IMAGE, 3)
    expected = model.predict(obs.transpose(0, 3, 1, 2), deterministic=True)
    for given, n in ((obs, 3), (obs[0], 1), (obs[0].transpose(2, 0, 1), 1)):
        _, state = model.predict(given, deterministic=True)
        assert state is not None and expected[1] is not None
        assert all(np.allclose(a, b[:n], atol=1e-5) for a, b in zip(state, expected[1], strict=True))


def test_result_of_reset_is_refused(trained: dict[str, Any]) -> None:
    for model in (trained["vector"], trained["vector"].policy):
        with pytest.raises(ValueError, match=r"\(obs, info\)"):
            model.predict(RandomEnv().reset())  # type: ignore[arg-type]


def test_bad_observations_are_refused(trained: dict[str, Any]) -> None:
    wrong: dict[str, Any] = {"vector": np.zeros((2, 4)), "image": np.zeros((2, 40, 40, 1), np.uint8)}
    for kind, obs in wrong.items():
        with pytest.raises(ValueError, match="Unexpected observation shape"):
            trained[kind].predict(obs)
    with pytest.raises(ValueError, match=r"has the keys \['arm'\], expected \['arm', 'leg'\]"):
        trained["dict"].predict({"arm": np.zeros((2, 3))})
    with pytest.raises(ValueError, match="'observation' has dtype float32, expected uint8"):
        trained["image"].predict(observations(IMAGE, 2).astype(np.float32) / 255)
    with pytest.raises(ValueError, match="'leg' of environment 1 is nan at index 0, expected a finite float32"):
        trained["dict"].predict({"arm": np.zeros((2, 3)), "leg": np.array([[0, 0], [np.nan, 0]])})


def test_prediction_leaves_training_mode_and_makes_no_graph(trained: dict[str, Any]) -> None:
    policy = trained["vector"].policy
    policy.set_training_mode(True)
    policy.predict(observations(VECTOR))
    assert not policy.training
    acting = policy.act(policy.stored_tensors(observations(VECTOR, 1)), policy.initial_state(1), th.ones(1, dtype=th.bool))
    assert not any(x.requires_grad for x in (*acting.latent, acting.actions))


@pytest.mark.parametrize("actions", ACTION_SPACES)
@pytest.mark.parametrize("kind", OBSERVATION_SPACES)
def test_any_weights_give_finite_actions(kind: str, actions: str) -> None:
    model = random_model(OBSERVATION_SPACES[kind], ACTION_SPACES[actions])
    parameters: Any = model.get_parameters()
    assert all(value.is_floating_point() for value in parameters["policy"].values())
    parameters["policy"] = {name: th.rand_like(value) for name, value in parameters["policy"].items()}
    model.set_parameters(parameters)
    state: State | None = None
    for _ in range(3):
        action, state = model.predict(observations(OBSERVATION_SPACES[kind], 4), state, deterministic=True)
        assert np.isfinite(action).all() and all(np.isfinite(x).all() for x in state or ())


def test_evaluate_policy_of_model_and_policy(algorithm: Any) -> None:
    model = random_model(n_envs=3)
    for owner in (model, model.policy):
        returns, lengths = evaluate_policy(owner, random_envs(n_envs=2, length=7), 4, return_episode_rewards=True)
        assert lengths == [7] * 4 and len(returns) == 4  # type: ignore[arg-type]


def test_evaluate_policy_passes_memory_and_resets(algorithm: Any) -> None:
    """The deterministic state that evaluation reaches is that of the same observations fed by hand."""
    model = random_model(seed=0)
    seen: list[Any] = []
    predict = model.policy.predict

    def spy(observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        result = predict(observation, state, episode_start, deterministic)
        seen.append((observation.copy(), np.array(episode_start), result[1]))
        return result

    model.policy.predict = spy  # type: ignore[method-assign]
    evaluate_policy(model, random_envs(n_envs=2, length=5), 4)
    state: State | None = None
    for i, (observation, starts, expected) in enumerate(seen):
        assert (starts == (i % 5 == 0)).all()
        state = predict(observation, None if i % 5 == 0 else state, deterministic=True)[1]
        assert equal(state, expected)


@pytest.mark.parametrize("kind", OBSERVATION_SPACES)
@pytest.mark.parametrize("actions", ["discrete", "matrix"])
def test_policy_file(kind: str, actions: str, tmp_path: pathlib.Path, algorithm: Any) -> None:
    space = OBSERVATION_SPACES[kind]
    kwargs: dict[str, Any] = dict(image_size=(32, 32), head_init_scale=0.5, net_arch=dict(actor=[8]), activation_fn=th.nn.ReLU)
    model = random_model(space, ACTION_SPACES[actions], policy_kwargs=kwargs | dict(optimizer_class=th.optim.RMSprop))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.policy.save(str(tmp_path / "policy"))
        loaded = type(model.policy).load(str(tmp_path / "policy"), device="cpu")
    assert type(loaded) is type(model.policy) and same_weights(weights(model), weights(loaded))
    obs = observations(space, 2)
    assert equal(loaded.predict(obs, deterministic=True)[1], model.predict(obs, deterministic=True)[1])
    assert loaded.image_size == (32, 32) and isinstance(loaded.optimizer, th.optim.RMSprop)


def test_policy_constructor_parameters_are_complete(algorithm: Any) -> None:
    model = random_model()
    policy = model.policy
    data = policy._get_constructor_parameters()
    stored = io.BytesIO()
    th.save({"data": data}, stored)  # what BasePolicy.save does
    init = type(policy).__init__.__code__
    assert set(data) == set(init.co_varnames[1 : init.co_argcount])
    assert all(data[name] == value for name, value in model.policy_kwargs.items())


def test_transposed_environment_for_evaluation() -> None:
    """evaluate_policy of an image model on an environment as it is, and with SB3's wrapper around it."""
    model = random_model(IMAGE)
    plain = DummyVecEnv([lambda: gym.wrappers.TimeLimit(RandomEnv(IMAGE), 3)])
    for env in (plain, VecTransposeImage(plain)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # no Monitor
            _, lengths = evaluate_policy(model, env, 1, return_episode_rewards=True)
        assert lengths == [3]
