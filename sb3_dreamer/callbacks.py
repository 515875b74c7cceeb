"""Callbacks beyond those of SB3."""

import importlib.util
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, EventCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm
from sb3_dreamer.common.files import Lock
from sb3_dreamer.common.options import check_number
from sb3_dreamer.dream.decoding import ObservationDecoder
from sb3_dreamer.dream.drawing import gif_bytes, safe_name, save_film
from sb3_dreamer.dream.plots import draw_lines, prediction_frames
from sb3_dreamer.dream.recording import open_recording
from sb3_dreamer.dream.rollout import open_loop
from sb3_dreamer.ranks.distributed import rank, world_size
from sb3_dreamer.saving.checkpoint import claim, save_checkpoint, set_aside


class _PeriodicCallback(BaseCallback):
    """Acts every ``save_freq`` steps, never between a step and its update, and at the end of the training."""

    model: SequenceOffPolicyAlgorithm  # type: ignore[assignment]
    save_freq: int
    _acted_at = 0
    _refusal: str  # of other algorithms

    @abstractmethod
    def _act(self) -> None:
        """What is done periodically."""

    def _init_callback(self) -> None:
        if not isinstance(self.model, SequenceOffPolicyAlgorithm):
            raise ValueError(self._refusal.format(type(self.model).__name__))
        self._acted_at = self.model.num_timesteps

    @property
    def _called_by_event(self) -> bool:
        """Whether another callback calls this one at some event, in the middle of a step, and never at the end."""
        return isinstance(self.parent, EventCallback)

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps - self._acted_at >= self.save_freq:
            self._act()

    def _on_step(self) -> bool:
        if self._called_by_event:
            self.model.when_stored(self._on_rollout_start)
        return True

    def _on_training_end(self) -> None:
        if self.model.num_timesteps > self._acted_at:
            self._act()


class ResumableCheckpointCallback(_PeriodicCallback):
    """
    Full checkpoints, from which ``DreamerV2.resume(folder, env)`` continues: model, optimizers, buffer, counters, random
    states and the statistics of ``VecNormalize``. They are written after an update, never between a step and its update.

    A buffer in memory is written as a whole each time. With ``replay_buffer_kwargs=dict(storage_path=...)`` it is on the disk
    already, and a checkpoint refers to it.

    After SIGTERM or SIGUSR1, with which batch systems and preemptible machines announce the end, it writes a checkpoint at the
    next step, ends the training and then the process, with the usual exit status of 128 plus the number of the signal. While
    it is in use, its folder belongs to this run: another one that begins there is refused.

    Inside of a callback that calls others at some event (``EveryNTimesteps``, ``EvalCallback(callback_on_new_best=...)``) it
    checks at every event whether ``save_freq`` steps have passed: with 1 there is a checkpoint for each.

    :param save_freq: environment steps (over all environments) between checkpoints
    :param folder: of all checkpoints
    :param keep: how many of the latest are kept; None keeps all
    :param verbose: 1 prints each path
    """

    #: With several processes, callbacks run on rank 0 only, unless they set this; every rank writes its part of a checkpoint
    every_rank = True
    _refusal = "ResumableCheckpointCallback is for DreamerV2, not {}: SB3's CheckpointCallback fits that."

    def __init__(self, save_freq: int, folder: str | Path, keep: int | None = 2, verbose: int = 0):
        super().__init__(verbose)
        if save_freq < 1 or (keep is not None and keep < 1):
            raise ValueError(f"save_freq and keep must be at least 1, but are {save_freq} and {keep}.")
        self.save_freq, self.folder, self.keep = save_freq, Path(folder), keep
        self._lock: Lock | None = None

    def _init_callback(self) -> None:
        super()._init_callback()
        if rank() == 0:
            self._unlock()
            self._lock = claim(self.folder)
            set_aside(self.folder, self.model.num_timesteps)

    def _on_training_start(self) -> None:
        if not self._called_by_event:  # which would not let it write at the end
            self.model.termination.listen()

    def _on_step(self) -> bool:
        return super()._on_step() and self.model.termination.received is None

    def _on_training_end(self) -> None:
        try:
            super()._on_training_end()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _act(self) -> None:
        if world_size() > 1 and self.model._team is None:  # rl_zoo3 ends training twice, also after a rank was lost
            return
        path = save_checkpoint(self.model, self.folder, self.keep)
        self._acted_at = self.model.num_timesteps
        if self.verbose >= 1 and rank() == 0:
            print(f"Saved {path}")


class VideoPredictionCallback(_PeriodicCallback):
    """
    Open-loop predictions of the world model: it sees ``context`` recorded frames and then only the actions. Images become
    films of truth, model and error, in TensorBoard (as ``add_video`` writes them, without moviepy) and as files. Everything
    else becomes lines. Learning is not disturbed: a run without the callback has the same weights to the bit.

    In RL Zoo one line of YAML adds it: ``callback: sb3_dreamer.callbacks.VideoPredictionCallback``. Inside of other callbacks
    it works as :class:`ResumableCheckpointCallback` does.

    :param save_freq: environment steps (over all environments) between predictions; one more is made at the end
    :param folder: for the files; None is ``videos`` in RL Zoo's folder of the run, beside monitor files (except those of a
        ``SubprocVecEnv``), or in the folder of TensorBoard's log; if there is none of these, no files are written
    :param context: frames that the model sees (the released code: 5)
    :param horizon: frames that it predicts; None is as many as sequences of the training or episodes have
    :param n_sequences: sequences, one under the other
    :param keys: of the observation; None is everything that the model reconstructs
    :param formats: of the films: ``"gif"``, ``"mp4"`` (needs moviepy); empty for none
    :param fps: frames per second
    :param verbose: 1 prints each path
    """

    _refusal = "VideoPredictionCallback shows world models, but {} has none."

    def __init__(
        self,
        save_freq: int = 10_000,
        folder: str | Path | None = None,
        context: int = 5,
        horizon: int | None = None,
        n_sequences: int = 3,
        keys: list[str] | None = None,
        formats: Sequence[str] = ("gif",),
        fps: float = 8.0,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        numbers = {"save_freq": save_freq, "context": context, "n_sequences": n_sequences, "horizon": horizon or 1}
        for name, value in numbers.items():
            check_number(name, value, 1)
        check_number("fps", fps, 1e-3)
        unknown = set([formats] if isinstance(formats, str) else formats) - {"gif", "mp4"}
        if unknown:
            raise ValueError(f"Unknown formats {sorted(unknown)}: films are written as 'gif' or 'mp4'.")
        self.save_freq, self.folder, self.keys, self.fps = int(save_freq), folder, keys, fps
        self.context, self.horizon, self.n_sequences = int(context), horizon, int(n_sequences)
        self.formats = (formats,) if isinstance(formats, str) else tuple(formats)
        self._problem: str | None = "no rollout has ended yet"

    def _init_callback(self) -> None:
        super()._init_callback()
        ObservationDecoder(self.model, self.keys or self.model.policy.world_model.decoder_keys)  # refuses unknown keys
        if "mp4" in self.formats and importlib.util.find_spec("moviepy") is None:
            raise ImportError("VideoPredictionCallback(formats=('mp4',)) needs moviepy: pip install moviepy, or use 'gif'.")
        self._folder = self._find_folder() if self.formats else None
        if self.formats and self._folder is None:
            warnings.warn(
                "VideoPredictionCallback has no place for its files, and writes none: there are neither monitor files nor a "
                "log for TensorBoard. Pass folder='...'."
            )

    def _find_folder(self) -> Path | None:
        if self.folder is not None:
            return Path(self.folder)
        env = self.training_env
        known = not isinstance(env.unwrapped, SubprocVecEnv)  # its processes cannot send an open file
        for monitor in env.get_attr("results_writer") if known and env.has_attr("results_writer") else []:
            if monitor is not None:
                return Path(monitor.file_handler.name).parent / "videos"
        if self.model.tensorboard_log is not None:
            return Path(self.logger.get_dir() or self.model.tensorboard_log) / "videos"
        return None

    def _on_training_end(self) -> None:
        super()._on_training_end()
        if self._problem is not None:
            warnings.warn(f"VideoPredictionCallback has made no prediction: {self._problem}")

    def _act(self) -> None:
        self._acted_at = self.model.num_timesteps
        options = self.n_sequences, self.context, self.horizon, self.keys
        try:
            recording = open_recording(self.model)
            if self.horizon is None and recording.longest <= self.context:
                raise ValueError(f"the longest episode has {recording.longest} steps, no more than context={self.context}.")
            loop = open_loop(self.model, recording, *options, seed=self.model.seed or 0)
        except ValueError as error:  # too little experience yet, perhaps
            self._problem = str(error)
            if self._called_by_event:  # _on_training_end will not be called
                warnings.warn(f"VideoPredictionCallback has made no prediction: {error}")
            return
        self._problem = None
        try:
            for key in loop.truth:
                name = "" if len(loop.truth) == 1 else f"_{safe_name(key)}"
                if loop.kinds[key] == "image":
                    self._write_film(name, prediction_frames(loop, key))
                else:
                    self._write_figure(name, draw_lines(loop, key))
        except OSError as error:  # a full disk is no reason to end the training
            warnings.warn(f"VideoPredictionCallback could not write its prediction of step {self.num_timesteps}: {error}")

    def _write_film(self, name: str, frames: Any) -> None:
        gif = gif_bytes(frames, self.fps)
        for output in self._tensorboards():
            from tensorboard.compat.proto.summary_pb2 import Summary

            height, width, channels = frames[0].shape
            image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
            summary = Summary(value=[Summary.Value(tag=f"prediction/open_loop{name}", image=image)])
            output.writer.file_writer.add_summary(summary, self.num_timesteps)  # type: ignore[attr-defined]
        for kind in self.formats:
            write: Any = partial(Path.write_bytes, data=gif) if kind == "gif" else partial(save_film, frames, fps=self.fps)
            self._save(name, kind, write)

    def _write_figure(self, name: str, figure: Any) -> None:
        for output in self._tensorboards():
            output.writer.add_figure(f"prediction/open_loop{name}", figure, self.num_timesteps, close=False)
        self._save(name, "png", figure.savefig)

    def _save(self, name: str, suffix: str, write: Callable[[Path], Any]) -> None:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"prediction{name}_{self.num_timesteps}_steps.{suffix}"
            write(path)
            if self.verbose >= 1:
                print(f"Saved {path}")

    def _tensorboards(self) -> list[TensorBoardOutputFormat]:
        return [output for output in self.logger.output_formats if isinstance(output, TensorBoardOutputFormat)]
