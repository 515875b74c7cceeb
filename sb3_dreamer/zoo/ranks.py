"""
rl_zoo3's training command by several ranks: ``torchrun --nproc-per-node 4 -m sb3_dreamer.zoo train --algo dreamer ...``.

Rank 0 owns the log folder, prints, evaluates and saves. With ``--save-freq`` there are full checkpoints too, in the folder
``checkpoints`` beside the agent. When ``torchrun --max-restarts`` has restarted all ranks, they resume from the newest.
"""

import os
from pathlib import Path
from typing import Any

from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import VecEnv

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.callbacks import ResumableCheckpointCallback
from sb3_dreamer.ranks import distributed
from sb3_dreamer.saving.checkpoint import checkpoints
from sb3_dreamer.zoo.manager import ZooManager

CHECKPOINTS = "checkpoints"


def adopt(manager: ExperimentManager, given: dict[str, Any]) -> None:
    """
    Give a manager of one of our algorithms the methods of :class:`ZooManager`, or of several ranks.

    :param manager: of rl_zoo3, just constructed
    :param given: arguments of its constructor
    """
    ours, theirs = RankManager if distributed.world_size() > 1 else ZooManager, type(manager)
    if not isinstance(manager, ours):  # a subclass of the user's keeps its methods
        manager.__class__ = ours if theirs is ExperimentManager else type(theirs.__name__, (ours, theirs), {})
    manager.begin(given)  # type: ignore[attr-defined]


class RankManager(ZooManager):
    """The same where several ranks train one agent."""

    def begin(self, given: dict[str, Any]) -> None:
        super().begin(given)
        if self.optimize_hyperparameters:
            raise ValueError(
                f"Rank {distributed.rank()}: -optimize searches in independent processes. Start several without torchrun, "
                "with one --storage and one --study-name."
            )
        distributed.join()
        interrupted = self._interrupted_run()
        # All ranks take rank 0's folder
        self.save_path, self._resumes = distributed.gather((interrupted or self.save_path, interrupted is not None))[0]
        self.params_path = f"{self.save_path}/{self.env_name}"
        self._checkpoint_freq = self.save_freq
        self.eval_freq, self.save_freq = self._share(self.eval_freq), self._share(self.save_freq)
        self.show_progress = self.show_progress and distributed.rank() == 0

    def _interrupted_run(self) -> str | None:
        """Folder of the run before a restart by torchrun, if it has a checkpoint."""
        if distributed.rank() > 0 or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
            return None
        runs = [path for path in Path(self.log_path).glob(f"{self.env_name}_*") if checkpoints(path / CHECKPOINTS)]
        return str(max(runs, key=lambda path: path.stat().st_mtime)) if runs else None

    @staticmethod
    def _share(frequency: int) -> int:
        """Own steps of rank 0 between events, from steps of all ranks; never on the others."""
        return max(frequency // distributed.world_size(), 1) if distributed.rank() == 0 and frequency > 0 else -1

    def create_log_folder(self) -> None:
        if distributed.rank() == 0:
            super().create_log_folder()

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        if distributed.rank() == 0:
            super()._save_config(saved_hyperparams)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """Write monitor files on rank 0 only."""
        return super().create_envs(n_envs, eval_env, no_log or distributed.rank() > 0)

    def create_callbacks(self) -> None:
        super().create_callbacks()
        if self._checkpoint_freq > 0:
            self.callbacks.append(ResumableCheckpointCallback(self._checkpoint_freq, Path(self.save_path, CHECKPOINTS)))

    def setup_experiment(self) -> Any:
        prepared: Any = super().setup_experiment()
        if prepared is None or not self._resumes:
            return prepared
        fresh, saved_hyperparams = prepared
        model = type(fresh).resume(
            Path(self.save_path, CHECKPOINTS),
            fresh.env,
            self.device,
            tensorboard_log=self.tensorboard_log,
            verbose=self.verbose,
        )
        print(f"Resuming {self.save_path} at step {model.num_timesteps}")
        return model, saved_hyperparams

    def learn(self, model: Any) -> None:
        super().learn(_Resumed(model) if self._resumes else model)  # type: ignore[arg-type]

    def save_trained_model(self, model: Any) -> None:
        """Save on rank 0; the others save their replay buffers, if at all."""
        if distributed.rank() == 0:
            super().save_trained_model(model)
        elif self.save_replay_buffer:
            model.save_replay_buffer(os.path.join(self.save_path, "replay_buffer.pkl"))


class _Resumed:
    """A model whose ``learn`` keeps the steps that it has made."""

    def __init__(self, model: SequenceOffPolicyAlgorithm):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def learn(self, total_timesteps: float, **kwargs: Any) -> None:
        rest = max(total_timesteps - self._model.num_timesteps, 0)
        self._model.learn(rest, reset_num_timesteps=False, **kwargs)  # type: ignore[arg-type]
