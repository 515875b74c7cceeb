"""
The replay buffer's records on disk: a folder that outlives the process that writes it.

    format.json   version, package version, layout
    records.bin   n_envs rings of capacity rows, each row one record; compressed: of as many rows as wait for compression
    chunks.bin    compressed: records in chunks, see :mod:`~sb3_dreamer.replay.rows`
    index.bin     for every row: number of the record, checksum, flags; written after the record, which makes it count
    flushed.bin   records of each ring that are known to be on the disk, with a checksum
    lock          held by the process that writes

Records are written and read with plain file operations: a full disk is an exception, not a signal, and nothing is mapped into
memory. After a kill at any moment every record counts whose index entry fits its content. After a power cut the same is
checked for whatever was written since the last flush.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from sb3_dreamer.common.files import StorageError, atomic_file, lock_folder, read_format
from sb3_dreamer.replay.index import FLAGS, INDEX, RecordIndex
from sb3_dreamer.replay.rows import CompressedRows, Compression, PlainRows
from sb3_dreamer.replay.storage import Field

FORMAT = 1
OTHERS = "than this file refers to: training has gone on from an earlier state, and its records took the place of these."

#: Folders that this process has open: whoever opens one again takes it over
_OPEN: WeakValueDictionary[Path, "DiskStorage"] = WeakValueDictionary()


class DiskStorage:
    """
    Records in a folder, one ring per environment; the interface of :class:`~sb3_dreamer.replay.storage.RamStorage`.

    :param fields: shape and dtype of a record, per name
    :param n_envs: number of rings
    :param capacity: records per ring
    :param folder: made if it is not there
    :param layout: what else must agree when the folder is opened again
    :param resume: go on with what the folder holds; otherwise it must hold nothing
    :param compression: how records are compressed, None if they are not
    :param flush_interval: records (of all rings) after which everything is brought to the disk
    :raises ValueError: if the folder holds something else, another layout, or damaged files
    :raises ImportError: if they are to be compressed and the package ``zstandard`` is missing
    """

    _lock: int | None = None
    _hidden: tuple[np.ndarray, np.ndarray] | None = None  # number of records and the oldest, if the newest are out of sight

    def __init__(
        self,
        fields: Mapping[str, Field],
        n_envs: int,
        capacity: int,
        folder: str | Path,
        layout: str = "",
        resume: bool = False,
        compression: Compression | None = None,
        flush_interval: int = 1000,
    ) -> None:
        self.folder = Path(folder).absolute()
        self.flush_interval = min(flush_interval, capacity)  # what was not flushed has not been overwritten
        self._n_envs, self._capacity = n_envs, capacity
        self._row = np.dtype([(name, field.dtype.newbyteorder("<"), field.shape) for name, field in fields.items()])
        self._format = {
            "format": FORMAT,
            "n_envs": n_envs,
            "capacity": capacity,
            "row": str(self._row.descr),
            "layout": layout,
            "compression": None,
        }
        self._index = RecordIndex(n_envs, capacity)
        self._rows = PlainRows(self._row, n_envs, capacity)
        if compression is not None:
            self._rows = CompressedRows(self._row, n_envs, capacity, compression, max(self.flush_interval, n_envs))
            self._format["compression"] = self._rows.format
        self.written = np.zeros(n_envs, dtype=np.int64)  # records of each ring so far
        self.first = np.zeros(n_envs, dtype=np.int64)  # the oldest that is whole
        self._unflushed = 0
        self._files: dict[str, int] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        exists = (self.folder / "format.json").exists()
        if exists and not resume:
            raise StorageError(
                f"{self.folder} holds a replay buffer already. Set storage_resume=True to go on with it, or name another "
                "folder."
            )
        before = _OPEN.get(self.folder)
        if before is not None:
            before.close()
        self._lock = lock_folder(self.folder)
        _OPEN[self.folder] = self
        try:
            if not exists:
                self._create()
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether the folder is no longer this one's to write."""
        return not self._files

    @property
    def nbytes(self) -> int:
        """Bytes of all records when every ring is full, on the disk, before compression."""
        return (self._row.itemsize + INDEX.itemsize) * self._n_envs * self._capacity

    def view(self, name: str) -> np.ndarray:
        """
        A field of all rows, to read; mapped, not copied, unless it is compressed.

        :param name: name of a field
        :return: (n_envs, capacity, *shape)
        """
        return self._rows.view(self.folder, name, self.first, self.written)

    def write(self, envs: np.ndarray, positions: np.ndarray, records: Mapping[str, np.ndarray]) -> None:
        """
        Append one record to each of some rings.

        :param envs: the rings, (n,)
        :param positions: as in ``RamStorage``; here the rows follow from the numbers of the records
        :param records: one array (n, *shape) for every field
        :raises OSError: if the disk is full; none of the records counts then
        """
        self._check_open()
        if self._hidden is not None:
            self.truncate(self.written.tolist())
        if self._unflushed + len(envs) > self.flush_interval:
            self.flush()
        for env in envs.tolist():
            self._rows.settle(env, int(self.written[env]))
        before = self.written.copy()
        try:
            self._append(envs, records)
        except OSError:
            self.written = before
            with contextlib.suppress(OSError):
                self._withdraw(envs, before)
            raise
        self._unflushed += len(envs)

    def _withdraw(self, envs: np.ndarray, before: np.ndarray) -> None:
        """Entries of records that were not finished, and of the old ones whose rows they have overwritten."""
        for env in envs.tolist():
            number, overwritten = int(before[env]), int(before[env]) - self._capacity
            if self._index.has(env, number) or (overwritten < self.first[env] and self._index.has(env, overwritten)):
                self._index.erase(env, number)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"The replay buffer in {self.folder} has been closed, or opened again by another one.")

    def _append(self, envs: np.ndarray, records: Mapping[str, np.ndarray]) -> None:
        rows = np.empty(len(envs), dtype=self._row)
        for name in self._row.names or ():
            rows[name] = records[name]
        flags = sum(records[name].astype(np.uint8) << bit for bit, name in enumerate(FLAGS))
        for row, flag, env in zip(rows, np.asarray(flags), envs.tolist(), strict=True):
            content, number = row.tobytes(), int(self.written[env])
            self.first[env] = max(self.first[env], number + 1 - self._capacity)
            self._rows.write(env, number, content)
            self._index.write(env, number, content, int(flag))
            self.written[env] += 1

    def read(self, envs: np.ndarray, starts: np.ndarray, length: int) -> dict[str, np.ndarray]:
        """
        Copy sub-sequences, which may run over the end of a ring to its beginning.

        :param envs: the ring of each sub-sequence, (B,)
        :param starts: its first row, (B,)
        :param length: rows per sub-sequence, T, at most the capacity
        :return: one new array (T, B, *shape) per field
        """
        self._check_open()
        names = self._row.names or ()
        result = {n: np.empty((length, len(envs), *self._row[n].shape), self._row[n].base.newbyteorder("=")) for n in names}
        for column, (env, start) in enumerate(zip(envs.tolist(), starts.tolist(), strict=True)):
            newest = int(self.written[env]) - 1
            rows = self._rows.read(env, newest - (newest - start) % self._capacity, length)
            for name in names:
                result[name][:, column] = rows[name]
        return result

    def flush(self) -> None:
        """Bring everything written so far to the disk."""
        if self._unflushed == 0 or self._hidden is not None:
            return
        for env in range(self._n_envs):
            self._rows.settle(env, int(self.written[env]))
        for descriptor in self._files.values():
            _sync(descriptor)
        self._write_counts()
        self._unflushed = 0

    def _write_counts(self) -> None:
        counts = self.written.astype("<i8").tobytes()
        with atomic_file(self.folder / "flushed.bin") as file:
            file.write(counts + zlib.crc32(counts).to_bytes(4, "little"))

    def clear(self) -> None:
        """Forget all records."""
        self._check_open()
        for name, descriptor in self._files.items():
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, self._sizes[name])
        self.written[:], self.first[:], self._unflushed, self._hidden = 0, 0, 1, None
        self._rows.open(self._files, self.written)
        self.flush()

    def truncate(self, written: Sequence[int]) -> None:
        """
        Forget the newest records.

        :param written: records of each ring that are kept, counted since the first ever written
        :raises StorageError: if a ring holds fewer
        """
        before = self._hide(written)
        self._unflushed, self._hidden = 1, None
        try:
            self.flush()  # first of all: from here on a kill at any moment leaves a smaller or a larger part, in order
            for env, (first, count, more) in enumerate(zip(self.first, self.written, before[0], strict=True)):
                self._rows.cut(env, int(first), int(count))
                # Whole as they are, they would count again behind the records that take their places
                for number in reversed(range(max(int(count), int(more) - self._capacity), int(more))):
                    self._index.erase(env, number)
        except OSError:
            self._hidden = before  # to be tried again
            raise

    def hide(self, written: Sequence[int], newest: Sequence[int] | None = None) -> None:
        """
        Leave the newest records out of sight. They stay on the disk until one is written in their place.

        :param written: see :meth:`truncate`
        :param newest: what :meth:`newest` was then
        :raises StorageError: if a ring holds fewer records, or others
        """
        before = self._hide(written)
        self._hidden = before if np.any(before[0] > self.written) else None
        if newest is not None and any(now not in (0, then) for now, then in zip(self.newest(), newest, strict=True)):
            raise StorageError(f"The replay buffer in {self.folder} has other records {OTHERS}")

    def newest(self) -> list[int]:
        """
        :return: checksum of the newest record of each ring, which tells whether these are still the same records; 0 if there
            is none, or it has been overwritten
        """
        self._check_open()
        return [self._index.checksum(env, int(count) - 1) for env, count in enumerate(self.written)]

    def _hide(self, written: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        self._check_open()
        held, first = (self.written, self.first) if self._hidden is None else self._hidden
        wanted = np.array(written, dtype=np.int64)
        if wanted.shape != held.shape or np.any(wanted > held):
            raise StorageError(f"The replay buffer in {self.folder} has {held.tolist()} records, fewer {OTHERS}")
        self.written, self.first = wanted, np.minimum(first, wanted)
        return held, first

    def flags(self, env: int) -> np.ndarray:
        """
        :param env: a ring
        :return: done, timeout and episode start of its records in the order of their numbers, (records, 3) bool
        """
        self._check_open()
        entries = self._index.entries(env, np.arange(self.first[env], self.written[env]))
        return (entries["flags"][:, None] >> np.arange(len(FLAGS), dtype=np.uint8) & 1).astype(bool)

    def damaged(self) -> list[tuple[int, int]]:
        """
        Read everything and compare it with its checksums.

        :return: ring and number of every record that is not what was written
        """
        self._check_open()
        found = []
        for env in range(self._n_envs):
            numbers = range(int(self.first[env]), int(self.written[env]))
            found += [(env, number) for number in numbers if not self._is_whole(env, number)]
        return found

    def close(self) -> None:
        """Flush, and let others write the folder."""
        if self._files:
            self.flush()
        self.close_without_flush()

    def close_without_flush(self) -> None:
        """As a kill would."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files = {}
        self._rows.open({}, self.written)
        self._index.open(-1)  # whose number another file may get
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        try:
            self.close()
        except (OSError, AttributeError, TypeError, ImportError):  # the interpreter is going down
            pass

    # ---------------------------------------------------------------------------------------------------------- opening

    @property
    def _sizes(self) -> dict[str, int]:
        return {**self._rows.sizes, "index.bin": self._index.size}

    def _create(self) -> None:
        """Sparse files: the disk gives room when a row is written. The format comes last, which makes the folder a buffer."""
        for name, size in self._sizes.items():
            with open(self.folder / name, "wb") as file:
                file.truncate(size)
        self._write_counts()
        version = files("sb3_dreamer").joinpath("version.txt").read_text().strip()
        with atomic_file(self.folder / "format.json") as file:
            file.write(json.dumps({**self._format, "sb3_dreamer": version}, indent=1).encode())

    def _open(self) -> None:
        found = read_format(self.folder / "format.json", FORMAT)
        different = [name for name, value in self._format.items() if found.get(name) != value]
        if different:
            texts = [f"{name}: the folder has {found.get(name)}, expected {self._format[name]}" for name in different]
            raise StorageError(f"The replay buffer in {self.folder} does not fit: " + "; ".join(texts) + ".")
        for name, size in self._sizes.items():
            path = self.folder / name
            held = path.stat().st_size if path.exists() else 0
            if held != size or not path.exists():
                raise StorageError(f"{path} is damaged: it has {held} bytes, expected {size}.")
            self._files[name] = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        flushed = self._flushed_counts()
        self._rows.open(self._files, flushed)
        self._index.open(self._files["index.bin"])
        self._recover(flushed)
        self._unflushed = int((self.written - flushed).sum())

    def _flushed_counts(self) -> np.ndarray:
        path = self.folder / "flushed.bin"
        content = path.read_bytes() if path.exists() else b""
        counts, check = content[:-4], content[-4:]
        if len(counts) != 8 * self._n_envs or zlib.crc32(counts).to_bytes(4, "little") != check:
            raise StorageError(f"{path} is damaged: it has {len(content)} bytes that do not fit their checksum.")
        return np.frombuffer(counts, "<i8").astype(np.int64)

    def _recover(self, flushed: np.ndarray) -> None:
        """Count what was written after the last flush, and leave out old records that were being overwritten."""
        for env in range(self._n_envs):
            count = int(flushed[env])
            for number, content in self._rows.cut_off(env, count):  # by a truncation that was not finished
                if not self._is_whole(env, number) and self._index.fits(env, number, content):
                    self._rows.write(env, number, content)
            while count < flushed[env] + self._capacity and self._is_whole(env, count):
                count += 1
            oldest = self._index.oldest(env, count)
            # The rows after the newest record, those of the oldest, may hold pieces of records that never counted
            for number in range(oldest, min(count + self.flush_interval + 1 - self._capacity, count)):
                if not self._is_whole(env, number):
                    oldest = number + 1
            self.written[env], self.first[env] = count, oldest
            self._index.erase_others(env, oldest, count)

    def _is_whole(self, env: int, number: int) -> bool:
        if not self._index.has(env, number):
            return False
        try:
            return self._index.fits(env, number, self._rows.read(env, number, 1).tobytes())
        except ValueError:  # of a chunk
            return False


def is_open(folder: str | Path) -> bool:
    """
    :param folder: of a buffer
    :return: whether this process has it open
    """
    place = os.path.realpath(folder)
    return any(os.path.realpath(storage.folder) == place for storage in _OPEN.values() if not storage.closed)


def _sync(descriptor: int) -> None:
    getattr(os, "fdatasync", os.fsync)(descriptor)
