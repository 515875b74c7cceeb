"""Adapters of other packages' environments, the wrappers that YAML sections use, and the ids that are registered."""

import sys
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.monitor import Monitor

from sb3_dreamer.envs import (
    BinaryPlanes,
    CrafterEnv,
    DMCPixels,
    FirstEntries,
    ProcgenEnv,
    ScaleReward,
    make_dmc_env,
    register_envs,
)
from sb3_dreamer.envs.optional import optional_import
from tests.small import IMAGE, VECTOR, RandomEnv


class Planes(RandomEnv):
    """Shows one given array for ever."""

    def __init__(self, array: np.ndarray, high: int = 1) -> None:
        super().__init__(spaces.Box(0, high, array.shape, array.dtype.type))
        self.array = array

    def _observe(self) -> np.ndarray:
        return self.array


# --- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64])
def test_binary_planes(dtype: Any) -> None:
    array = np.zeros((2, 3, 2), dtype)
    array[1, 0, 1] = array[0, 2, 0] = 1
    env = BinaryPlanes(Planes(array))
    assert env.observation_space == spaces.MultiBinary(12)
    observation, _ = env.reset()
    assert env.observation_space.contains(observation) and observation.dtype == np.int8
    assert np.flatnonzero(observation).tolist() == [4, 7]  # (0, 2, 0) and (1, 0, 1) in row-major order


def test_binary_planes_refuse_other_values() -> None:
    with pytest.raises(ValueError, match=r"zeros and ones, but was given 7"):
        BinaryPlanes(Planes(np.full((2, 2, 1), 7, np.uint8), high=255)).reset()
    with pytest.raises(ValueError, match=r"zeros and ones, but was given -1"):
        BinaryPlanes(Planes(np.full((2, 2, 1), -1, np.int8))).reset()
    with pytest.raises(ValueError, match=r"bools or integers.*given Box\(-1.0, 1.0, \(3,\), float32\)"):
        BinaryPlanes(RandomEnv(VECTOR))
    with pytest.raises(ValueError, match=r"given Discrete\(3\)"):
        BinaryPlanes(RandomEnv(spaces.Discrete(3)))


def test_first_entries() -> None:
    inner = RandomEnv(spaces.Box(np.array([-1.0, -2.0, -3.0]), np.array([1.0, 2.0, 3.0]), dtype=np.float64))
    env = FirstEntries(inner, count=2)
    assert env.observation_space == spaces.Box(np.array([-1.0, -2.0]), np.array([1.0, 2.0]), dtype=np.float64)
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == inner.observations[-1][:2].tolist()
    for count, space in ((4, VECTOR), (0, VECTOR), (2, IMAGE), (1, spaces.Discrete(3))):
        with pytest.raises(ValueError, match=rf"FirstEntries cannot keep {count} entries of the observation space \w+\("):
            FirstEntries(RandomEnv(space), count)


def test_scale_reward_and_monitor_inside() -> None:
    inner = RandomEnv(length=5)
    env = ScaleReward(Monitor(inner), scale=0.25)
    env.reset(seed=0)
    rewards = []
    for _ in range(5):
        _, reward, _, _, info = env.step(0)
        rewards.append(reward)
    assert rewards == pytest.approx([0.25 * reward for reward in inner.rewards])
    assert info["episode"]["r"] == pytest.approx(sum(inner.rewards), abs=1e-5), "the true score"


@pytest.mark.parametrize("scale", [0, -1.0, float("inf"), float("nan"), "0.1", True])
def test_scale_reward_refuses(scale: Any) -> None:
    with pytest.raises(ValueError, match=r"scale of ScaleReward must be a positive number, but is"):
        ScaleReward(RandomEnv(), scale)


# --- packages that may be missing -------------------------------------------------------------------------------------


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("crafter", "procgen", "minatar", "minatar.gym", "dm_control", "dm_control.suite"):
        monkeypatch.setitem(sys.modules, module, None)
    for make, message in (
        (lambda: gym.make("CrafterReward-v1"), r'Crafter needs the package crafter.*pip install "sb3-dreamer\[envs\]"'),
        (lambda: gym.make("procgen-maze-v0"), r'Procgen needs the package procgen.*pip install "sb3-dreamer\[procgen\]"'),
        (lambda: gym.make("MinAtar/Breakout-v1"), r"MinAtar needs the package minatar"),
        (lambda: gym.make("dmc_vision/walker-walk-v0"), r"DeepMind Control Suite needs the package dm_control"),
    ):
        with pytest.raises(ImportError, match=message):
            make()


def test_something_missing_inside_a_package_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "half_installed.py").write_text("import needed_by_it\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'needed_by_it'"):
        optional_import("half_installed", "A game")


# --- ids --------------------------------------------------------------------------------------------------------------


def test_ids_are_registered_once_and_replace_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = dict(gym.registry)
    assert {"MinAtar/SpaceInvaders-v0", "MinAtar/SpaceInvaders-v1", "CrafterNoReward-v1", "procgen-starpilot-v0"} <= set(
        registry
    )
    assert sum(env_id.startswith(("dmc_proprio/", "dmc_vision/")) for env_id in registry) == 40
    monkeypatch.setattr(gym.envs.registration, "registry", registry)
    monkeypatch.setattr(gym, "registry", registry)
    others = gym.spec("CartPole-v1")
    registry["MinAtar/Breakout-v1"] = others
    del registry["CrafterReward-v1"]
    register_envs()
    assert registry["MinAtar/Breakout-v1"] is others, "somebody else's stays"
    assert registry["CrafterReward-v1"].kwargs == {"reward": True}


def test_minatar_is_that_of_its_own_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("minatar.gym")
    registered: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(module, "register", lambda id, entry_point, kwargs: registered.update({id: kwargs}))
    module.register_envs()
    assert len(registered) == 10
    for env_id, kwargs in registered.items():
        ours, theirs = gym.make(env_id).unwrapped, module.BaseEnv(**kwargs)
        assert type(ours) is type(theirs) and ours.action_set == theirs.action_set, env_id  # type: ignore[attr-defined]
        assert ours.game.env_name == theirs.game.env_name  # type: ignore[attr-defined]


def test_minatar_draws_for_videos() -> None:
    pytest.importorskip("minatar")
    env = gym.make("MinAtar/Breakout-v1", render_mode="rgb_array")
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.shape == (160, 160, 3) and picture.dtype == np.uint8 and picture.max() > 100
    assert (picture[::16, ::16].any(axis=-1) == env.unwrapped.game.state().any(axis=-1)).all()  # type: ignore[attr-defined]
    env = gym.make("MinAtar/Breakout-v1", render_mode="array")
    state, _ = env.reset(seed=0)
    assert np.array_equal(env.render(), state), "MinAtar's own mode"  # type: ignore[arg-type]


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_crafter_passes_gymnasiums_own_checks() -> None:
    pytest.importorskip("crafter")
    check_env(CrafterEnv(render_mode="rgb_array"))


def test_crafter_worlds_and_time() -> None:
    pytest.importorskip("crafter")
    env = CrafterEnv(length=20)
    first, _ = env.reset(seed=3)
    assert first.shape == (64, 64, 3) and env.render() is None
    second, _ = env.reset()
    assert np.array_equal(first, CrafterEnv().reset(seed=3)[0]) and not np.array_equal(first, second)
    ends = [env.step(0)[2:4] for _ in range(20)]
    assert ends == [(False, False)] * 19 + [(False, True)], "time is over, nobody is dead"


def test_crafter_tells_death_from_time_and_reward_from_none() -> None:
    crafter = pytest.importorskip("crafter")
    noop = crafter.constants.actions.index("noop")
    for reward_is_given in (True, False):
        env = CrafterEnv(reward=reward_is_given)
        env.reset(seed=0)
        env.step(noop)
        env._game._player.health = 0
        _, reward, terminated, truncated, info = env.step(noop)
        assert (terminated, truncated) == (True, False) and len(info["achievements"]) == 22
        assert reward == pytest.approx(-0.9 if reward_is_given else 0.0)


def test_dmc_sensors_and_pixels() -> None:
    pytest.importorskip("dm_control")
    env = make_dmc_env("cartpole", "balance")
    observation, _ = env.reset(seed=0)
    assert isinstance(env.observation_space, spaces.Dict) and observation["position"].shape == (3,)
    again, _ = make_dmc_env("cartpole", "balance").reset(seed=0)
    assert all(np.array_equal(observation[key], again[key]) for key in observation)
    for _ in range(999):
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        assert not terminated and not truncated
    *_, terminated, truncated, _ = env.step(env.action_space.sample())
    assert (terminated, truncated) == (False, True), "after 1,000 steps, by time"
    with pytest.raises(TypeError, match=r"DMCPixels renders tasks of dm_control.*but was given <RandomEnv"):
        DMCPixels(RandomEnv())


def test_dmc_pixels_ask_for_size_and_camera() -> None:
    class Physics:
        def render(self, *args: Any, **kwargs: Any) -> np.ndarray:
            self.asked = (args, kwargs)
            return np.full((8, 8, 3), 9, np.uint8)

    inner = RandomEnv()
    inner.physics = Physics()  # type: ignore[attr-defined]
    env = DMCPixels(inner, image_size=8, camera_id=2)
    observation, _ = env.reset()
    assert env.observation_space.contains(observation) and observation.max() == 9
    assert inner.physics.asked == ((8, 8), {"camera_id": 2})  # type: ignore[attr-defined]


class FakeProcgen:
    """Levels of three steps whose pictures are (level, step) and whose reward is the step; the next begins by itself."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.level, self.now, self.reward, self.closed = arguments, 10, 0, 0, False

    def act(self, actions: np.ndarray) -> None:
        self.now += 1
        self.reward = self.now
        if self.now == 3 or actions[0] == -1:
            self.level, self.now = self.level + 1, 0

    def observe(self) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        picture = np.zeros((1, 64, 64, 3), np.uint8)
        picture[0, 0, 0, :2] = self.level, self.now
        return np.array([self.reward], np.float32), {"rgb": picture}, np.array([self.now == 0])

    def get_info(self) -> list[dict[str, Any]]:
        return [{"prev_level_complete": 1, "rgb": np.zeros((512, 512, 3), np.uint8)}]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def procgen(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("procgen")
    module.ProcgenGym3Env = FakeProcgen
    monkeypatch.setitem(sys.modules, "procgen", module)


def test_procgen_ends_a_level_with_its_own_picture(procgen: None) -> None:
    env = ProcgenEnv("maze", distribution_mode="easy")

    def shown(observation: np.ndarray) -> tuple[int, ...]:
        return tuple(int(value) for value in observation[0, 0, :2])

    assert shown(env.reset(seed=0)[0]) == (10, 0)
    steps = [env.step(4) for _ in range(3)]
    assert [shown(step[0]) for step in steps] == [(10, 1), (10, 2), (10, 2)], "not the first of level 11"
    assert [step[1:4] for step in steps] == [(1.0, False, False), (2.0, False, False), (3.0, True, False)]
    assert shown(env.reset()[0]) == (11, 0), "and level 11 is not skipped"
    env.step(4)
    assert shown(env.reset()[0]) == (12, 0), "a level that is left is not continued"
    game = env._game
    assert game.arguments["env_name"] == "maze" and game.arguments["distribution_mode"] == "easy"
    assert shown(env.reset(seed=0)[0]) == (10, 0) and game.closed and env._game is not game
    assert game.arguments == env._game.arguments, "the same seed again"
    env.reset(seed=1)
    assert game.arguments["rand_seed"] != env._game.arguments["rand_seed"]
    assert env.render() is None


def test_procgen_ids(procgen: None) -> None:
    env = gym.make("procgen-coinrun-v0", num_levels=5, render_mode="rgb_array")
    env.reset(seed=0)
    picture: Any = env.render()
    assert picture.shape == (512, 512, 3) and env.observation_space != IMAGE
    assert env.unwrapped._game.arguments["num_levels"] == 5  # type: ignore[attr-defined]
