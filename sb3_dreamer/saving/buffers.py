"""Replay buffers as files: written atomically, checked when they are read, and fitted to the model that loads them."""

import io
import os
import pathlib
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stable_baselines3.common.save_util import save_to_pkl

from sb3_dreamer.common.files import atomic_file, is_path
from sb3_dreamer.ranks.distributed import rank, world_size
from sb3_dreamer.ranks.rank_files import SavedFiles, file_of_rank, folder_of_rank, remove_others, saved_files_for_rank
from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.replay.disk_storage import is_open
from sb3_dreamer.replay.records import RecordFormat
from sb3_dreamer.saving.saved_files import TRAILER, ChecksumWriter, unpickle, with_suffix

BufferFile = str | pathlib.Path | io.BufferedIOBase


def save_buffer(buffer: SequenceReplayBuffer, path: BufferFile, verbose: int = 0) -> None:
    """
    Save a replay buffer; an older file is replaced only by a complete one. Every rank has a file of its own,
    ``replay_buffer.rank1.pkl`` beside ``replay_buffer.pkl``.

    :param buffer: in memory, or on disk, of which only a reference is saved
    :param path: of the file
    :param verbose: 2 prints the path
    """
    if not is_path(path):
        return save_to_pkl(path, buffer, verbose)
    named = with_suffix(path)
    with atomic_file(file_of_rank(named)) as file:
        checked = ChecksumWriter(file)
        pickle.dump(buffer, checked, protocol=pickle.HIGHEST_PROTOCOL)
        file.write(TRAILER + checked.value.to_bytes(4, "little"))
    if rank() == 0:
        remove_others(named)


def read_buffer(path: Any, like: SequenceReplayBuffer, verbose: int = 0) -> SequenceReplayBuffer:
    """
    Read a replay buffer for a model.

    :param path: of the file
    :param like: a buffer of the model, with its spaces and device
    :param verbose: 2 prints the path
    :return: the buffer, of any number of environments
    :raises ValueError: if the file is damaged, holds something else, or other spaces
    """
    buffer = unpickle(path, verbose)
    if not isinstance(buffer, SequenceReplayBuffer):
        raise ValueError(f"{path} holds a {type(buffer).__name__}, not a SequenceReplayBuffer.")
    spaces = like.observation_space, like.action_space
    buffer.format.check_compatible(RecordFormat(*spaces, buffer.n_envs, like.image_size, like.float_images))
    buffer.device = like.device
    return buffer


@dataclass
class BufferLoader:
    """
    Loads saved replay buffers into a model.

    :param present: the model's buffer, which stays usable if loading fails
    :param options: ``replay_buffer_kwargs`` of the model
    :param make: makes a buffer for the model from such options
    :param place_given: whether the user has just said where the records belong (``load(..., replay_buffer_kwargs=...)``)
    :param verbose: 2 prints paths
    """

    present: SequenceReplayBuffer
    options: dict[str, Any]
    make: Callable[[dict[str, Any]], SequenceReplayBuffer]
    place_given: bool
    verbose: int = 0

    def load(self, path: BufferFile) -> SequenceReplayBuffer:
        """
        Read this rank's buffer.

        :param path: of rank 0's file
        :return: what the model uses from now on: the buffer of the file, or a buffer with a copy of its episodes
        :raises ValueError: if the file is damaged, holds something else, or does not fit
        """
        if not is_path(path):
            return self._load_one(path)
        files = saved_files_for_rank(with_suffix(path))
        if files.n_ranks != world_size():
            return self._load_from_ranks(files)
        return self._load_one(path if files.n_ranks == 1 else files.paths[0])

    def _load_one(self, path: Any) -> SequenceReplayBuffer:
        try:
            buffer = read_buffer(path, self.present, self.verbose)
            elsewhere = self.place_given and not _same_folder(self._folder, buffer.storage_path)
            fits = buffer.n_envs == self.present.n_envs and buffer.serves(self.present)
            return self._adopted(buffer) if fits and not elsewhere else self._copied(buffer)
        except BaseException:
            self.present.reopen()
            raise

    def _adopted(self, buffer: SequenceReplayBuffer) -> SequenceReplayBuffer:
        """The buffer of the file, sampled as the model says."""
        level = None if buffer.storage_compression is None else buffer.storage_compression.level
        if self.place_given and self.options.get("storage_compression") != level:
            warnings.warn(
                f"The replay buffer in {buffer.storage_path} keeps its own storage_compression={level}. To change it, "
                "name a new folder: its episodes are copied there."
            )
        if buffer.buffer_size != self.present.buffer_size:
            own, wanted = (one.buffer_size * one.n_envs for one in (buffer, self.present))
            warnings.warn(f"The loaded replay buffer keeps its own size of {own} steps, not buffer_size={wanted}.")
        for option in buffer.options_of_the_model:
            setattr(buffer, option, getattr(self.present, option))
        return buffer

    def _copied(self, loaded: SequenceReplayBuffer) -> SequenceReplayBuffer:
        """A buffer of this model's number of environments, or in its folder, with the episodes of the one that was read."""
        target = self._target(loaded)
        places = [buffer.storage_path or "memory" for buffer in (loaded, target)]
        where = f"in {places[0]}, that of this model in {places[1]}"
        if not loaded.serves(target):
            where = "of another algorithm or size of model"
        if loaded.n_envs != target.n_envs:
            where = f"of {loaded.n_envs} environments, this model of {target.n_envs}"
        _refill(target, [loaded], f"The loaded replay buffer is {where}: its episodes were copied")
        return target

    @property
    def _folder(self) -> str | None:
        """Where the options put the records of this rank; a relative path was resolved when the buffer was made."""
        wanted, present = self.options.get("storage_path"), self.present.storage_path
        return present if self.place_given and None not in (wanted, present) else wanted and folder_of_rank(wanted)

    def _target(self, loaded: SequenceReplayBuffer) -> SequenceReplayBuffer:
        """The buffer to copy into, on disk if that is where it belongs; a model that was loaded has not opened its folder."""
        folder, target = self._folder, self.present
        if folder is None:  # a folder that another file has brought along keeps what it holds
            return target if target.storage_path is None else self.make(self.options)
        if _same_folder(folder, loaded.storage_path) and loaded.n_envs == target.n_envs:
            raise ValueError(
                f"The replay buffer in {folder} is of another algorithm or size of model. To use its records there, set "
                "storage_resume=True in replay_buffer_kwargs in place of loading the file; to copy them, name a new folder."
            )
        if _same_folder(folder, loaded.storage_path):
            raise ValueError(
                f"The replay buffer in {folder} is of {loaded.n_envs} environments, this model has {target.n_envs}. To copy "
                "its episodes, name a new folder: load(path, env, replay_buffer_kwargs=dict(storage_path='...'))."
            )
        if not _same_folder(folder, target.storage_path):
            if is_open(folder):
                raise ValueError(f"The replay buffer in {folder} is in use by another buffer. Name a new folder.")
            target = self.make({**self.options, "storage_resume": True})
        if target.num_records > 0:
            raise ValueError(
                f"{folder} already holds a replay buffer of {target.num_records} records, which a copy would replace. Name a "
                "new folder, or delete it if it is of an earlier copy (replay_buffer.reset() empties that of a model); to "
                "resume with it, do not load another buffer."
            )
        return target

    def _load_from_ranks(self, files: SavedFiles) -> SequenceReplayBuffer:
        """Buffers of a run with another number of ranks."""
        me, size = rank(), world_size()
        said = f"Rank {me} of {size}: the replay buffers were saved by {files.n_ranks} ranks"
        if self.options.get("storage_path") is None:
            buffers = [read_buffer(path, self.present, self.verbose) for path in files.paths]
            _refill(self.present, buffers, f"{said}: the episodes of rank {', '.join(map(str, files.ranks))} were copied")
            return self.present
        # the folder may be in use, and too large for memory
        has_own = files.ranks[0] == me
        buffer = self._load_one(files.paths[0]) if has_own else self.present
        warnings.warn(f"{said}, on disk: " + ("its own is taken." if has_own else "this one begins with an empty one."))
        return buffer


def _refill(target: SequenceReplayBuffer, sources: Sequence[SequenceReplayBuffer], said: str) -> None:
    """Copy all episodes, and say so."""
    dropped = target.refill(*sources)
    warnings.warn(said + (f", except the oldest {dropped} steps, for which there is no room." if dropped else "."))


def _same_folder(first: str | None, second: str | None) -> bool:
    return (None if first is None else os.path.realpath(first)) == (None if second is None else os.path.realpath(second))
