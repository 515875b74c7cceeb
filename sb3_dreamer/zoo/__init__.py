"""
DreamerV2 in RL Baselines3 Zoo as ``--algo dreamer``.

After ``pip install sb3-dreamer`` nothing has to be done: the start-up hook ``_sb3_dreamer_zoo`` calls ``extend`` when
rl_zoo3 is imported. ``python -m sb3_dreamer.zoo train ...`` and, in one's own script, ``register()`` do without the hook.
An entry that rl_zoo3 has already is never replaced: should it ship its own ``dreamer`` one day, that one wins.
"""

import contextlib
import functools
import importlib
import inspect
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym

from sb3_dreamer import presets
from sb3_dreamer.common.schedules import parse_schedule
from sb3_dreamer.ranks.distributed import rank

__all__ = ["ALGO", "default_config", "extend", "register"]

ALGO = "dreamer"
#: Default folders of rl_zoo3: of `enjoy`, and of `train`
PRETRAINED, OWN_LOGS = "rl-trained-agents", "logs"


def default_config() -> str:
    """
    :return: path of the ``dreamer.yml`` that is used when no ``--conf-file`` is given
    """
    return str(presets.default_config())


def register() -> None:
    """Add ``dreamer`` to rl_zoo3. Calling it again changes nothing."""
    for name in _EXTENSIONS:
        extend(importlib.import_module(name))


def extend(module: ModuleType) -> None:
    """
    Add what belongs into one module of rl_zoo3. Doing it again changes nothing.

    :param module: ``rl_zoo3.utils``, ``rl_zoo3.hyperparams_opt`` or ``rl_zoo3.exp_manager``
    """
    _EXTENSIONS[module.__name__](module)


def _extend_algorithms(module: ModuleType) -> None:
    from sb3_dreamer.dreamer_v2 import DreamerV2

    module.ALGOS.setdefault(ALGO, DreamerV2)
    if not getattr(module.get_model_path, "_knows_dreamer", False):
        module.get_model_path = _with_own_logs(module.get_model_path)  # type: ignore[attr-defined]


def _with_own_logs(get_model_path: Callable[..., Any]) -> Callable[..., Any]:
    """
    rl_zoo3's ``enjoy`` looks into a collection of pretrained agents unless it is told the log folder. The collection has
    none of ours, so without ``-f`` it would try to download one that does not exist.

    :param get_model_path: ``rl_zoo3.utils.get_model_path``
    :return: the same, but without a collection of our agents one's own ``logs`` are meant
    """

    @functools.wraps(get_model_path)
    def wrapper(exp_id: int, folder: str, algo: str, *args: Any, **kwargs: Any) -> Any:
        collected, own = os.path.join(folder, ALGO), os.path.join(OWN_LOGS, ALGO)
        if algo == ALGO and folder == PRETRAINED and not os.path.isdir(collected) and os.path.isdir(own):
            print(f"There is no {collected}, taking the latest of your own runs in {own}")
            folder = OWN_LOGS
        return get_model_path(exp_id, folder, algo, *args, **kwargs)

    wrapper._knows_dreamer = True  # type: ignore[attr-defined]
    return wrapper


def _extend_optimization(module: ModuleType) -> None:
    from sb3_dreamer.zoo.hyperparams_opt import convert_dreamer_params, sample_dreamer_params

    module.HYPERPARAMS_SAMPLER.setdefault(ALGO, sample_dreamer_params)
    module.HYPERPARAMS_CONVERTER.setdefault(ALGO, convert_dreamer_params)


def _extend_manager(module: ModuleType) -> None:
    from sb3_dreamer.envs import register_envs
    from sb3_dreamer.zoo.ranks import share_the_work

    register_envs()  # so that no --gym-packages is needed for what dreamer.yml plays
    manager = module.ExperimentManager
    if getattr(manager, "_knows_dreamer", False):
        return
    manager._knows_dreamer = True
    manager.__init__ = _with_default_config(manager.__init__)
    manager._preprocess_hyperparams = _with_our_conventions(manager._preprocess_hyperparams)
    manager.read_hyperparameters = _with_our_sections(manager.read_hyperparameters)
    manager.objective = _with_section_of_trials(manager.objective)
    manager.create_callbacks = _with_folder_of_films(manager.create_callbacks)
    manager._maybe_normalize = _with_statistics_of_checkpoints(manager._maybe_normalize)
    share_the_work(manager, ALGO)


def _with_default_config(init: Callable[..., None]) -> Callable[..., None]:
    """
    :param init: ``ExperimentManager.__init__``
    :return: the same, and our hyperparameter file where rl_zoo3 would look for one that it does not have
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        if self.algo != ALGO:
            return
        self._dreamer_shares_env_kwargs = not given.get("eval_env_kwargs")
        # a file that the user names is never replaced, not even one that does not exist
        if not given.get("config") and not os.path.isfile(self.config):
            self.config = default_config()

    return wrapper


def _with_our_conventions(preprocess: Callable[..., Any]) -> Callable[..., Any]:
    """
    The ``env_kwargs`` of a hyperparameter file reach the training env only (rl_zoo3 2.9.2, ``read_hyperparameters``): an
    Atari agent would be evaluated under another protocol than it is trained in. Of a ``learning_rate`` rl_zoo3 understands
    ``lin_3e-4`` only.

    :param preprocess: ``ExperimentManager._preprocess_hyperparams``
    :return: the same, with these arguments for evaluation too, and all of our schedules
    """

    @functools.wraps(preprocess)
    def wrapper(self: Any, hyperparams: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rate = hyperparams.get("learning_rate")
        ours = self.algo == ALGO and isinstance(rate, str)
        processed = preprocess(self, hyperparams | {"learning_rate": 0.0} if ours else hyperparams, *args, **kwargs)
        if ours:
            processed[0]["learning_rate"] = parse_schedule("learning_rate", rate)
        if self.algo == ALGO and self._dreamer_shares_env_kwargs:
            self.eval_env_kwargs = self.env_kwargs
        if self.algo == ALGO and not getattr(self.args, "env_kwargs", True):
            self.args.env_kwargs = self.env_kwargs or None  # for args.yml, from which record_video makes its environment
        if self.algo == ALGO and self.n_envs < 1:
            raise ValueError(f"Rank {rank()}: n_envs is {self.n_envs}, but every rank needs an environment of its own.")
        return processed

    return wrapper


def _with_our_sections(read: Callable[..., Any]) -> Callable[..., Any]:
    """
    rl_zoo3 gives every environment without a section of its own the section ``default``, which cannot fit vectors and pictures
    at once. And of a section whose study is used (``--trial-id``) it keeps nothing of the ``policy_kwargs``.

    :param read: ``ExperimentManager.read_hyperparameters``
    :return: the same, but from our own file environments that show pictures (or a Dict) get ``default_pixels``, and a trial
        changes only what it has drawn
    """

    from sb3_dreamer.zoo.hyperparams_opt import merge_policy_kwargs

    @functools.wraps(read)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.algo != ALGO:
            return read(self, *args, **kwargs)
        given, section = self.custom_hyperparams or {}, _section_by_observation(self)
        if self.storage and self.study_name and self.trial_id is not None:  # 0 is one, which rl_zoo3 overlooks
            number, self.trial_id, self.custom_hyperparams = self.trial_id, None, section
            with contextlib.redirect_stdout(io.StringIO()):
                kept = read(self, *args, **kwargs)[0].get("policy_kwargs", {})
            self.trial_id = number
            trial = self.load_trial(self.storage, self.study_name, number)
            kept = presets.evaluate(kept) if isinstance(kept, str) else kept
            section |= trial | {"policy_kwargs": merge_policy_kwargs(kept, trial["policy_kwargs"])}
        if section:
            self.custom_hyperparams = section | given
        return read(self, *args, **kwargs)

    return wrapper


def _section_by_observation(manager: Any) -> dict[str, Any]:
    """
    :param manager: rl_zoo3's ``ExperimentManager``
    :return: our file's section for an environment without one, by what it shows; empty if rl_zoo3 finds it by itself
    """
    known = presets.sections()
    if manager.config != default_config() or manager.env_name.gym_id in known or manager._is_atari:
        return {}
    with contextlib.closing(gym.make(manager.env_name.gym_id, **manager.env_kwargs)) as env:
        section, policy = presets.default_section(env.observation_space)
    print(f"Using the section '{section}' with {policy}")
    return known[section] | {"policy": policy}


def _with_section_of_trials(objective: Callable[..., float]) -> Callable[..., float]:
    """
    rl_zoo3 replaces the ``policy_kwargs`` of a section by those that a trial has drawn.

    :param objective: ``ExperimentManager.objective``
    :return: the same, but what a trial does not draw stays as it is in the section
    """
    from sb3_dreamer.zoo.hyperparams_opt import section_policy_kwargs

    @functools.wraps(objective)
    def wrapper(self: Any, trial: Any) -> float:
        token = section_policy_kwargs.set(self._hyperparams.get("policy_kwargs") if self.algo == ALGO else None)
        try:
            return objective(self, trial)
        finally:
            section_policy_kwargs.reset(token)

    return wrapper


def _with_folder_of_films(create: Callable[..., None]) -> Callable[..., None]:
    """
    :param create: ``ExperimentManager.create_callbacks``
    :return: the same, and our films go into the folder of the run, which a callback cannot know of ``SubprocVecEnv``
    """

    @functools.wraps(create)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        from sb3_dreamer.callbacks import VideoPredictionCallback

        create(self, *args, **kwargs)
        for callback in self.callbacks:
            if isinstance(callback, VideoPredictionCallback) and callback.folder is None:
                callback.folder = Path(self.save_path, "videos")

    return wrapper


def _with_statistics_of_checkpoints(normalize: Callable[..., Any]) -> Callable[..., Any]:
    """
    rl_zoo3 looks for the statistics of ``VecNormalize`` where it puts them itself, in a folder named like the environment. A
    checkpoint has them beside the model.

    :param normalize: ``ExperimentManager._maybe_normalize``
    :return: the same, with the statistics of the checkpoint from which a run goes on
    """
    from stable_baselines3.common.vec_env import VecNormalize

    from sb3_dreamer.saving.checkpoint import CONTENTS, Checkpoint

    @functools.wraps(normalize)
    def wrapper(self: Any, env: Any, eval_env: bool) -> Any:
        folder = Path(self.trained_agent).parent
        path = Checkpoint(folder).statistics
        if self.algo != ALGO or not self.trained_agent or not (folder / CONTENTS).exists() or not path.exists():
            return normalize(self, env, eval_env)
        print("Loading saved VecNormalize stats")
        env = VecNormalize.load(str(path), env)
        if eval_env:
            env.training = env.norm_reward = False
        return env

    return wrapper


_EXTENSIONS: dict[str, Callable[[ModuleType], None]] = {
    "rl_zoo3.utils": _extend_algorithms,
    "rl_zoo3.hyperparams_opt": _extend_optimization,
    "rl_zoo3.exp_manager": _extend_manager,
}
