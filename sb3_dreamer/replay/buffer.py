"""
The replay buffer of the world model: SB3's interface, but with arrival records and sub-sequences.

Record t is (observation, action that led to it, reward on arrival, done, timeout, episode start):

    add(o0, o1, a0, r1, ...)   ->  [o0, 0, 0, start]  [o1, a0, r1]      the first add of an episode writes two records
    add(o1, o2, a1, r2, done)  ->                     [o2, a1, r2, done]   o2 is the terminal observation
    add(o0', o1', a0', ...)    ->  [o0', 0, 0, start] [o1', a0', ...]

No frame is stored twice, the terminal observation and its reward are learned from, and the observation after a reset
has the zero action. Environments end their episodes at different times, hence one write position per environment.
"""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.files import DamageError, FormatError, StorageError
from sb3_dreamer.common.observations import OBSERVATION_KEY
from sb3_dreamer.common.preprocessing import ImageSize, NumpyObs, action_dim
from sb3_dreamer.common.type_aliases import SequenceBatch
from sb3_dreamer.common.version import VERSION
from sb3_dreamer.replay.disk_storage import DiskStorage
from sb3_dreamer.replay.records import OBSERVATION_PREFIX, RecordFormat
from sb3_dreamer.replay.rings import Rings
from sb3_dreamer.replay.rows import Compression
from sb3_dreamer.replay.storage import RamStorage, RecordStorage

PICKLE_FORMAT = 3
PIECE = 256  # records that are looked at together


class Outlier(NamedTuple):
    """A finite but absurd value in a record."""

    ring: int
    number: int
    field: str
    size: float  # magnitude


def _view_of(name: str, docstring: str) -> Any:
    """Property that shows one field of all records, time first."""
    return property(lambda buffer: buffer.storage.view(name).swapaxes(0, 1), doc=docstring)


def _compression(level: int | None, path: str | None) -> Compression | None:
    """The option ``storage_compression``, checked."""
    if level is None:
        return None
    if path is None:
        raise ValueError(f"storage_compression={level} needs a storage_path: records in memory are not compressed.")
    if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= 22:
        raise ValueError(f"storage_compression must be a level of zstandard from 1 to 22, or None, but is {level!r}.")
    return Compression(level)


class SequenceReplayBuffer(ReplayBuffer):
    """
    Experience of the agent, sampled uniformly as sub-sequences of fixed length.

    A sub-sequence never crosses the write head of its ring, but may span the end of an episode
    (``SequenceBatch.episode_starts`` tells where the latent state is reset), so short episodes are not lost.

    :param buffer_size: records over all environments; every episode takes one more than it has steps
    :param observation_space: Box, Discrete, MultiDiscrete, MultiBinary or a Dict of these
    :param action_space: Discrete, MultiDiscrete, MultiBinary or Box
    :param device: where sampled tensors go
    :param n_envs: number of environments, each of which gets ``buffer_size // n_envs`` records
    :param optimize_memory_usage: not supported: no frame is stored twice anyway
    :param handle_timeout_termination: an episode cut by a time limit (``infos[i]["TimeLimit.truncated"]``) has ended, but
        has not terminated: its last record keeps ``continues = 1``. With False every end is a termination
    :param batch_length: records per sub-sequence, T (50 in the released DreamerV2 code)
    :param image_size: (height, width) to which frames are resized before they are stored; None keeps their size
    :param float_images: whether float Boxes of rank 3 are images; these are stored unchanged
    :param prioritize_ends: every sub-sequence has the same probability mass 1, and one whose last record ends an episode
        has ``batch_length`` more, as in the released code (True there); uniform if False. An episode cut off by a reset
        of the environment has no end in this sense, since nothing happened there
    :param storage_path: folder in which the records are kept on the disk instead of in memory; see docs/reliability.md
    :param storage_resume: continue with the records in this folder; otherwise it must be empty
    :param storage_compression: compress the records there, with this level of zstandard from 1 (fastest) to 22 (smallest)
    :param sample_running: whether records of running episodes may be sampled; if not, as in the released code, they wait
        until the episode ends or is cut off by a reset
    :raises ValueError: if an option or a space is not supported
    """

    #: Attributes that a buffer from a file takes over from the model that loads it
    options_of_the_model: tuple[str, ...] = ("prioritize_ends", "sample_running", "handle_timeout_termination")

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        batch_length: int = 50,
        image_size: ImageSize = (64, 64),
        float_images: bool = False,
        prioritize_ends: bool = True,
        sample_running: bool = True,
        storage_path: str | None = None,
        storage_resume: bool = False,
        storage_compression: int | None = None,
    ) -> None:
        # ReplayBuffer.__init__ is not called: it allocates every frame twice
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage=True is not supported: every frame is stored once anyway. Leave it out.")
        if storage_resume and storage_path is None:
            raise ValueError("storage_resume=True needs a storage_path: there is no folder to resume from.")
        if batch_length < 1:
            raise ValueError(f"batch_length must be at least 1, but is {batch_length}.")
        self.storage_path = None if storage_path is None else str(Path(storage_path).absolute())
        self.storage_compression = _compression(storage_compression, storage_path)
        self.rings = Rings(buffer_size, n_envs)
        self.buffer_size = self.rings.capacity
        self.observation_space = observation_space
        self.action_space = action_space
        self.device = get_device(device)
        self.n_envs = n_envs
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.batch_length = batch_length
        self.image_size: ImageSize = None if image_size is None else (image_size[0], image_size[1])
        self.float_images = float_images
        self.prioritize_ends = prioritize_ends
        self.sample_running = sample_running
        self._make_storage(storage_resume)  # refuses unsupported spaces
        self.action_dim = action_dim(action_space)
        self.obs_shape = get_obs_shape(observation_space)  # type: ignore[assignment]  # SB3 annotates the Box case only
        self.seed(None)

    def _make_storage(self, resume: bool, packed: Any = None) -> None:
        """Make the storage, with what it packed before, and count what its folder holds."""
        layout = self.observation_space, self.action_space, self.n_envs, self.image_size, self.float_images
        self.format = RecordFormat(*layout)
        size = self.format.row, self.n_envs, self.buffer_size
        self.storage: RecordStorage = RamStorage(*size)
        if self.storage_path is not None:
            how = self.format.description, resume, self.storage_compression
            self.storage = DiskStorage(*size, self.storage_path, *how)
        if packed is not None:
            self.storage.unpack(packed)
        if isinstance(self.storage, DiskStorage):
            self.rings.take_over(self.storage.written, self.storage.first, self.storage.ends(), self.storage.holes)

    def seed(self, seed: int | None) -> None:
        """
        Seed the choice of sub-sequences.

        :param seed: None draws a seed from NumPy's global generator, which SB3 seeds
        """
        self._rng = np.random.default_rng(np.random.randint(2**31 - 1) if seed is None else seed)

    @property
    def random_state(self) -> dict[str, Any]:
        """State of the generator that chooses sub-sequences, as values for JSON."""
        return self._rng.bit_generator.state  # type: ignore[return-value]

    @random_state.setter
    def random_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def reset(self) -> None:
        """Forget all records; memory once allocated, and files, are kept."""
        self.storage.clear()
        self.rings.clear()

    @property
    def positions(self) -> np.ndarray:
        """Row that each ring writes next, (n_envs,)."""
        return self.rings.written % self.buffer_size

    @property
    def pos(self) -> int:  # type: ignore[override]  # an attribute in SB3, which has one position for all environments
        """The largest of :attr:`positions`."""
        return int(self.positions.max())

    @property
    def full(self) -> bool:  # type: ignore[override]
        """Whether at least one ring is full; with n_envs > 1 others may lag behind by a few records."""
        return self.size() == self.buffer_size

    def size(self) -> int:
        """Number of records in the fullest ring."""
        return int(self.rings.rows.max())

    @property
    def num_records(self) -> int:
        """Records stored over all environments."""
        return self.rings.count()

    @property
    def num_sampleable(self) -> int:
        """Records that :meth:`sample` may use now: with ``sample_running=False`` those of running episodes wait."""
        return self.rings.count(self.sample_running)

    def memory_bytes(self) -> int:
        """Bytes that the full buffer takes in memory, or on the disk before compression; nothing is allocated to know this."""
        return self.storage.nbytes

    @property
    def observations(self) -> np.ndarray | dict[str, np.ndarray]:  # type: ignore[override]
        """Stored observations, (capacity, n_envs, *shape), a dict of them for Dict spaces; no rows before the first add."""
        keys = self.format.observations.parts
        views = {key: self.storage.view(OBSERVATION_PREFIX + key).swapaxes(0, 1) for key in keys}
        return views if isinstance(self.observation_space, spaces.Dict) else views[OBSERVATION_KEY]

    actions = _view_of("action", "Buffer actions that led to the records, (capacity, n_envs, action_dim).")
    rewards = _view_of("reward", "Rewards on arrival, (capacity, n_envs).")
    dones = _view_of("done", "Whether the record ended an episode, (capacity, n_envs) bool.")
    timeouts = _view_of("timeout", "Whether a time limit ended it, (capacity, n_envs) bool.")

    def start_episodes(self, indices: np.ndarray | list[int] | None = None) -> None:
        """
        Tell the buffer that environments were reset: their next :meth:`add` begins an episode.

        :param indices: the environments; None means all of them
        """
        self.rings.starting[slice(None) if indices is None else indices] = True

    def add(  # type: ignore[override]  # SB3 annotates arrays, and passes dicts as well
        self,
        obs: NumpyObs,
        next_obs: NumpyObs,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition of every environment. Nothing is stored if an argument is refused.

        :param obs: observations before the step, (n_envs, *shape) or a dict; read only where an episode begins
        :param next_obs: observations after it; where an episode ended its last one, not the first of the next
        :param action: buffer actions: Box values scaled to [-1, 1], indices of all other spaces
        :param reward: (n_envs,)
        :param done: (n_envs,)
        :param infos: one dict for each environment
        :raises ValueError: if something has the wrong shape or dtype or is not finite, naming environment, key and value
        """
        starts = np.flatnonzero(self.rings.starting)
        first = self.format.start_records(obs, starts) if len(starts) else {}
        arrival = self.format.arrival_records(next_obs, action, reward, done, infos)
        if not self.handle_timeout_termination:
            arrival["timeout"][:] = False
        if len(starts):
            self.rings.episode_first[starts] = self.rings.written[starts]
            self.append(starts, first)
        self.append(np.arange(self.n_envs), arrival)
        self.rings.starting = arrival["done"]

    def sample(  # type: ignore[override]  # sequences, where SB3 returns single transitions
        self, batch_size: int, env: VecNormalize | None = None, batch_length: int | None = None
    ) -> SequenceBatch:
        """
        Draw sub-sequences of consecutive records; as long as no ring holds enough of them, shorter ones.

        :param batch_size: number of sub-sequences, B
        :param env: normalizes vector observations and rewards with its current statistics
        :param batch_length: records per sub-sequence, T; None means the constructor's value
        :return: tensors (T, B, ...) on the buffer's device; no memory is shared with the buffer
        :raises ValueError: if there is nothing to sample (see :attr:`num_sampleable`), or the ring is too small for T
        """
        length = self.batch_length if batch_length is None else batch_length
        while True:
            windows = self.rings.draw_windows(self._rng, batch_size, length, self.sample_running, self.prioritize_ends)
            try:
                return self.recall(*windows, env)
            except DamageError:
                if not self.leave_out_damaged():
                    raise

    def recall(self, envs: np.ndarray, starts: np.ndarray, length: int, env: VecNormalize | None = None) -> SequenceBatch:
        """
        Read chosen sub-sequences.

        :param envs: the ring of each, (B,)
        :param starts: number of its first record in the ring, (B,)
        :param length: records per sub-sequence, T
        :param env: see :meth:`sample`
        :return: see :meth:`sample`
        :raises DamageError: if a record on the disk is not what was written
        """
        return self.format.batch(self.storage.read(envs, starts, length), env, self._to_device)

    def __getstate__(self) -> dict[str, Any]:
        attributes = {name: value for name, value in self.__dict__.items() if name not in ("format", "storage")}
        return {
            "format": PICKLE_FORMAT,
            "package_version": VERSION,
            "attributes": attributes | {"device": str(self.device), "rings": deepcopy(self.rings)},
            "records": self.storage.pack(self.rings.rows.tolist()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state.get("format") != PICKLE_FORMAT:
            raise FormatError(
                f"This replay buffer was saved in format {state.get('format')} by sb3_dreamer {state.get('package_version')}; "
                f"sb3_dreamer {VERSION} reads format {PICKLE_FORMAT}. Load it with the version that saved it, or record the "
                "data again."
            )
        self.__dict__.update(state["attributes"])
        self.device = get_device(self.device)  # the CPU, if it was saved on a GPU that is not here
        self.start_episodes()  # whoever continues has reset the environments
        if self.storage_path is not None and not Path(self.storage_path, "format.json").exists():
            raise StorageError(f"The records of this replay buffer are in {self.storage_path}, but there is no such buffer.")
        held = self.num_records
        self._make_storage(True, state["records"])
        if self.num_records < held:
            warnings.warn(
                f"The replay buffer in {self.storage_path} has {self.num_records} of the {held} records that it had when this "
                "file was written: later ones have overwritten the others."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "SequenceReplayBuffer":
        if self.storage_path is not None:
            raise ValueError(
                f"The replay buffer in {self.storage_path} cannot be copied, since two would write into one folder. Save the "
                "model and its buffer, and load them with replay_buffer_kwargs=dict(storage_path='another folder')."
            )
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__setstate__(deepcopy(self.__getstate__(), memo))
        copied.rings = deepcopy(self.rings)
        return copied

    def append(self, envs: np.ndarray, records: dict[str, np.ndarray]) -> None:
        """
        Append finished records, one to each of some rings; :meth:`add` checks transitions and makes records of them.

        :param envs: the rings, (n,)
        :param records: one array (n, *shape) for every field
        """
        try:
            self.storage.write(envs, self.rings.written[envs], records)
        except OSError:  # a full disk
            self.rings.lose_next_rows()
            raise
        self.rings.append(envs, records["done"])

    def refill(self, *sources: "SequenceReplayBuffer") -> int:
        """
        Replace all records by those of other buffers, episode by episode, the oldest first.

        :param sources: with the same spaces; numbers of environments and records may differ
        :return: number of records that had no room, the oldest; damaged ones are not counted
        """
        for source in sources:
            source.leave_out_damaged()  # a copy would give them a new checksum
        self.reset()
        episodes = [
            (first - int(source.rings.written[env]), source, env, first, end)
            for source in sources
            for env, first, end in source.rings.episodes()
        ]
        for _, source, env, first, end in sorted(episodes, key=lambda part: part[0]):
            ring = int(self.rings.written.argmin())
            for number in range(first, end):
                self.copy_record(source, (env, number), ring, starts=number == first)
        return sum(source.num_records for source in sources) - self.num_records

    def copy_record(self, source: "SequenceReplayBuffer", place: tuple[int, int], ring: int, starts: bool) -> None:
        """
        Append a copy of one record.

        :param source: where it is
        :param place: ring and number there
        :param ring: to append it to
        :param starts: whether an episode, or what is left of it, starts with it
        """
        records = source.storage.read(np.array(place[:1]), np.array(place[1:]), 1)
        record = {name: value[0] for name, value in records.items()}
        record["episode_start"] |= starts
        self.append(np.array([ring]), record)

    def serves(self, like: "SequenceReplayBuffer") -> bool:
        """
        Whether this buffer can take the place of a model's own, instead of being copied into it.

        :param like: the model's
        """
        return type(self) is type(like)

    def leave_out_damaged(self) -> int:
        """
        Compare all records on the disk with their checksums, and never sample those that are damaged again. They stay on the
        disk. Sampling calls this when it meets one.

        :return: how many were found that were not known, with a warning
        """
        found = self.storage.damaged()
        if found:
            self.storage.leave_out(found)
            self.rings.leave_out(found)
            (env, number), count = found[0], len(found)
            warnings.warn(
                f"The replay buffer in {self.storage_path} has {count} damaged records, the first of them number {number} of "
                f"ring {env}. They are no longer sampled; {self.num_records} are left."
            )
        return len(found)

    def drop(self, records: Sequence[tuple[int, int]]) -> None:
        """
        Remove records permanently, on the disk too.

        :param records: ring and number of each
        """
        self.storage.leave_out(records, for_good=True)
        self.rings.leave_out(records)

    def outliers(self, limit: float) -> list[Outlier]:
        """
        Find finite but absurd values, such as a reward of 1e30, with which updates fail again and again.

        :param limit: largest magnitude that is not absurd
        :return: every record whose observation, action or reward goes beyond it
        """
        self.leave_out_damaged()
        found: list[Outlier] = []
        for env, start, end in self.rings.episodes():
            for first in range(start, end, PIECE):
                records = self.storage.read(np.array([env]), np.array([first]), min(PIECE, end - first))
                for name, values in records.items():
                    if values.dtype.kind == "f":
                        sizes = np.abs(values).reshape(len(values), -1).max(axis=1)
                        found += [Outlier(env, first + int(n), name, float(sizes[n])) for n in np.flatnonzero(sizes > limit)]
        return found

    def drop_outliers(self, limit: float) -> int:
        """
        Drop the records of :meth:`outliers`.

        :param limit: as there
        :return: how many
        """
        records = sorted({(outlier.ring, outlier.number) for outlier in self.outliers(limit)})
        self.drop(records)
        return len(records)

    def describe_outliers(self, limit: float = 1e6) -> str:
        """
        Name absurd values for an error's text.

        :param limit: as in :meth:`outliers`
        :return: a sentence; empty if there are none
        """
        found = self.outliers(limit)
        names = ", ".join(f"{one.field} {one.size:.3g} in record {one.number} of ring {one.ring}" for one in found[:3])
        few = f"The replay buffer has {len(found)} values beyond {limit:g}, such as {names}. If they are errors, "
        return f" {few}replay_buffer.drop_outliers({limit:g}) drops their records." if found else ""

    def reopen(self) -> None:
        """Take back the folder that another buffer of this process has opened in the meantime."""
        if isinstance(self.storage, DiskStorage) and self.storage.closed:
            self._make_storage(True, {"written": self.rings.written.tolist()})

    def _to_device(self, array: np.ndarray) -> th.Tensor:
        values = th.from_numpy(array)
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)  # does not wait for a running update
