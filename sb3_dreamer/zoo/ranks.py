"""
rl_zoo3's training command by several ranks: ``torchrun --nproc-per-node 4 -m sb3_dreamer.zoo train --algo dreamer ...``.

Rank 0 owns the log folder, prints, evaluates and saves. With ``--save-freq`` there are full checkpoints too, in the folder
``checkpoints`` beside the agent; when ``torchrun --max-restarts`` has started all ranks anew, they go on from the newest.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sb3_dreamer.callbacks import ResumableCheckpointCallback
from sb3_dreamer.dreamer_v2 import DreamerV2
from sb3_dreamer.ranks import distributed
from sb3_dreamer.saving.checkpoint import checkpoints

CHECKPOINTS = "checkpoints"


def share_the_work(manager: Any, algo: str) -> None:
    """
    Let several ranks train one agent. Nothing changes for a process of its own, nor for other algorithms.

    :param manager: rl_zoo3's ``ExperimentManager``
    :param algo: name of our algorithm
    """

    def extend(name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        original = getattr(manager, name)
        together = wrap(original)

        @functools.wraps(original)
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            is_ours = (self.algo if name != "__init__" else algo) == algo and distributed.world_size() > 1
            return (together if is_ours else original)(self, *args, **kwargs)

        setattr(manager, name, method)

    extend("__init__", lambda original: functools.partial(_begin, original, algo))
    for name in ("create_log_folder", "_save_config"):
        extend(name, _by_rank_0)
    extend("create_envs", _without_monitor_files)
    extend("create_callbacks", _with_checkpoints)
    extend("setup_experiment", _resumed_after_restart)
    extend("learn", _for_the_rest)
    extend("save_trained_model", _every_buffer)


def _begin(original: Callable[..., None], algo: str, self: Any, *args: Any, **kwargs: Any) -> None:
    """All ranks take rank 0's folder; after a restart that is the one of before."""
    original(self, *args, **kwargs)
    if self.algo != algo:
        return
    if self.optimize_hyperparameters:
        raise ValueError(
            f"Rank {distributed.rank()}: -optimize searches in processes that know nothing of one another. Start several "
            "without torchrun, with one --storage and one --study-name."
        )
    distributed.join()
    self._dreamer_resumes = False
    if distributed.rank() == 0 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        runs = [path for path in Path(self.log_path).glob(f"{self.env_name}_*") if checkpoints(path / CHECKPOINTS)]
        if runs:
            self.save_path = str(max(runs, key=lambda path: path.stat().st_mtime))
            self._dreamer_resumes = True
    self.save_path, self._dreamer_resumes = distributed.gather((self.save_path, self._dreamer_resumes))[0]
    self.params_path = f"{self.save_path}/{self.env_name}"
    self._dreamer_save_freq = self.save_freq
    size, is_first = distributed.world_size(), distributed.rank() == 0
    self.eval_freq = max(self.eval_freq // size, 1) if is_first and self.eval_freq > 0 else -1
    self.save_freq = max(self.save_freq // size, 1) if is_first and self.save_freq > 0 else -1
    self.show_progress = self.show_progress and is_first


def _by_rank_0(original: Callable[..., None]) -> Callable[..., None]:
    def method(self: Any, *args: Any, **kwargs: Any) -> None:
        if distributed.rank() == 0:
            original(self, *args, **kwargs)

    return method


def _without_monitor_files(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        return original(self, n_envs, eval_env, no_log or distributed.rank() > 0)

    return method


def _with_checkpoints(original: Callable[..., None]) -> Callable[..., None]:
    def method(self: Any) -> None:
        original(self)
        if self._dreamer_save_freq > 0:
            self.callbacks.append(ResumableCheckpointCallback(self._dreamer_save_freq, Path(self.save_path, CHECKPOINTS)))

    return method


def _resumed_after_restart(original: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Any) -> Any:
        prepared = original(self)
        if prepared is None or not self._dreamer_resumes:
            return prepared
        fresh, saved_hyperparams = prepared
        model = DreamerV2.resume(
            Path(self.save_path, CHECKPOINTS),
            fresh.env,
            self.device,
            tensorboard_log=self.tensorboard_log,
            verbose=self.verbose,
        )
        print(f"Going on at step {model.num_timesteps} of {self.save_path}")
        return model, saved_hyperparams

    return method


class _Rest:
    """
    A model whose ``learn`` counts on.

    :param model: that was resumed
    """

    def __init__(self, model: DreamerV2):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def learn(self, total_timesteps: float, **kwargs: Any) -> None:
        rest = max(total_timesteps - self._model.num_timesteps, 0)
        self._model.learn(rest, reset_num_timesteps=False, **kwargs)


def _for_the_rest(original: Callable[..., None]) -> Callable[..., None]:
    def method(self: Any, model: DreamerV2) -> None:
        original(self, _Rest(model) if self._dreamer_resumes else model)

    return method


def _every_buffer(original: Callable[..., None]) -> Callable[..., None]:
    def method(self: Any, model: DreamerV2) -> None:
        if distributed.rank() == 0:
            original(self, model)
        elif self.save_replay_buffer:
            model.save_replay_buffer(os.path.join(self.save_path, "replay_buffer.pkl"))

    return method
