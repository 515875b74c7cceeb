"""The world model as an environment: its contract with SB3 and gymnasium, its numbers, and what it refuses."""

import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as check_gymnasium_env
from huggingface_hub import ModelCard
from PIL import Image
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import tile_images

from benchmarks.tasks.images import PixelCatch
from sb3_dreamer import DreamerV2
from sb3_dreamer.callbacks import ResumableCheckpointCallback
from sb3_dreamer.common.functional import INVERSE_REWARD_TRANSFORMS, REWARD_TRANSFORMS
from sb3_dreamer.common.observations import ObservationFormat
from sb3_dreamer.dream import DreamEnv, DreamVecEnv, Recording, open_loop, open_recording, record
from sb3_dreamer.dream.__main__ import main
from sb3_dreamer.dream.env import idle_action, key_table
from sb3_dreamer.dream.inspection import calibrate, inspect
from sb3_dreamer.dream.plots import prediction_frames
from sb3_dreamer.dream.rollout import OpenLoop
from sb3_dreamer.dream.zoo_run import find_run
from sb3_dreamer.saving.checkpoint import checkpoints
from tests.envs import ScriptedEnv
from tests.installed import run_python
from tests.small import (
    ACTIONS,
    BOX,
    DISCRETE,
    LEARN,
    OBSERVATIONS,
    VECTOR,
    RandomEnv,
    inner_env,
    random_envs,
    random_model,
    same_weights,
    small_model,
    weights,
)


@pytest.fixture(scope="module")
def vector_model() -> DreamerV2:
    return random_model(VECTOR, seed=0, **LEARN).learn(60)


@pytest.fixture(scope="module")
def image_model() -> DreamerV2:
    return random_model(OBSERVATIONS["image rgb"], seed=0, policy_kwargs=dict(image_size=(16, 16)), **LEARN).learn(40)


@pytest.fixture(scope="module")
def dict_model() -> DreamerV2:
    space: Any = OBSERVATIONS["dict"]
    chosen = spaces.Dict({key: space[key] for key in space if key != "number"})  # SB3's checker knows no Box of shape ()
    return random_model(chosen, seed=0, **LEARN).learn(40)


@pytest.fixture(params=["vector", "image", "dict"])
def model(request: pytest.FixtureRequest) -> DreamerV2:
    return request.getfixturevalue(f"{request.param}_model")


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="gymnasium")
        warnings.filterwarnings("ignore", module="stable_baselines3")
        yield


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
    return np.array_equal(first, second)


def actions_for(env: DreamVecEnv, seed: int = 0) -> np.ndarray:
    env.action_space.seed(seed)
    return np.array([env.action_space.sample() for _ in range(env.num_envs)])


# ------------------------------------------------------------------------------------------------------------ contracts


def test_checkers_of_sb3_and_gymnasium_pass(model: DreamerV2) -> None:
    env = DreamEnv(model, horizon=6, render_mode="rgb_array")
    assert env.observation_space == inner_env(model).observation_space, "the environment's own space"
    check_env(env)
    check_gymnasium_env(env)


@pytest.mark.parametrize(
    "kind", ["float image channel first", "image channel first", "discrete from -2", "multi-binary matrix"]
)
def test_other_observations_are_in_their_spaces(kind: str) -> None:
    options: dict[str, Any] = dict(image_size=None, normalize_images=not kind.startswith("float image"))
    env = DreamEnv(random_model(OBSERVATIONS[kind], seed=0, policy_kwargs=options, **LEARN).learn(20))
    assert env.observation_space == OBSERVATIONS[kind]
    check_gymnasium_env(env)


@pytest.mark.parametrize("kind", ["multi-discrete matrix", "multi-binary", "asymmetric", "integers"])
def test_every_action_can_be_dreamt_and_played(kind: str) -> None:
    env = DreamEnv(random_model(VECTOR, ACTIONS[kind], seed=0, **LEARN).learn(20))
    check_gymnasium_env(env)
    keys = env.get_keys_to_action()
    assert keys and all(env.action_space.contains(action) for action in keys.values())
    assert env.action_space.contains(idle_action(env.action_space))


def test_ends_are_reported_as_sb3_wants_them(model: DreamerV2) -> None:
    env = DreamVecEnv(model, 3, horizon=4, termination="never", seed=0)
    assert env.observation_space == inner_env(model).observation_space
    seen = env.reset()
    for step in range(1, 9):
        previous = seen
        seen, rewards, dones, infos = env.step(actions_for(env, step))
        assert rewards.shape == dones.shape == (3,) and rewards.dtype == np.float32 and dones.dtype == bool
        assert dones.all() == (step % 4 == 0) and not equal(seen, previous)
        for index, info in enumerate(infos):
            assert info["TimeLimit.truncated"] == dones[index]
            assert ("terminal_observation" in info) == dones[index]
            if dones[index]:
                assert env.observation_space.contains(info["terminal_observation"])
                assert info["episode"]["l"] == 4
                assert not equal(info["terminal_observation"], env.observation(index)), "the next dream has begun"


def test_termination_follows_the_discount_head() -> None:
    """The head says gamma where an episode goes on, and that times gamma where it may end."""
    vector_model = random_model(VECTOR, seed=0, **LEARN).learn(20)
    head: Any = vector_model.policy.world_model.discount_head
    head.output.bias.data.fill_(0.0)
    env = DreamVecEnv(vector_model, 8, horizon=50, seed=0)
    env.reset()
    continues = env.advance(actions_for(env))[3]
    with th.no_grad():
        mean = head(env.states.features).mean.numpy()
    assert np.allclose(continues, mean / vector_model.gamma, atol=1e-6) and (continues < 1).all()
    middle = float(np.median(continues))
    env = DreamVecEnv(vector_model, 8, horizon=50, threshold=middle, seed=0)
    env.reset()
    assert np.array_equal(env.advance(actions_for(env))[1], continues < middle)
    sampled = DreamVecEnv(vector_model, 400, horizon=50, termination="sample", seed=0)
    sampled.reset()
    _, terminated, _, continues = sampled.advance(actions_for(sampled))
    expected = float((1 - continues).mean())
    assert abs(terminated.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 400) + 1e-3
    without = random_model(VECTOR, seed=0, policy_kwargs=dict(use_discount_head=False), **LEARN).learn(20)
    env = DreamVecEnv(without, 4, termination="sample")
    env.reset()
    _, terminated, _, continues = env.advance(actions_for(env))
    assert not terminated.any() and (continues == 1).all()


@pytest.mark.parametrize("kind", ["vector", "image"])
def test_sb3_learns_in_a_dream(kind: str, request: pytest.FixtureRequest) -> None:
    model: DreamerV2 = request.getfixturevalue(f"{kind}_model")
    before = weights(model)
    env = DreamVecEnv(model, 4, horizon=5, seed=0)
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(32)
    assert len(agent.ep_info_buffer or []) > 0, "episodes are counted without Monitor"
    DQN("MlpPolicy", env, learning_starts=8, train_freq=1, buffer_size=100, batch_size=8, device="cpu").learn(24)
    assert same_weights(before, weights(model)), "the model itself is not touched"
    real = inner_env(model)
    action, _ = agent.predict(real.reset()[0])
    assert real.action_space.contains(int(action)), "what was trained in the dream acts in the environment"


# -------------------------------------------------------------------------------------------------------------- numbers


def test_a_step_is_the_world_models_prior_and_its_heads(model: DreamerV2) -> None:
    env = DreamVecEnv(model, 3, horizon=5, termination="never", seed=3)
    env.reset()
    state, world_model = env.states, model.policy.world_model
    generator = env.dynamics.generator.clone_state()
    seen, rewards, _, _ = env.step(np.array([0, 2, 1]))

    like = th.empty(3, world_model.rssm.latent.parameter_size)
    noise = world_model.rssm.latent.draw_noise(like, generator)
    with th.no_grad():
        expected = world_model.rssm.imagine_step(state, th.eye(3)[[0, 2, 1]], noise)
        features = expected.features
        reward = th.atanh(world_model.reward_head(features).mode)
        decoded = world_model.decoder(features)
    assert all(th.equal(a, b) for a, b in zip(env.states, expected, strict=True))
    assert np.allclose(rewards, reward, atol=1e-5)
    values: Any = seen if isinstance(seen, dict) else {"observation": seen}
    if "vector" in values or values.get("observation", np.zeros(0)).dtype == np.float32:
        key = "vector" if "vector" in values else "observation"
        assert np.allclose(values[key], decoded[key].mode.clamp(-1, 1), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.uint8])
def test_numbers_of_any_rank_come_through(dtype: Any) -> None:
    """Encoded and decoded, predicted and drawn."""
    shapes = [(), (1,), (2, 3), (2, 3, 2), (2, 1, 3, 2), (1, 2, 1, 2, 3)]
    space = spaces.Dict({f"rank {len(shape)}": spaces.Box(0, 100, shape, dtype) for shape in shapes})
    for key, part in ObservationFormat(space).parts.items():
        values = np.stack([space[key].sample() for _ in range(4)])
        stored = part.to_stored(values, "values", np.arange(4))
        decoded = part.finish(part.decode(part.encode(th.as_tensor(stored))), space[key])
        assert decoded.dtype == dtype and np.allclose(decoded, values, rtol=1e-6)
    model = random_model(space, seed=0, **LEARN).learn(20)
    seen: Any = DreamVecEnv(model, 3, seed=0).reset()
    loop = open_loop(model, open_recording(model), 2, 2, 2, seed=0)
    for key, shape in zip(space, shapes, strict=True):
        assert seen[key].shape == (3, *shape) and all(space[key].contains(row) for row in seen[key]), key
        assert loop.truth[key].shape == loop.model[key].shape == (4, 2, *shape) and loop.kinds[key] == "numbers"
        assert np.isfinite(loop.error(key).model).all()
    assert len(prediction_frames(loop, "rank 0")) == 3


def test_images_are_resized_back(image_model: DreamerV2) -> None:
    env = DreamVecEnv(image_model, 2, seed=0)
    frames: Any = env.reset()
    decoded = image_model.policy.world_model.decoder(env.states.features)["observation"].mode
    bytes_ = ((decoded + 0.5) * 255).round().clamp(0, 255).byte().numpy()
    assert frames.shape == (2, 12, 10, 3) and frames.dtype == np.uint8
    native = np.moveaxis(frames, -1, 1)
    assert native.mean() == pytest.approx(bytes_.mean(), abs=1.5)
    whole = DreamVecEnv(image_model, 2, channels_last=False, seed=0)
    unmoved: Any = whole.reset()
    assert np.array_equal(unmoved, native)


@pytest.mark.parametrize("name", ["tanh", "symlog", "identity"])
def test_rewards_come_back_in_the_environments_units(name: str, vector_model: DreamerV2) -> None:
    rewards = th.tensor([-4.0, -0.3, 0.0, 1.0, 4.5])
    assert th.allclose(INVERSE_REWARD_TRANSFORMS[name](REWARD_TRANSFORMS[name](rewards)), rewards, atol=1e-3)
    assert INVERSE_REWARD_TRANSFORMS.keys() == REWARD_TRANSFORMS.keys()
    assert INVERSE_REWARD_TRANSFORMS["tanh"](th.tensor([1.5])).isfinite()


def test_transformed_rewards_are_those_of_the_head(vector_model: DreamerV2) -> None:
    pair = []
    for transformed in (True, False):
        env = DreamVecEnv(vector_model, 4, transformed_rewards=transformed, seed=0)
        env.reset()
        pair.append(env.step(np.zeros(4, dtype=np.int64))[1])
    assert np.allclose(np.tanh(pair[1]), pair[0], atol=1e-6) and not np.allclose(pair[0], pair[1])


def test_transformed_rewards_behind_vec_normalize() -> None:
    venv = VecNormalize(random_envs(), norm_obs=False, norm_reward=True)
    model = small_model(venv, seed=0, **LEARN).learn(60)
    venv.training, venv.ret_rms.var = False, np.array(49.0)
    rewards = []
    for transformed in (True, False):
        env = DreamVecEnv(model, 4, transformed_rewards=transformed, seed=0)
        env.reset()
        rewards.append(env.step(np.stack([env.action_space.sample() for _ in range(4)]) * 0)[1])
    head = INVERSE_REWARD_TRANSFORMS[model.model_objective.reward_transform](th.as_tensor(rewards[0])).numpy()
    assert np.allclose(rewards[1], venv.unnormalize_reward(head), rtol=1e-4) and np.abs(rewards[1]).max() > np.abs(head).max()


def test_vec_normalize_is_undone() -> None:
    space = spaces.Box(-500.0, 500.0, (3,), np.float32)
    venv = VecNormalize(random_envs(space), norm_reward=True)
    model = small_model(venv, seed=0, **LEARN).learn(60)
    venv.training = False
    env = DreamVecEnv(model, 64, seed=0)
    seen = env.reset()
    with th.no_grad():
        decoded = model.policy.world_model.decoder(env.states.features)["observation"].mode.numpy()
    assert env.observation_space == space
    units: Any = venv.unnormalize_obs(decoded)
    assert np.allclose(seen, units.clip(-500.0, 500.0), rtol=1e-4, atol=1e-2)  # type: ignore[arg-type]
    actions = np.zeros(64, dtype=np.int64)
    scale = np.sqrt(venv.ret_rms.var + venv.epsilon)
    inner = DreamVecEnv(model, 64, seed=0)
    inner.reset()
    _, step = inner.dynamics.step(inner.states, actions)
    assert np.allclose(env.step(actions)[1], step.rewards * scale, rtol=1e-4)


def test_observation_statistics_are_undone() -> None:
    space = spaces.Box(-500.0, 500.0, (3,), np.float32)
    model = random_model(space, seed=0, policy_kwargs=dict(normalize_observations=True), **LEARN).learn(60)
    recording = open_recording(model)
    loop = open_loop(model, recording, 4, 3, 4, seed=0)
    buffer: Any = model.replay_buffer.observations  # type: ignore[union-attr]
    stored = {tuple(row) for row in np.round(buffer.reshape(-1, 3), 2).tolist()}
    found = [tuple(np.round(row, 2).tolist()) in stored for row in loop.truth["observation"].reshape(-1, 3)]
    assert np.mean(found) > 0.9, "the truth is what was recorded, in its own units"
    assert loop.model["observation"].std() > 10.0


def test_everything_follows_from_the_seed(vector_model: DreamerV2) -> None:
    def run(seed: int) -> list[np.ndarray]:
        env = DreamVecEnv(vector_model, 3, horizon=3)
        env.seed(seed)
        rows = [env.reset()]
        for step in range(5):
            if seed == 0:
                th.manual_seed(step)  # the global random numbers have no effect
            rows += env.step(actions_for(env, step))[:2]
        return rows  # type: ignore[return-value]

    assert all(np.array_equal(a, b) for a, b in zip(run(0), run(0), strict=True))
    assert not np.array_equal(run(0)[1], run(1)[1])
    before = th.get_rng_state()
    run(1)
    assert th.equal(before, th.get_rng_state()), "torch's global generator is not used"


# -------------------------------------------------------------------------------------------------- starts and open loop


@pytest.fixture(scope="module")
def scripted_model() -> DreamerV2:
    """Observations tell environment, episode and step, so that a wrong window is seen."""
    venv = DummyVecEnv([lambda: ScriptedEnv(0, lengths=(12, 3, 9))])
    return small_model(venv, seed=0, **LEARN).learn(80)


def test_windows_lie_where_they_should(scripted_model: DreamerV2) -> None:
    recording, random = open_recording(scripted_model), np.random.default_rng(0)
    assert recording.longest == 13
    batch = recording.sequences(random, 30, 7)
    episode, step = batch.observations["observation"][..., 1], batch.observations["observation"][..., 2]
    assert (episode == episode[0]).all() and (step.diff(dim=0) == 1).all(), "consecutive steps of one episode"
    starts = recording.starts(random, 400, 5)
    last = starts.observations["observation"][-1]
    lengths = {0: 12, 1: 3, 2: 9}
    ended = [int(row[2]) == lengths[int(row[1]) % 3] for row in last]
    assert not any(ended), "no dream begins where an episode has ended"
    assert len({tuple(row.tolist()) for row in last}) > 30
    first = recording.starts(random, 20, 5, at_reset=True)
    assert first.rewards.shape == (1, 20) and (first.observations["observation"][-1][:, 2] == 0).all()


def test_posterior_of_the_context_then_prior(scripted_model: DreamerV2) -> None:
    """What comes after the context has no influence on the predictions, and reconstructions are the posterior's."""
    recording = open_recording(scripted_model)
    loop = open_loop(scripted_model, recording, 2, 4, 5, seed=1)
    assert loop.truth["observation"].shape == loop.model["observation"].shape == (9, 2, 3)

    class Blind(Recording):
        def sequences(self, *args: Any) -> Any:
            found = super().sequences(*args)
            frames = found.observations["observation"].clone()
            frames[4:] = -1.0
            return found._replace(observations={"observation": frames})

    blind = open_loop(scripted_model, Blind(recording.buffer), 2, 4, 5, seed=1)
    assert np.array_equal(blind.model["observation"], loop.model["observation"])
    assert not np.array_equal(blind.truth["observation"], loop.truth["observation"])


def test_errors_by_hand() -> None:
    truth: Any = {"image": np.zeros((4, 1, 1, 1, 1), np.uint8), "class": np.array([[0], [1], [2], [2]])}
    model: Any = {"image": np.full((4, 1, 1, 1, 1), 51, np.uint8), "class": np.array([[0], [1], [0], [2]])}
    truth["image"][3] = 255
    nothing, kinds = np.zeros((4, 1)), {"image": "image", "class": "classes"}
    loop = OpenLoop(truth, model, nothing, nothing, nothing, nothing, 2, True, kinds)
    assert loop.error("image").model.tolist() == pytest.approx([0.04, 0.64])
    assert loop.error("image").copy_last.tolist() == pytest.approx([0.0, 1.0])
    assert loop.error("class").model.tolist() == [1.0, 0.0] and loop.error("class").copy_last.tolist() == [1.0, 1.0]


def test_recorded_play_is_what_happened(vector_model: DreamerV2) -> None:
    env = RandomEnv(length=4)
    before = th.get_rng_state(), np.random.get_state()[1]  # type: ignore[index]
    buffer = record(vector_model, env, 20, seed=3)
    assert th.equal(before[0], th.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[index]
    th.manual_seed(17)
    assert np.array_equal(record(vector_model, RandomEnv(length=4), 20, seed=3).actions, buffer.actions)
    stored = buffer.observations[: buffer.size(), 0]  # type: ignore[index]
    assert np.array_equal(stored, np.array(env.observations)[: len(stored)])
    assert buffer.num_records == 25, "20 steps in 5 episodes, one more record each"
    assert vector_model.replay_buffer is not buffer
    dream = DreamVecEnv(vector_model, 2, RandomEnv(length=4), start_steps=12)
    assert dream.recording.buffer.num_records == 15


def test_starts_from_a_buffer_on_the_disk(tmp_path: Path) -> None:
    stored = dict(storage_path=str(tmp_path / "replay"))
    model = random_model(VECTOR, seed=0, replay_buffer_kwargs=stored, **LEARN).learn(40)
    in_memory = random_model(VECTOR, seed=0, **LEARN).learn(40)
    assert equal(DreamVecEnv(model, 4, seed=0).reset(), DreamVecEnv(in_memory, 4, seed=0).reset())


# ----------------------------------------------------------------------------------------------------- inspection, tools


def test_inspection_counts_what_is_there(vector_model: DreamerV2) -> None:
    found = inspect(vector_model, open_recording(vector_model), context=3, horizon=4, n_sequences=4)
    policy = vector_model.policy
    everything = sum(p.numel() for p in policy.world_model.parameters())
    everything += sum(p.numel() for part in (policy.behavior.actor, policy.behavior.critic) for p in part.parameters())
    assert sum(found.parameters.values()) == everything
    assert found.kl.shape == (4,) and (found.kl >= -1e-6).all()
    assert found.usage is not None and np.allclose(found.usage.sum(-1), 1.0)
    assert found.perplexity is not None and ((found.perplexity >= 1 - 1e-6) & (found.perplexity <= 4 + 1e-6)).all()


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
def test_kl_of_variables_adds_up(kind: str) -> None:
    from sb3_dreamer.world_model.latents import make_latent

    latent = make_latent(kind, 5, 3 if kind == "categorical" else None, None, None)
    left, right = th.randn(2, 7, latent.parameter_size, generator=th.Generator().manual_seed(0))
    terms = latent.kl_per_variable(left, right)
    assert terms.shape == (7, 5) and th.allclose(terms.sum(-1), latent.kl(left, right), atol=1e-5)


def test_calibration_by_hand() -> None:
    found = calibrate(np.array([0.0, 0.1, 1.0]), np.array([0.0, 0.2, 0.5]), groups=2)
    assert found.predicted.tolist() == pytest.approx([0.05, 1.0]) and found.actual.tolist() == pytest.approx([0.1, 0.5])
    assert found.counts.tolist() == [2, 1] and found.error == pytest.approx(np.sqrt((0.1**2 + 0.5**2) / 3))


@pytest.fixture(scope="module")
def saved(image_model: DreamerV2, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    image_model.save(folder / "model.zip")
    image_model.save_replay_buffer(folder / "buffer.pkl")
    return folder / "model.zip"


def test_video_and_inspect_from_the_command_line(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [str(saved), "--replay-buffer", str(saved.with_name("buffer.pkl")), "--context", "3", "--horizon", "4"]
    main(["video", *options, "--sequences", "2"])
    with Image.open(saved.with_name("dream.gif")) as film:
        assert film.n_frames == 7 and film.format == "GIF"  # type: ignore[attr-defined]
    main(["inspect", *options, "--sequences", "4", "-o", str(saved.with_name("page.png"))])
    with Image.open(saved.with_name("page.png")) as page:
        assert page.width > 1000
    printed = capsys.readouterr().out
    assert "3 frames seen, 4 dreamt" in printed and "parameters: encoder" in printed


def test_play_through_pygame(saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    events = [[], [pygame.event.Event(pygame.KEYDOWN, key=pygame.K_RIGHT)], [pygame.event.Event(pygame.QUIT)]]
    monkeypatch.setattr(pygame.event, "get", lambda: events.pop(0))
    main(["play", str(saved), "--replay-buffer", str(saved.with_name("buffer.pkl")), "--fps", "1000"])
    assert not events and "right  2" in capsys.readouterr().out


def test_window_of_the_human_mode(vector_model: DreamerV2, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    env = DreamEnv(vector_model, render_mode="human")
    with pytest.raises(RuntimeError, match=r"no display .* render_mode='rgb_array'"):
        env.reset(seed=0)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env.reset(seed=0)
    env.step(1)
    env.close()
    env.close()
    monkeypatch.delenv("SDL_VIDEODRIVER")
    several = DreamVecEnv(vector_model, 3, render_mode="human", seed=0)
    several.reset()
    with pytest.raises(RuntimeError, match=r"no display .* render_mode='rgb_array'"):
        several.render()
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert several.render() is None and several.env_method("render") == [None] * 3
    several.close()
    pictures = several.get_images()
    assert np.array_equal(several.render("rgb_array"), tile_images(pictures))  # type: ignore[arg-type]


def test_keys_choose_actions() -> None:
    pygame = pytest.importorskip("pygame")
    table = key_table(DISCRETE)
    assert table[(pygame.K_LEFT,)] == ("left", 0) and table[(pygame.K_RIGHT,)] == ("right", 2)
    assert key_table(BOX)[(pygame.K_UP,)][1].tolist() == [0.0, 1.0]
    assert key_table(spaces.MultiBinary(3))[(ord("1"), ord("3"))][1].tolist() == [1, 0, 1]


# ------------------------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_named(vector_model: DreamerV2, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="horizon must be a number of at least 1"):
        DreamVecEnv(vector_model, horizon=0)
    with pytest.raises(ValueError, match=r"termination must be one of .*'maybe'"):
        DreamVecEnv(vector_model, termination="maybe")
    with pytest.raises(ValueError, match="render_mode must be one of"):
        DreamVecEnv(vector_model, render_mode="ascii")
    with pytest.raises(FileNotFoundError, match="There is no replay buffer"):
        DreamVecEnv(vector_model, starts=tmp_path / "none.pkl")
    with pytest.raises(ValueError, match="context=5000 steps before it: lower context"):
        DreamVecEnv(vector_model, context=5000).reset()
    with pytest.raises(ValueError, match=r"No recorded episode has 105 steps .* the longest has 11"):
        open_loop(vector_model, open_recording(vector_model), horizon=100)
    with pytest.raises(ValueError, match=r"observation space .* but the model was trained with"):
        DreamVecEnv(vector_model, starts=RandomEnv(spaces.Box(-1, 1, (5,), np.float32)))
    env = DreamVecEnv(vector_model, 2, seed=0)
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step(np.zeros(2, dtype=np.int64))
    env.reset()
    with pytest.raises(ValueError, match=r"actions of shape \(2,\)"):
        env.step(np.zeros(3, dtype=np.int64))
    with pytest.raises(ValueError, match=r"takes actions of Discrete\(3\)"):
        env.step(np.array([0, 3]))
    with pytest.raises(ValueError, match="cannot be set for some"):
        env.set_attr("horizon", 3, indices=[0])


def test_what_a_model_lacks_is_named(tmp_path: Path) -> None:
    fresh = random_model()
    with pytest.raises(ValueError, match=r"no experience: .* or an environment to play in"):
        DreamVecEnv(fresh)
    blind = random_model(OBSERVATIONS["dict"], policy_kwargs=dict(decoder_keys=["vector", "image"]), **LEARN).learn(20)
    with pytest.raises(ValueError, match=r"does not reconstruct .*'bytes'.* train with policy_kwargs"):
        DreamVecEnv(blind)
    with pytest.raises(ValueError, match="Dreams need a world model, but PPO has none"):
        DreamVecEnv(PPO("MlpPolicy", "CartPole-v1"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"horizon must be a whole number, but is 2\.9"):
        DreamVecEnv(blind, keys=["vector"], horizon=2.9)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'horizons'"):
        DreamEnv(blind, horizons=3)
    with pytest.raises(TypeError, match="n_envs"):
        DreamEnv(blind, n_envs=2)
    env = DreamVecEnv(blind, 2, keys=["vector"])
    assert list(env.reset()) == ["vector"] and list(env.observation_space) == ["vector"]  # type: ignore[call-overload, arg-type]
    normalized = small_model(VecNormalize(random_envs()), seed=0, **LEARN).learn(20)
    normalized.save(tmp_path / "model")
    normalized.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = DreamerV2.load(tmp_path / "model")
    with pytest.raises(ValueError, match=r"trained behind VecNormalize.* vec_normalize="):
        DreamVecEnv(loaded, starts=tmp_path / "buffer.pkl")
    statistics = normalized.get_vec_normalize_env()
    assert DreamVecEnv(loaded, starts=tmp_path / "buffer.pkl", vec_normalize=statistics).reset().shape == (1, 3)  # type: ignore[union-attr]


def test_statistics_beside_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a checkpoint has them, or named; without a run of RL Zoo."""
    model = small_model(VecNormalize(random_envs()), seed=0, **LEARN)
    model.learn(40, ResumableCheckpointCallback(20, tmp_path))
    folder = checkpoints(tmp_path)[-1]
    short = ["--context", "2", "--horizon", "2", "--sequences", "1"]
    main(["video", str(folder / "model"), *short])
    assert (folder / "dream.gif").exists()
    (folder / "vecnormalize.pkl").rename(tmp_path / "statistics.pkl")
    with pytest.raises(SystemExit, match=r"trained behind VecNormalize, but there is no .*--vec-normalize FILE names"):
        main(["video", str(folder / "model.zip"), *short])
    main(["video", str(folder / "model.zip"), "--vec-normalize", str(tmp_path / "statistics.pkl"), *short])
    with pytest.raises(SystemExit, match="holds a SequenceReplayBuffer, not a VecNormalize"):
        main(["video", str(folder / "model.zip"), "--vec-normalize", str(folder / "replay_buffer.pkl"), *short])


@pytest.mark.parametrize("env_id, shape", [("ALE/Pong-v5", (64, 64, 1)), ("CrafterReward-v1", (64, 64, 3))])
def test_families_need_no_import(env_id: str, shape: tuple[int, ...]) -> None:
    if not env_id.startswith("ALE"):
        pytest.importorskip("crafter")
    code = f"from sb3_dreamer.dream.zoo_run import make_plain_env as make; print(make({env_id!r}).observation_space.shape)"
    assert run_python("-W", "ignore", "-c", code, environ={"SB3_DREAMER_NO_ZOO": "1"}).splitlines()[-1] == str(shape)


def test_commands_end_with_one_line(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    cases = {
        ("video", str(tmp_path / "none.zip")): "There is no model",
        ("video", str(saved)): "--env ID or --replay-buffer FILE",
        ("video", str(saved), "--env", "CartPole-v1", "--replay-buffer", "x"): "not both",
        ("video", str(saved), "--env", "NoSuchEnv-v0"): "NoSuchEnv",
        ("card", str(saved)): "needs a run of RL Zoo",
        ("card", str(saved), "--episodes", "0"): "2",
        ("video", str(saved), "--fps", "0"): "2",
    }
    for arguments, text in cases.items():
        with pytest.raises(SystemExit, match=text):
            main([*arguments])
    with pytest.raises(SystemExit, match="no display"):
        main(["play", str(tmp_path / "none.zip")])


# ------------------------------------------------------------------------------------------------------------ runs of RL Zoo


def zoo_run(folder: Path, env_id: str, model: DreamerV2, **arguments: Any) -> Path:
    """A folder as RL Zoo leaves it."""
    saved = folder / env_id.replace("/", "-")
    saved.mkdir(parents=True)
    args = {"env": env_id, "seed": 0, "env_kwargs": None, "n_timesteps": -1, "gym_packages": []} | arguments
    (saved / "args.yml").write_text(yaml.safe_dump(args))
    (saved / "config.yml").write_text(yaml.safe_dump({"policy": "MlpPolicy", "n_timesteps": 60.0, "train_freq": 8}))
    model.save(folder / f"{saved.name}.zip")
    return folder


@pytest.fixture(scope="module")
def cartpole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small_model("CartPole-v1", seed=0, **LEARN).learn(40)
    return zoo_run(tmp_path_factory.mktemp("runs") / "CartPole-v1_1", "CartPole-v1", model)


def test_a_run_of_the_zoo_needs_no_arguments(cartpole_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["video", str(cartpole_run / "CartPole-v1.zip"), "--horizon", "2", "--sequences", "1", "--steps", "100"])
    assert (cartpole_run / "dream.gif").exists() and "2 dreamt" in capsys.readouterr().out


def test_model_card(cartpole_run: Path) -> None:
    main(["card", str(cartpole_run), "--episodes", "2"])
    card = ModelCard.load(cartpole_run / "README.md")
    (result,) = card.data.eval_results  # type: ignore[attr-defined]
    assert (result.dataset_type, result.metric_type) == ("CartPole-v1", "mean_reward") and "+/-" in result.metric_value
    assert card.data.library_name == "stable-baselines3"  # type: ignore[attr-defined]
    assert "| environment steps of the training | 40 |" in card.text and "train_freq: 8" in card.text
    assert "python -m rl_zoo3.train --algo dreamer --env CartPole-v1 --seed 0" in card.text


def test_lost_statistics_are_named(tmp_path: Path, cartpole_run: Path) -> None:
    folder = tmp_path / "CartPole-v1_2"
    shutil.copytree(cartpole_run, folder)
    (folder / "CartPole-v1" / "config.yml").write_text("normalize: true\n")
    with pytest.raises(SystemExit, match=r"vecnormalize\.pkl is missing.* copy it there"):
        main(["inspect", str(folder)])


def test_report_films_images(tmp_path: Path, cartpole_run: Path) -> None:
    from sb3_dreamer.zoo.report import film_dream

    model = small_model(PixelCatch(rows=14), seed=0, policy_kwargs=dict(image_size=(16, 16)), **LEARN).learn(40)
    gym.register("tests/TallCatch-v0", entry_point="benchmarks.tasks.images:PixelCatch", kwargs={"rows": 14})
    folder = zoo_run(tmp_path / "TallCatch-v0_1", "tests/TallCatch-v0", model)
    run, blind = find_run(folder), find_run(cartpole_run)
    assert run is not None and blind is not None
    said = film_dream(model, run, 0)
    assert said is not None and "5 frames seen, 9 dreamt" in said and (folder / "dream.gif").exists()
    assert film_dream(DreamerV2.load(cartpole_run / "CartPole-v1.zip"), blind, 0) is None, "no images, no film"


def test_code_of_the_page_runs(cartpole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "dream.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for long, short in {
        "100_000": "64",
        "n_steps=32, batch_size=256": "n_steps=8, batch_size=32, n_epochs=1",
    }.items():
        assert long in code
        code = code.replace(long, short)
    monkeypatch.chdir(tmp_path)
    model = small_model("CartPole-v1", seed=0, **LEARN).learn(40)
    model.save("model.zip")
    model.save_replay_buffer("replay_buffer.pkl")
    names: dict[str, Any] = {}
    exec(compile(code, "dream.md", "exec"), names)
    assert names["agent"].num_timesteps >= 64 and names["dream"].observation_space == model.observation_space
