"""rl_zoo3's ``ExperimentManager`` for the algorithms of this package."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_dreamer import presets
from sb3_dreamer.callbacks import VideoPredictionCallback
from sb3_dreamer.common.schedules import parse_schedule
from sb3_dreamer.ranks.distributed import rank
from sb3_dreamer.saving.checkpoint import CONTENTS, Checkpoint
from sb3_dreamer.zoo.algorithms import ALGORITHMS
from sb3_dreamer.zoo.hyperparams_opt import merge_policy_kwargs, section_policy_kwargs


class ZooManager(ExperimentManager):
    """An ``ExperimentManager`` becomes one of these at the end of its constructor, if it trains one of our algorithms."""

    def begin(self, given: dict[str, Any]) -> None:
        """
        Finish the construction.

        :param given: arguments of the constructor
        """
        self._shares_env_kwargs = not given.get("eval_env_kwargs")
        self._own_config = str(presets.default_config(ALGORITHMS[self.algo].config))
        # A file that the user names is never replaced, not even one that does not exist
        if not given.get("config") and not os.path.isfile(self.config):
            self.config = self._own_config

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        """
        Add what rl_zoo3 lacks: all schedules of this package (it knows ``lin_3e-4`` only), and ``env_kwargs`` of the
        hyperparameter file for evaluation too, since an Atari agent must be evaluated under the protocol of its training.
        """
        rate = hyperparams.get("learning_rate")
        if isinstance(rate, str):
            processed = super()._preprocess_hyperparams(hyperparams | {"learning_rate": 0.0})
            processed[0]["learning_rate"] = parse_schedule("learning_rate", rate)
        else:
            processed = super()._preprocess_hyperparams(hyperparams)
        if self._shares_env_kwargs:
            self.eval_env_kwargs = self.env_kwargs
        if not getattr(self.args, "env_kwargs", True):
            self.args.env_kwargs = self.env_kwargs or None  # for args.yml, from which record_video makes its environment
        if self.n_envs < 1:
            raise ValueError(f"Rank {rank()}: n_envs is {self.n_envs}, but every rank needs an environment of its own.")
        return processed

    def read_hyperparameters(self) -> Any:
        """Choose the default section by the observation space, and change only what a trial has drawn."""
        given, section = self.custom_hyperparams or {}, self._section_by_observation()
        if self.storage and self.study_name and self.trial_id is not None:  # rl_zoo3 ignores number 0
            section |= self._trial_in(section)
        if section:
            self.custom_hyperparams = section | given
        return super().read_hyperparameters()

    def _section_by_observation(self) -> dict[str, Any]:
        """
        Our file's section for an environment without one: ``default`` cannot fit vectors and images at once. Empty if
        rl_zoo3 finds the section by itself.
        """
        if self.config != self._own_config:
            return {}
        known = presets.sections(self.config)
        if self.env_name.gym_id in known or self._is_atari:
            return {}
        with contextlib.closing(gym.make(self.env_name.gym_id, **self.env_kwargs)) as env:
            section, policy = presets.default_section(env.observation_space)
        section = section if section in known else "default"
        if section not in known:
            return {}
        print(f"Using the section '{section}' with {policy}")
        return known[section] | {"policy": policy}

    def _trial_in(self, section: dict[str, Any]) -> dict[str, Any]:
        """Hyperparameters of ``--trial-id``; rl_zoo3 alone would drop all ``policy_kwargs`` that the trial has not drawn."""
        number, self.trial_id, self.custom_hyperparams = self.trial_id, None, section
        with contextlib.redirect_stdout(io.StringIO()):
            kept = super().read_hyperparameters()[0].get("policy_kwargs", {})
        self.trial_id = number
        trial = self.load_trial(self.storage, self.study_name, number)  # type: ignore[arg-type]
        kept = presets.evaluate(kept) if isinstance(kept, str) else kept
        return trial | ({"policy_kwargs": merge_policy_kwargs(kept, trial.get("policy_kwargs", {}))} if kept else {})

    def objective(self, trial: Any) -> float:
        """Tell the sampler the section's ``policy_kwargs``, which rl_zoo3 replaces by those that a trial has drawn."""
        token = section_policy_kwargs.set(self._hyperparams.get("policy_kwargs"))
        try:
            return super().objective(trial)
        finally:
            section_policy_kwargs.reset(token)

    def create_callbacks(self) -> None:
        """Send films to the folder of the run, which a callback cannot find out from ``SubprocVecEnv``."""
        super().create_callbacks()
        for callback in self.callbacks:
            if isinstance(callback, VideoPredictionCallback) and callback.folder is None:
                callback.folder = Path(self.save_path, "videos")

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        """Find statistics beside the model of a checkpoint; rl_zoo3 looks in a folder named like the environment."""
        folder = Path(self.trained_agent).parent
        path = Checkpoint(folder).statistics
        if not self.trained_agent or not (folder / CONTENTS).exists() or not path.exists():
            return super()._maybe_normalize(env, eval_env)
        print("Loading saved VecNormalize stats")
        normalized = VecNormalize.load(str(path), env)
        if eval_env:
            normalized.training = normalized.norm_reward = False
        return normalized
