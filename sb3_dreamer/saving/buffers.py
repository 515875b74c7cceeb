"""Model and buffer files: whole or not there, checked when they are read."""

import io
import os
import pathlib
import pickle
import warnings
from collections.abc import Callable, Iterable
from inspect import signature
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import save_to_pkl
from stable_baselines3.common.type_aliases import GymEnv

from sb3_dreamer.algorithm.engine import Engine
from sb3_dreamer.algorithm.policy import WorldModelPolicy
from sb3_dreamer.common.files import atomic_file, is_path
from sb3_dreamer.ranks.distributed import rank, world_size
from sb3_dreamer.ranks.rank_files import file_of_rank, folder_of_rank, number_of_ranks, remove_others, taken_by
from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.replay.disk_storage import is_open
from sb3_dreamer.replay.records import RecordFormat
from sb3_dreamer.saving.saved_files import TRAILER, ChecksumWriter, check_model_file, unpickle, with_suffix

SelfSaving = TypeVar("SelfSaving", bound="SavingAlgorithm")

#: Names that SB3's tools write into every model that they load, see rl_zoo3's ``enjoy``
WRITTEN_BY_TOOLS = {"lr_schedule", "clip_range", "n_envs"}


class SavingAlgorithm(OffPolicyAlgorithm):
    """``OffPolicyAlgorithm`` with files that survive kills and full disks, and one clear error for those that did not."""

    policy: WorldModelPolicy
    replay_buffer: SequenceReplayBuffer  # type: ignore[assignment]
    _engine: Engine | None
    #: Whether it has learned behind ``VecNormalize``: the buffer holds what the environment gave
    behind_vec_normalize = False
    #: Whether ``load`` was told where the records belong
    _place_given = False
    #: What callbacks want to be called between two steps
    _when_stored: tuple[Callable[[], object], ...] = ()

    def require_statistics(self) -> None:
        """
        :raises ValueError: if stored experience cannot be brought into the units in which the model has learned
        """
        if self.behind_vec_normalize and self._vec_normalize_env is None:
            raise ValueError(
                f"This {type(self).__name__} has learned behind VecNormalize, and the replay buffer holds original "
                "observations and rewards. Load it with its environment: "
                "load(path, VecNormalize.load('vecnormalize.pkl', env))."
            )

    def when_stored(self, function: Callable[[], object]) -> None:
        """
        For callbacks that want the model as it is between two steps, not in one: after the step in progress is stored, and
        the updates that follow it are made.

        :param function: called once
        """
        if function not in self._when_stored:
            self._when_stored = (*self._when_stored, function)

    def _call_waiting(self) -> None:
        waiting, self._when_stored = self._when_stored, ()
        for function in waiting:
            function()

    @property
    def engine(self) -> Engine:
        """Carries out acting steps and updates; made when it is first needed."""
        if self._engine is None or self._engine.policy is not self.policy:
            self._engine = self._make_engine()
        return self._engine

    def _make_engine(self) -> Engine:
        """For subclasses, which know their update."""
        raise NotImplementedError

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto") -> None:
        """As in SB3."""
        super().set_parameters(load_path_or_dict, exact_match, device)
        if self._engine is not None:
            self._engine.forget()

    def _excluded_save_params(self) -> list[str]:
        derived = ["_engine", "_acting_state", "_metrics", "_check_learning", "_guard", "clock", "_step_in_flight", "_loading"]
        derived += ["_learning_rate_schedules", "_team", "_when_stored", "_place_given"]
        return [*super()._excluded_save_params(), *derived]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        others = [
            f"policy.{n}.optimizer" for n, one in self.policy.optimizers.items() if one.optimizer is not self.policy.optimizer
        ]
        return ["policy", "policy.optimizer", *others], []

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model. See SB3's ``BaseAlgorithm.save``; an older file is replaced only by a complete one. Of several ranks
        only rank 0 writes it; the file does not know how many there were.

        :param path: of the zip file
        :param exclude: attributes to leave out, besides those that always are
        :param include: attributes to save that usually are not
        """
        if not is_path(path) or os.path.isdir(path):  # type: ignore[arg-type]
            return super().save(path, exclude, include)
        if rank() > 0:
            return None
        with atomic_file(path, "zip") as file:  # type: ignore[arg-type]
            super().save(file, exclude, include)  # type: ignore[arg-type]

    @classmethod
    def load(  # type: ignore[override]
        cls: type[SelfSaving],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfSaving:
        """
        Load a saved model. See SB3's ``BaseAlgorithm.load``; parts of the file are unpickled, which runs whatever a malicious
        file contains: see :func:`~sb3_dreamer.dreamer_v2.exchange.import_model` for files from strangers.

        :param path: of the zip file
        :param env: to continue training in; may have another number of environments
        :param device: to load to
        :param custom_objects: replacements for things that cannot be unpickled
        :param print_system_info: compare the saving and the loading system
        :param force_reset: begin new episodes
        :param kwargs: constructor arguments to change; a name that is none of these gives a warning
        :return: the model
        :raises ValueError: if the file is damaged or was saved by another algorithm
        """
        unknown = set(kwargs) - set(signature(cls.__init__).parameters) - WRITTEN_BY_TOOLS
        if unknown:
            warnings.warn(f"{cls.__name__}.load() was given unknown arguments, which have no effect: {sorted(unknown)}")
        check_model_file(path)
        model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)
        model._place_given = "storage_path" in (kwargs.get("replay_buffer_kwargs") or {})
        return model

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the buffer; an older file is replaced only by a complete one. Of a buffer on disk only a reference is saved. Every
        rank has a file of its own, ``replay_buffer.rank1.pkl`` beside ``replay_buffer.pkl``.

        :param path: of the file
        """
        assert self.replay_buffer is not None, "The replay buffer is not defined"
        if not is_path(path):
            return save_to_pkl(path, self.replay_buffer, self.verbose)
        named = with_suffix(path)
        with atomic_file(file_of_rank(named)) as file:
            checked = ChecksumWriter(file)
            pickle.dump(self.replay_buffer, checked, protocol=pickle.HIGHEST_PROTOCOL)
            file.write(TRAILER + checked.value.to_bytes(4, "little"))
        if rank() == 0:
            remove_others(named)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Load a saved buffer; if it does not fit, the present one is kept. The file is unpickled, which runs whatever a
        malicious file contains; a buffer on disk (``storage_path``, ``storage_resume``) is opened without. A buffer
        of another number of environments is copied into the present one, episode by episode, as is one that lies elsewhere
        than the ``storage_path`` that was just given says, and so are those of a run with another number of ranks: with fewer
        ranks each takes several, with more of them the later ones take copies.

        What a buffer on disk has received since the file was written is out of sight, and lost when a step is added.

        :param path: of the file
        :param truncate_last_traj: not needed here: after loading every environment begins a new episode in the buffer
        :raises ValueError: if the file is damaged or holds something else, or other shapes
        """
        present: SequenceReplayBuffer | None = self.replay_buffer
        if is_path(path):
            named = with_suffix(path)
            saved = number_of_ranks(named)
            if saved != world_size():
                return self._load_buffers_of(named, saved)
            path = file_of_rank(named) if world_size() > 1 else path
        buffer = self._take_over(path)
        if present is not None and buffer is self.replay_buffer:
            level = None if buffer.storage_compression is None else buffer.storage_compression.level
            if self._place_given and self.replay_buffer_kwargs.get("storage_compression") != level:
                warnings.warn(
                    f"The replay buffer in {buffer.storage_path} keeps its own storage_compression={level}. To change it, "
                    "name a new folder: its episodes are copied there."
                )
            if buffer.buffer_size != present.buffer_size:
                warnings.warn(
                    f"The loaded replay buffer keeps its own size of {buffer.buffer_size * buffer.n_envs} steps, "
                    f"not buffer_size={self.buffer_size}."
                )
            for option in ("prioritize_ends", "sample_running", "handle_timeout_termination"):  # the present choice holds
                setattr(buffer, option, getattr(present, option))

    def _take_over(self, path: Any) -> SequenceReplayBuffer:
        """The buffer of a file becomes the model's, or is copied into it; the present one is kept if neither is possible."""
        present: SequenceReplayBuffer | None = self.replay_buffer
        try:
            buffer = self._read_buffer(path)
            if present is not None and (buffer.n_envs != present.n_envs or self._belongs_elsewhere(buffer)):
                self._copy_buffer(present, buffer)
            else:
                self.replay_buffer = buffer
        except BaseException:
            if present is not None:
                present.reopen()
            raise
        return buffer

    def _belongs_elsewhere(self, loaded: SequenceReplayBuffer) -> bool:
        """Whether the user has just said that the records go to another place than the one where they are."""
        return self._place_given and not _same_folder(self._folder, loaded.storage_path)

    @property
    def _folder(self) -> str | None:
        """Where ``replay_buffer_kwargs`` puts the records of this rank, as seen from where the process was at that time."""
        wanted, present = self.replay_buffer_kwargs.get("storage_path"), self.replay_buffer
        if self._place_given and wanted is not None and present is not None and present.storage_path is not None:
            return present.storage_path
        return None if wanted is None else str(folder_of_rank(wanted))

    def _copy_buffer(self, present: SequenceReplayBuffer, loaded: SequenceReplayBuffer) -> None:
        """Of another number of environments, or at another place."""
        target = self._in_its_place(present, loaded)
        dropped = target.refill(loaded)
        self.replay_buffer = target
        places = [buffer.storage_path or "memory" for buffer in (loaded, target)]
        where = f"in {places[0]}, that of this model in {places[1]}"
        if loaded.n_envs != target.n_envs:
            where = f"of {loaded.n_envs} environments, this model of {target.n_envs}"
        warnings.warn(
            f"The loaded replay buffer is {where}: its episodes were copied"
            + (f", but for the oldest {dropped} steps, for which there is no room." if dropped else ".")
        )

    def _in_its_place(self, present: SequenceReplayBuffer, loaded: SequenceReplayBuffer) -> SequenceReplayBuffer:
        """The buffer to copy into: on disk if that is where it belongs, and a loaded model has not opened its folder yet."""
        folder, make = self._folder, self._make_replay_buffer  # type: ignore[attr-defined]
        if folder is None:  # a folder that another file has brought with it keeps what it holds
            return present if present.storage_path is None else make(self.replay_buffer_kwargs)
        if _same_folder(folder, loaded.storage_path):
            raise ValueError(
                f"The replay buffer in {folder} is of {loaded.n_envs} environments, this model has {present.n_envs}. To copy "
                "its episodes, name a new folder: load(path, env, replay_buffer_kwargs=dict(storage_path='...'))."
            )
        target = present
        if not _same_folder(folder, present.storage_path):
            if is_open(folder):
                raise ValueError(f"The replay buffer in {folder} is in use by another buffer. Name a new folder.")
            target = make({**self.replay_buffer_kwargs, "storage_resume": True})
        if target.num_records > 0:
            raise ValueError(
                f"{folder} holds a replay buffer of {target.num_records} records already, which a copy would replace. Name a "
                "new folder, or delete it if it is of an earlier copy (replay_buffer.reset() empties that of a model); to go "
                "on with it, do not load another buffer."
            )
        return target

    def _read_buffer(self, path: Any) -> SequenceReplayBuffer:
        """A buffer of these spaces from a file."""
        buffer = unpickle(path, self.verbose)
        if not isinstance(buffer, SequenceReplayBuffer):
            raise ValueError(f"{path} holds a {type(buffer).__name__}, not a SequenceReplayBuffer.")
        layout = self.policy.image_size, not self.policy.normalize_images
        buffer.format.check_compatible(RecordFormat(self.observation_space, self.action_space, buffer.n_envs, *layout))
        buffer.device = self.device
        return buffer

    def _load_buffers_of(self, path: pathlib.Path, saved: int) -> None:
        """Buffers of a run with another number of ranks."""
        me, size = rank(), world_size()
        said = f"Rank {me} of {size}: the replay buffers were saved by {saved} ranks"
        if self.replay_buffer_kwargs.get("storage_path") is not None:  # its folder may be in use, and too large for memory
            if me < saved:
                self._take_over(file_of_rank(path))
            warnings.warn(f"{said}, on disk: " + ("its own is taken." if me < saved else "this one begins with an empty one."))
            return
        taken = taken_by(me, size, saved)
        buffers = [self._read_buffer(file_of_rank(path, other)) for other in taken]
        dropped = self.replay_buffer.refill(*buffers)
        warnings.warn(
            f"{said}: the episodes of rank {', '.join(map(str, taken))} were copied"
            + (f", but for the oldest {dropped} steps, for which there is no room." if dropped else ".")
        )


def _same_folder(first: str | None, second: str | None) -> bool:
    return (None if first is None else os.path.realpath(first)) == (None if second is None else os.path.realpath(second))
