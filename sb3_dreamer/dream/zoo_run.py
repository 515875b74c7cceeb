"""Files that RL Zoo leaves beside a model: its environment, wrappers and statistics."""

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_dreamer.dreamer_v2.dreamer_v2 import DreamerV2
from sb3_dreamer.dreamer_v3.dreamer_v3 import DreamerV3
from sb3_dreamer.saving.saved_files import check_model_file

#: File of the replay buffer beside the model, with ``--save-replay-buffer``
BUFFER = "replay_buffer.pkl"


class ZooRun(NamedTuple):
    """A folder such as ``logs/dreamer/CartPole-v1_1``."""

    folder: Path
    env_id: str
    hyperparams: dict[str, Any]  # as saved, for the environments
    arguments: dict[str, Any]  # of the command line
    stats_path: str | None  # folder of vecnormalize.pkl, if the environment is normalized

    def make_env(self, n_envs: int = 1, seed: int = 0) -> VecEnv:
        """
        Make the environment of the run, with its wrappers, arguments and statistics.

        :param n_envs: number of copies
        :param seed: of the first
        :return: the environment
        """
        from rl_zoo3.utils import create_test_env

        _register_all()
        for package in self.arguments.get("gym_packages") or []:
            importlib.import_module(package)
        hyperparams = dict(self.hyperparams)
        env_kwargs = hyperparams.pop("env_kwargs", {})
        return create_test_env(
            self.env_id,
            n_envs=n_envs,
            stats_path=self.stats_path,
            seed=seed,
            should_render=False,
            hyperparams=hyperparams,
            env_kwargs=self.arguments.get("env_kwargs") or env_kwargs,
            vec_env_cls=DummyVecEnv,
        )

    @property
    def deterministic(self) -> bool:
        """Whether agents are evaluated with their most probable actions; as in RL Zoo, in Atari and MiniGrid they are not."""
        from rl_zoo3.exp_manager import ExperimentManager

        return not (ExperimentManager.is_atari(self.env_id) or ExperimentManager.is_minigrid(self.env_id))

    def evaluate(self, model: BaseAlgorithm, env: VecEnv, episodes: int) -> np.ndarray:
        """
        Evaluate an agent of the run.

        :param model: the agent
        :param env: to play in
        :param episodes: number of episodes
        :return: return of each episode
        """
        returns, _ = evaluate_policy(model, env, episodes, deterministic=self.deterministic, return_episode_rewards=True)
        return np.array(returns)


def _register_all() -> None:
    """Register the ids that RL Zoo and this package know, so that users need not import their packages."""
    import rl_zoo3.import_envs  # noqa: F401

    from sb3_dreamer.envs import register_envs

    register_envs()


def make_plain_env(env_id: str) -> VecEnv | gym.Env:
    """
    Make an environment by its id.

    :param env_id: of any environment; an Atari game gets the paper's protocol
    :return: the environment
    """
    from sb3_dreamer.envs import make_dreamer_atari_env

    _register_all()
    env = gym.make(env_id)
    if env.spec is None or "AtariEnv" not in str(env.spec.entry_point):
        return env
    env.close()
    return make_dreamer_atari_env(env.spec.id)


def read_yaml(path: Path) -> dict[str, Any]:
    """
    Read a file that RL Zoo has written, without running anything in it.

    :param path: of ``args.yml`` or ``config.yml``
    :return: its content
    :raises ValueError: if it holds other Python objects than the dictionaries and tuples that RL Zoo writes
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Knows two harmless kinds of Python objects."""

    def ordered(loader: Loader, node: yaml.SequenceNode) -> dict[str, Any]:
        return dict(loader.construct_sequence(node, deep=True)[0])

    prefix = "tag:yaml.org,2002:python/"
    Loader.add_constructor(f"{prefix}object/apply:collections.OrderedDict", ordered)
    Loader.add_constructor(f"{prefix}tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
    try:
        return dict(yaml.load(path.read_text(), Loader=Loader) or {})
    except (yaml.YAMLError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path} is not a file of RL Zoo, or holds Python objects that could run code: {error}. It was not used."
        ) from error


def find_run(model_path: Path) -> ZooRun | None:
    """
    Find the run that a model belongs to.

    :param model_path: of a zip file, or the folder of a run
    :return: the run, or None if the model is not from RL Zoo
    :raises FileNotFoundError: if statistics of ``VecNormalize`` are missing
    """
    folder = model_path if model_path.is_dir() else model_path.parent
    found = sorted(folder.glob("*/args.yml"))
    if not found:
        return None
    from rl_zoo3.utils import get_saved_hyperparams

    arguments, saved = read_yaml(found[0]), found[0].parent
    if (saved / "config.yml").exists():
        read_yaml(saved / "config.yml")  # rl_zoo3 would run what is in it
    hyperparams, stats_path = get_saved_hyperparams(str(saved), test_mode=True)
    if hyperparams.get("normalize") and not (saved / "vecnormalize.pkl").exists():
        raise FileNotFoundError(
            f"The run {folder} was normalized by VecNormalize, but {saved / 'vecnormalize.pkl'} is missing. Without it "
            "observations have no units: copy it there from where the model was trained."
        )
    return ZooRun(folder, arguments["env"], hyperparams, arguments, stats_path)


def load_model(path: Path, device: str) -> DreamerV2 | DreamerV3:
    """
    Load a model of any algorithm of this package.

    :param path: of the zip file
    :param device: to load to
    :return: the model
    :raises ValueError: if the file is damaged, or of another algorithm
    """
    check_model_file(path)
    with zipfile.ZipFile(path) as archive:
        name = json.loads(archive.read("data")).get("algorithm_name", DreamerV2.__name__)  # which older files do not have
    return (DreamerV3 if name == DreamerV3.__name__ else DreamerV2).load(path, device=device)


def find_model(path: Path) -> Path:
    """
    Find the zip file of a model.

    :param path: of a zip file, with or without suffix, or the folder of a run
    :return: the zip file; of a folder that of the final model, otherwise of the best one
    :raises FileNotFoundError: if there is none
    """
    for file in (path, *([] if path.is_dir() else [Path(f"{path}.zip")])):
        if file.is_file():
            return file
    zips = [file for file in sorted(path.glob("*.zip")) if not file.stem.startswith("rl_model_")]
    candidates = sorted(zips, key=lambda file: file.stem == "best_model")
    if not candidates:
        raise FileNotFoundError(
            f"There is no model {path}. Pass the zip file that model.save() wrote, or the folder of a run of RL Zoo, such as "
            "logs/dreamer/CartPole-v1_1."
        )
    return candidates[0]
