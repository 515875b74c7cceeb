"""Callbacks beyond those of SB3."""

from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback

from sb3_dreamer.common.distributed import rank, world_size
from sb3_dreamer.dreamer_v2.checkpoint import save_checkpoint
from sb3_dreamer.dreamer_v2.sequence_algorithm import SequenceOffPolicyAlgorithm


class ResumableCheckpointCallback(BaseCallback):
    """
    Full checkpoints, from which ``DreamerV2.resume(folder, env)`` goes on: model, optimizers, buffer, counters, random states
    and the statistics of ``VecNormalize``. Written after an update, never between a step and its update.

    A buffer in memory is written as a whole each time; with ``replay_buffer_kwargs=dict(storage_path=...)`` it is on the disk
    already, and a checkpoint refers to it.

    :param save_freq: environment steps (over all environments) between checkpoints
    :param folder: of all checkpoints
    :param keep: how many of the latest are kept; None keeps all
    :param verbose: 1 tells each path
    """

    model: SequenceOffPolicyAlgorithm  # type: ignore[assignment]
    #: Where several processes learn together, callbacks run on rank 0 but for those that say so; this one has parts on all
    every_rank = True

    def __init__(self, save_freq: int, folder: str | Path, keep: int | None = 2, verbose: int = 0):
        super().__init__(verbose)
        if save_freq < 1 or (keep is not None and keep < 1):
            raise ValueError(f"save_freq and keep must be at least 1, but are {save_freq} and {keep}.")
        self.save_freq, self.folder, self.keep = save_freq, Path(folder), keep
        self._saved_at = 0

    def _on_training_start(self) -> None:
        self._saved_at = self.num_timesteps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._saved_at >= self.save_freq:
            self._save()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self._saved_at:
            self._save()

    def _save(self) -> None:
        if world_size() > 1 and self.model._team is None:  # rl_zoo3 ends training twice, also after a rank was lost
            return
        path = save_checkpoint(self.model, self.folder, self.keep)
        self._saved_at = self.model.num_timesteps
        if self.verbose >= 1 and rank() == 0:
            print(f"Saved {path}")
