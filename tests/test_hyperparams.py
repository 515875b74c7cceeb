"""Every section of ``hyperparams/dreamer.yml`` fits its environment, and starts in rl_zoo3."""

import argparse
import configparser
import ctypes.util
import importlib.util
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager

import sb3_dreamer.envs  # noqa: F401  registers ids
from sb3_dreamer import DreamerV2, preset, zoo
from sb3_dreamer.presets import ZOO_ONLY_KEYS, default_config
from tests.installed import ROOT
from tests.small import IMAGE, VECTOR, RandomEnv

SECTIONS: dict[str, dict[str, Any]] = yaml.safe_load(default_config().read_text())
ENV_IDS = [name for name in SECTIONS if re.search(r"-v\d+$", name)]
#: Package of the environments whose ids match, and the sections of each that run in every test run
FAMILIES: dict[str, tuple[str, list[str]]] = {
    r"(CartPole|Acrobot|MountainCar|Pendulum).*": (
        "gymnasium",
        ["CartPole-v1", "Pendulum-v1", "MountainCar-v0"],
    ),
    r"(LunarLander|BipedalWalker|CarRacing).*": ("Box2D", ["LunarLander-v3", "CarRacing-v3"]),
    r"[A-Z][A-Za-z2]+-v5": ("mujoco", ["HalfCheetah-v5", "InvertedPendulum-v5"]),
    r"MinAtar/.*-v1": ("minatar", ["MinAtar/Seaquest-v1"]),
    r"MiniGrid-.*": ("minigrid", ["MiniGrid-DoorKey-5x5-v0"]),
    r"Crafter.*": ("crafter", ["CrafterReward-v1"]),
    r"dmc_proprio/.*": ("dm_control", ["dmc_proprio/walker-walk-v0"]),
    r"dmc_vision/.*": ("dm_control", ["dmc_vision/walker-walk-v0"]),
    r"procgen-.*": ("procgen", ["procgen-coinrun-v0"]),
}
#: One update of these costs more than seconds
LARGE = r"CarRacing.*|Crafter.*|dmc_vision/.*|procgen-.*"
SAME_DRAWING = r"dmc_vision/(?!quadruped-walk|walker-walk).*"


def package(env_id: str) -> str:
    return next(name for pattern, (name, _) in FAMILIES.items() if re.fullmatch(pattern, env_id))


def need(env_id: str) -> None:
    """Skip if, and only if, what the environment is made of is not installed."""
    name = package(env_id)
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the package {name} is not installed")
    if env_id.startswith("dmc_vision") and not any(ctypes.util.find_library(library) for library in ("EGL", "OSMesa")):
        pytest.skip("no library that draws without a screen (libegl1 or libosmesa6)")


def manager(env_id: str, folder: Path, **hyperparams: Any) -> ExperimentManager:
    zoo.register()
    return ExperimentManager(
        argparse.Namespace(),
        "dreamer",
        env_id,
        str(folder),
        n_timesteps=90,
        eval_freq=-1,
        hyperparams=hyperparams,
        seed=0,
        log_interval=-2,
        verbose=0,
        device="cpu",
    )


# --- what every section says ------------------------------------------------------------------------------------------


def test_every_family_of_environments_has_sections() -> None:
    members = {pattern: [env_id for env_id in ENV_IDS if re.fullmatch(pattern, env_id)] for pattern in FAMILIES}
    assert sum(len(ids) for ids in members.values()) == len(ENV_IDS), "each section belongs to one family"
    assert {pattern: len(ids) for pattern, ids in members.items() if "dmc" in pattern} == {
        r"dmc_proprio/.*": 20,  # the tasks of Dreamer
        r"dmc_vision/.*": 20,
    }
    for pattern, (_, chosen) in FAMILIES.items():
        assert chosen and set(chosen) <= set(members[pattern])
    assert set(SECTIONS) - set(ENV_IDS) >= {"atari", "default"}


@pytest.mark.parametrize("name", SECTIONS)
def test_keys_are_arguments_or_belong_to_the_zoo(name: str) -> None:
    section = SECTIONS[name]
    arguments = set(inspect.signature(DreamerV2).parameters)
    assert set(section) <= (arguments | set(ZOO_ONLY_KEYS)) - {"env", "seed", "device", "verbose", "tensorboard_log"}
    assert section["n_timesteps"] >= 2 * section["learning_starts"], "most of a run should be training"
    assert section["policy"] in DreamerV2.policy_aliases
    numbers = {key: value for key, value in section.items() if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value)}
    assert not numbers, f"YAML reads these as text, write !!float: {numbers}"
    assert set(preset(name)) == set(section) - set(ZOO_ONLY_KEYS)


def distinct_presets() -> list[str]:
    """One section of each group that says the same to the algorithm."""
    seen: dict[str, str] = {}
    for name, section in SECTIONS.items():
        says = str(sorted((key, value) for key, value in section.items() if key not in ZOO_ONLY_KEYS or key == "policy"))
        seen.setdefault(says, name)
    return list(seen.values())


@pytest.mark.parametrize("name", distinct_presets())
def test_preset_builds(name: str) -> None:
    policy = SECTIONS[name]["policy"]
    space = IMAGE if policy == "CnnPolicy" else VECTOR
    arguments = {**preset(name), "buffer_size": 100, "device": "cpu"}
    model = DreamerV2(policy, RandomEnv(space), **arguments)
    sizes = arguments["policy_kwargs"]
    assert model.policy.world_model.rssm.cell.size == sizes["deterministic_size"]
    assert model.batch_length == SECTIONS[name]["batch_length"]


# --- with the environments --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MuJoCo writes its warnings into the current folder."""
    monkeypatch.chdir(tmp_path)


def sections(always: Callable[[str], bool]) -> list[Any]:
    """All sections with an environment; those that do not run always are marked as slow."""
    return [pytest.param(env_id, marks=() if always(env_id) else pytest.mark.slow) for env_id in ENV_IDS]


@pytest.mark.parametrize("env_id", sections(lambda env_id: not re.fullmatch(SAME_DRAWING, env_id)))
def test_wrappers_fit_the_environment(env_id: str, tmp_path: Path) -> None:
    need(env_id)
    experiment = manager(env_id, tmp_path)
    hyperparams, experiment.env_wrapper, *_ = experiment._preprocess_hyperparams(experiment.read_hyperparameters()[0])
    env = experiment.create_envs(1, no_log=True)
    space = env.observation_space
    assert not isinstance(space, gym.spaces.Dict)
    image = isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
    assert hyperparams["policy"] == ("CnnPolicy" if image else "MlpPolicy")
    first: Any = env.reset()
    second: Any
    second, *_ = env.step(np.array([env.action_space.sample()]))
    for observation in (first[0], second[0]):
        assert space.contains(observation), f"{observation} is not in {space}"
    env.close()


CHOSEN = {env_id for _, ids in FAMILIES.values() for env_id in ids}


@pytest.mark.parametrize("env_id", sections(lambda env_id: env_id in CHOSEN))
def test_section_starts(env_id: str, tmp_path: Path) -> None:
    """90 steps of rl_zoo3's own training with the section's networks; where an update takes seconds, on a smaller batch."""
    need(env_id)
    small_batch = dict(batch_size=2, batch_length=8) if re.fullmatch(LARGE, env_id) else {}
    experiment = manager(env_id, tmp_path, learning_starts=50, train_freq=45, buffer_size=1000, **small_batch)
    made = experiment.setup_experiment()
    assert made is not None
    model = made[0]
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    experiment.learn(model)
    assert model.num_timesteps == 90 and model._n_updates == 1
    after = model.policy.state_dict()
    assert all(bool(th.isfinite(value).all()) for value in after.values())
    for part in ("world_model.", "behavior.actor", "behavior.critic."):
        assert any(not th.equal(before[name], after[name]) for name in after if name.startswith(part)), part
    experiment.save_trained_model(model)
    assert (Path(experiment.save_path) / f"{experiment.env_name}.zip").is_file()


def test_the_zoo_knows_the_ids_by_itself() -> None:
    spec = gym.registry.pop("MinAtar/Breakout-v1")
    try:
        zoo.register()
        assert gym.registry["MinAtar/Breakout-v1"].entry_point == spec.entry_point
    finally:
        gym.registry["MinAtar/Breakout-v1"] = spec


# --- what is installed ------------------------------------------------------------------------------------------------


def test_the_tests_extra_installs_the_environments() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    assert "sb3-dreamer[envs]" in extras["tests"].splitlines()
    names = {re.split(r"[<>=;\[ ]", line)[0] for line in extras["envs"].splitlines() if line and not line.startswith("#")}
    assert names >= {"minatar", "minigrid", "mujoco", "box2d", "crafter", "dm-control", "shimmy"}


@pytest.mark.skipif(not os.environ.get("CI"), reason="elsewhere one may do without")
def test_continuous_integration_has_them() -> None:
    missing = [name for name in ("minatar", "minigrid", "mujoco") if importlib.util.find_spec(name) is None]
    assert not missing
