"""The replay buffer of DreamerV3: sequences begin in the latent states that the world model had there before."""

from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from sb3_dreamer.common.files import DamageError
from sb3_dreamer.common.preprocessing import NumpyObs
from sb3_dreamer.common.type_aliases import ContextBatch, LatentState
from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.replay.disk_storage import DiskStorage
from sb3_dreamer.replay.states import DiskStates, RamStates, StateSizes, StateStorage


class ContextSample(NamedTuple):
    """Sequences, and where they are in the buffer."""

    batch: ContextBatch
    envs: np.ndarray  # ring of each sequence, (B,)
    firsts: np.ndarray  # number of the first record that is trained on, (B,)


class ContextReplayBuffer(SequenceReplayBuffer):
    """
    A :class:`SequenceReplayBuffer` that also stores the latent states of its records.

    A sequence of T records is sampled together with the record before it, whose stored state it begins in (V3's code,
    ``replay_context`` 1). States come from acting, and every update replaces those of the records that it has trained on by
    its own. Where no state is stored, the sequence begins with a reset of the latent state.

    Each new chunk of T + 1 records of an environment is sampled once as soon as it is complete (V3's code: online queue); the
    rest of a batch is drawn uniformly. An episode that was cut off by a reset ends where the next one starts.

    :param buffer_size: see :class:`SequenceReplayBuffer`, as all that is not explained here
    :param observation_space: see there
    :param action_space: see there
    :param device: see there
    :param n_envs: see there
    :param optimize_memory_usage: see there
    :param handle_timeout_termination: see there
    :param batch_length: records per sequence that are trained on, T (V3: 64)
    :param image_size: see there
    :param float_images: see there
    :param prioritize_ends: see there (V3's code samples uniformly: False)
    :param sample_running: see there
    :param storage_path: see there; the states are in a file of this folder, which no checksum covers
    :param storage_resume: see there
    :param storage_compression: see there; states are not compressed
    :param states: sizes of the latent states
    :param online: whether new chunks are sampled at once (V3's code: yes)
    :raises ValueError: if an option or a space is not supported
    """

    options_of_the_model = (*SequenceReplayBuffer.options_of_the_model, "online", "batch_length")

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        batch_length: int = 64,
        image_size: tuple[int, int] | None = (64, 64),
        float_images: bool = False,
        prioritize_ends: bool = False,
        sample_running: bool = True,
        storage_path: str | None = None,
        storage_resume: bool = False,
        storage_compression: int | None = None,
        *,
        states: StateSizes,
        online: bool = True,
    ) -> None:
        if not isinstance(online, bool):
            raise ValueError(f"online must be True or False, but is {online!r}.")
        self.state_sizes, self.online = states, online
        #: Ring and first record of chunks that wait to be sampled
        self.queue: deque[tuple[int, int]] = deque()
        self._acted: np.ndarray | None = None  # states of the observations that were acted on last, (n_envs,)
        super().__init__(
            buffer_size,
            observation_space,
            action_space,
            device,
            n_envs,
            optimize_memory_usage,
            handle_timeout_termination,
            batch_length,
            image_size,
            float_images,
            prioritize_ends,
            sample_running,
            storage_path,
            storage_resume,
            storage_compression,
        )
        if self.buffer_size <= batch_length:
            raise ValueError(
                f"buffer_size={buffer_size} over n_envs={n_envs} environments holds {self.buffer_size} records of each, but "
                f"batch_length={batch_length} needs {batch_length + 1}: the sequence, and the record before it. Choose a "
                "larger buffer_size, a smaller batch_length or fewer environments."
            )

    def _make_storage(self, resume: bool, packed: Any = None) -> None:
        super()._make_storage(resume, packed)
        size = self.state_sizes, self.n_envs, self.buffer_size
        self.states: StateStorage = RamStates(*size)
        if isinstance(self.storage, DiskStorage):
            with suppress(PermissionError):  # of a folder that can only be read: its records are still learned from
                self.states = DiskStates(*size, self.storage.folder, self.storage.identity)

    @property
    def num_sampleable(self) -> int:
        """Sequences of ``batch_length`` records, with one before them, that :meth:`sample_with_context` may use now."""
        _, first, end = self.rings.runs(self.sample_running)
        return int(np.maximum(end - first - self.batch_length, 0).sum())

    def memory_bytes(self) -> int:
        return super().memory_bytes() + self.states.nbytes

    def reset(self) -> None:
        super().reset()
        self.states.clear(self.storage.identity if isinstance(self.storage, DiskStorage) else 0)
        self.queue.clear()

    # ---------------------------------------------------------------------------------------------------------- storing

    def note_states(self, states: LatentState) -> None:
        """
        Take the states in which all environments were just acted; the next :meth:`add` stores them with the observations that
        it calls ``obs``.

        :param states: posterior states of these observations, (n_envs, ...)
        """
        self._acted = self.state_sizes.to_rows(states)

    def add(  # type: ignore[override]
        self,
        obs: NumpyObs,
        next_obs: NumpyObs,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        acted_on = self.rings.written - ~self.rings.starting
        super().add(obs, next_obs, action, reward, done, infos)
        if self._acted is not None:
            for env, number in enumerate(acted_on.tolist()):
                self.states.write(env, number, self._acted[env : env + 1])
            self._acted = None

    def append(self, envs: np.ndarray, records: dict[str, np.ndarray]) -> None:
        super().append(envs, records)
        if not self.online:
            return
        length = self.batch_length + 1
        for env, count in zip(envs.tolist(), self.rings.written[envs].tolist(), strict=True):
            if count % length == 0:
                self.queue.append((env, count - length))
        while len(self.queue) > self.n_envs * self.buffer_size // length + self.n_envs:
            self.queue.popleft()  # overwritten long ago, without a single update

    def write_back(self, envs: np.ndarray, firsts: np.ndarray, states: LatentState) -> None:
        """
        Replace the stored states of sequences by those of an update. Records that were overwritten meanwhile are left out.

        :param envs: of the :class:`ContextSample`
        :param firsts: likewise
        :param states: posterior states, (T, B, ...)
        """
        rows = self.state_sizes.to_rows(states)
        for column, (env, first) in enumerate(zip(envs.tolist(), firsts.tolist(), strict=True)):
            start = max(int(self.rings.first[env]) - first, 0)
            end = min(int(self.rings.written[env]) - first, len(rows))
            if start < end:
                self.states.write(env, first + start, rows[start:end, column])

    # --------------------------------------------------------------------------------------------------------- sampling

    def sample_with_context(
        self, batch_size: int, env: VecNormalize | None = None, batch_length: int | None = None
    ) -> ContextSample:
        """
        Draw sequences of consecutive records, with the states that are stored one record before them.

        :param batch_size: number of sequences, B
        :param env: see :meth:`sample`
        :param batch_length: records per sequence, T; None means the constructor's value
        :return: sequences, and where they are
        :raises ValueError: if no ring has a sequence of this length yet
        """
        length = (self.batch_length if batch_length is None else batch_length) + 1
        while True:
            envs, numbers = self._draw(batch_size, length)
            try:
                return self.recall_with_context(envs, numbers, length, env)
            except DamageError:
                if not self.leave_out_damaged():
                    raise

    def _draw(self, batch_size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ring and first record of each sequence: first those of the queue, as often as they are still there."""
        ring, start, end = self.rings.runs(self.sample_running)
        if (end - start).max() < length:
            raise ValueError(
                f"The replay buffer has {self.num_records} records, but no environment has {length} of them in a row yet: "
                f"batch_length={length - 1}, and the record before them. Collect more, or choose a smaller batch_length."
            )
        chosen: list[tuple[int, int]] = []
        while self.queue and len(chosen) < batch_size:
            env, first = self.queue.popleft()
            if ((ring == env) & (start <= first) & (first + length <= end)).any():
                chosen.append((env, first))
        envs, numbers = (np.array([part[i] for part in chosen], dtype=np.int64) for i in range(2))
        if len(chosen) == batch_size:
            return envs, numbers
        rest = batch_size - len(chosen), length, self.sample_running, self.prioritize_ends
        drawn, firsts, _ = self.rings.draw_windows(self._rng, *rest)
        return np.concatenate([envs, drawn]), np.concatenate([numbers, firsts])

    def recall_with_context(
        self, envs: np.ndarray, numbers: np.ndarray, length: int, env: VecNormalize | None = None
    ) -> ContextSample:
        """
        Read chosen sequences.

        :param envs: the ring of each, (B,)
        :param numbers: of the record before each sequence, (B,)
        :param length: records of each, this one included, T + 1
        :param env: see :meth:`sample`
        :return: sequences of T records, and where they are
        :raises DamageError: if a record on the disk is not what was written
        """
        records = {name: values[1:] for name, values in self.storage.read(envs, numbers, length).items()}
        rows, unknown = self.states.read(envs, numbers)
        records["episode_start"][0] |= unknown
        steps = self.format.batch(records, env, self._to_device, resets_first=False)
        return ContextSample(ContextBatch(steps, self.state_sizes.to_states(rows, self._to_device)), envs, numbers + 1)

    # ----------------------------------------------------------------------------------------------- pickling and copying

    def serves(self, like: SequenceReplayBuffer) -> bool:
        return super().serves(like) and self.state_sizes == like.state_sizes  # type: ignore[attr-defined]

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["attributes"]["states"]
        return state | {"states": self.states.pack(self.rings.rows.tolist())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.states.unpack(state["states"])

    def refill(self, *sources: SequenceReplayBuffer) -> int:
        dropped = super().refill(*sources)
        self.queue.clear()  # these chunks are not new
        return dropped

    def copy_record(self, source: SequenceReplayBuffer, place: tuple[int, int], ring: int, starts: bool) -> None:
        super().copy_record(source, place, ring, starts)
        if isinstance(source, ContextReplayBuffer) and source.state_sizes == self.state_sizes:
            rows, unknown = source.states.read(np.array(place[:1]), np.array(place[1:]))
            if not unknown[0]:
                self.states.write(ring, int(self.rings.written[ring]) - 1, rows)
