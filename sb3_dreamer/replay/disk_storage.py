"""
The replay buffer's records on disk: a folder that outlives the process that writes it.

    format.json   version, package version, layout
    records.bin   n_envs rings of capacity rows, one record each; compressed: only the rows of records that await compression
    chunks.bin    compressed: records in chunks, see :mod:`~sb3_dreamer.replay.rows`
    index.bin     for every row: number of the record, checksum, flags; written after the record, which makes it count
    flushed.bin   records of each ring that are known to be on the disk, with a checksum
    lock          held by the process that writes

Records are written and read with plain file operations: a full disk is an exception, not a signal, and nothing is mapped into
memory. After a kill at any moment, every record counts whose index entry fits its content. After a power cut, the same check
covers whatever was written since the last flush.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from sb3_dreamer.common.files import StorageError, atomic_file
from sb3_dreamer.common.version import VERSION
from sb3_dreamer.replay.rows import CompressedRows, Compression, PlainRows, RingFile
from sb3_dreamer.replay.storage import RecordStorage

FORMAT = 1
INDEX = np.dtype([("number", "<i8"), ("checksum", "<u4"), ("flags", "u1"), ("unused", "u1", (3,))])
FLAGS = ("done", "timeout", "episode_start")
PIECE = 1 << 14  # index entries that are read together
#: An index entry that belongs to no record, from its first byte on
NOTHING = np.array([(-1, 0, 0, (0, 0, 0))], dtype=INDEX).tobytes()
OTHERS = "than this file refers to: training has gone on from an earlier state, and its records took the place of these."

#: Folders that this process has open. Opening one again takes it over
_OPEN: WeakValueDictionary[Path, "DiskStorage"] = WeakValueDictionary()


class _RecordIndex(RingFile):
    """Rings of entries, one for every record: its number, its checksum and its flags."""

    name = "index.bin"

    def enter(self, env: int, number: int, content: bytes, flags: int) -> None:
        """Make a record count."""
        self.write(env, number, np.array((number, _checksum(content, number, flags), flags, 0), dtype=INDEX).tobytes())

    def erase(self, env: int, number: int) -> None:
        """Erase whatever entry is in the place of a record."""
        self.write(env, number, NOTHING)

    def checksum(self, env: int, number: int) -> int:
        """Checksum of a record, or 0 if it has no entry."""
        entry = self.read(env, number, 1)[0]
        return int(entry["checksum"]) if entry["number"] == number else 0

    def fits(self, env: int, number: int, content: bytes) -> bool:
        """Whether a record has an entry that fits this content."""
        entry = self.read(env, number, 1)[0]
        return bool(entry["number"] == number and entry["checksum"] == _checksum(content, number, int(entry["flags"])))

    def oldest(self, env: int, count: int) -> int:
        """The oldest record from which on none is missing, if ``count`` have ever been written."""
        first = max(0, count - self._capacity)
        entries = self.read(env, first, count - first)
        missing = np.flatnonzero((entries["number"] != np.arange(first, count)) | (entries["checksum"] == 0))
        return first + int(missing[-1]) + 1 if len(missing) else first

    def erase_others(self, env: int, first: int, end: int) -> None:
        """Erase the entries of all other records, which would count again once newer records precede them."""
        for start in range(0, self._capacity, PIECE):
            piece = self.read(env, start, min(PIECE, self._capacity - start))
            dead = (piece["checksum"] != 0) & ((piece["number"] < first) | (piece["number"] >= end))
            for row in np.flatnonzero(dead).tolist():
                self.erase(env, start + row)


class DiskStorage(RecordStorage):
    """
    Records in a folder.

    :param row: names, dtypes and shapes of the fields of a record
    :param n_envs: number of rings
    :param capacity: records per ring
    :param folder: created if it does not exist
    :param layout: what else must agree when the folder is opened again
    :param resume: continue with the records in the folder; otherwise it must hold none
    :param compression: how records are compressed, None if they are not
    :param flush_interval: records (of all rings) after which everything is brought to the disk
    :raises ValueError: if the folder holds something else, another layout, or damaged files
    :raises ImportError: if they are to be compressed and the package ``zstandard`` is missing
    """

    _lock: int | None = None
    _hidden: tuple[np.ndarray, np.ndarray] | None = None  # written and first, if the newest records are hidden

    def __init__(
        self,
        row: np.dtype,
        n_envs: int,
        capacity: int,
        folder: str | Path,
        layout: str = "",
        resume: bool = False,
        compression: Compression | None = None,
        flush_interval: int = 1000,
    ) -> None:
        super().__init__(row.newbyteorder("<"), n_envs, capacity)
        self.folder = Path(folder).absolute()
        self.flush_interval = min(flush_interval, capacity)  # what was not flushed has not been overwritten
        self._index = _RecordIndex(INDEX, n_envs, capacity)
        size = self._row, n_envs, capacity
        self._rows = PlainRows(*size)
        if compression is not None:
            self._rows = CompressedRows(*size, compression, max(self.flush_interval, n_envs))
        self._format = {
            "format": FORMAT,
            "n_envs": n_envs,
            "capacity": capacity,
            "row": str(self._row.descr),
            "layout": layout,
            "compression": self._rows.format,
        }
        self.written = np.zeros(n_envs, dtype=np.int64)  # number that the next record of each ring gets
        self.first = np.zeros(n_envs, dtype=np.int64)  # number of the oldest record that is whole
        self._unflushed = 0
        self._files: dict[str, int] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        exists = (self.folder / "format.json").exists()
        if exists and not resume:
            raise StorageError(
                f"{self.folder} holds a replay buffer already. Set storage_resume=True to continue with its records, or name "
                "another folder."
            )
        before = _OPEN.get(self.folder)
        if before is not None:
            before.close()
        self._lock = _lock_folder(self.folder)
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
        """Whether it can no longer read and write the folder."""
        return not self._files

    @property
    def nbytes(self) -> int:
        return super().nbytes + INDEX.itemsize * self._n_envs * self._capacity

    def view(self, name: str) -> np.ndarray:
        shape = self._n_envs, self._capacity
        if self._rows.format is None:
            return np.memmap(self.folder / "records.bin", self._row, "r", shape=shape)[name]
        result = np.zeros((*shape, *self._row[name].shape), self._row[name].base)
        for env, number in self._records():
            result[env, number % self._capacity] = self._rows.read(env, number, 1)[name][0]
        return result

    def write(self, envs: np.ndarray, numbers: np.ndarray, records: Mapping[str, np.ndarray]) -> None:
        self._check_open()
        if self._hidden is not None:
            self._forget_hidden()
        if self._unflushed + len(envs) > self.flush_interval:
            self.flush()
        places = list(zip(envs.tolist(), numbers.tolist(), strict=True))
        for env, number in places:
            self._rows.settle(env, number)
        try:
            self._append(places, records)
        except OSError:
            self.written[envs] = numbers
            with contextlib.suppress(OSError):
                self._withdraw(places)
            raise
        self._unflushed += len(envs)

    def _append(self, places: list[tuple[int, int]], records: Mapping[str, np.ndarray]) -> None:
        rows = np.empty(len(places), dtype=self._row)
        for name in self._row.names or ():
            rows[name] = records[name]
        flags = sum(records[name].astype(np.uint8) << bit for bit, name in enumerate(FLAGS))
        for row, flag, (env, number) in zip(rows, np.asarray(flags), places, strict=True):
            content = row.tobytes()
            self.first[env] = max(self.first[env], number + 1 - self._capacity)
            self._rows.write(env, number, content)
            self._index.enter(env, number, content, int(flag))
            self.written[env] = number + 1

    def _withdraw(self, places: list[tuple[int, int]]) -> None:
        """Erase the entries of records that were not finished, and of the old ones whose rows they have overwritten."""
        for env, number in places:
            overwritten = number - self._capacity
            lost = overwritten < self.first[env] and self._index.checksum(env, overwritten)
            if lost or self._index.checksum(env, number):
                self._index.erase(env, number)

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError(f"The replay buffer in {self.folder} has been closed, or opened again by another one.")

    def read(self, envs: np.ndarray, numbers: np.ndarray, length: int) -> dict[str, np.ndarray]:
        self._check_open()
        names = self._row.names or ()
        result = {n: np.empty((length, len(envs), *self._row[n].shape), self._row[n].base.newbyteorder("=")) for n in names}
        for column, (env, number) in enumerate(zip(envs.tolist(), numbers.tolist(), strict=True)):
            rows = self._rows.read(env, number, length)
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
            getattr(os, "fdatasync", os.fsync)(descriptor)
        self._write_counts()
        self._unflushed = 0

    def _write_counts(self) -> None:
        counts = self.written.astype("<i8").tobytes()
        with atomic_file(self.folder / "flushed.bin") as file:
            file.write(counts + zlib.crc32(counts).to_bytes(4, "little"))

    def clear(self) -> None:
        self._check_open()
        for name, descriptor in self._files.items():
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, self._sizes[name])
        self.written[:], self.first[:], self._unflushed, self._hidden = 0, 0, 1, None
        self._rows.open(self._files, self.written)
        self.flush()

    def hide(self, written: Sequence[int]) -> None:
        """
        Hide the newest records. They stay on the disk until one is written in their place.

        :param written: for each ring, the number of the first record to hide
        :raises StorageError: if a ring holds fewer records
        """
        self._check_open()
        held, first = (self.written, self.first) if self._hidden is None else self._hidden
        wanted = np.array(written, dtype=np.int64)
        if wanted.shape != held.shape or np.any(wanted > held):
            raise StorageError(f"The replay buffer in {self.folder} has {held.tolist()} records, fewer {OTHERS}")
        self.written, self.first = wanted, np.minimum(first, wanted)
        self._hidden = (held, first) if np.any(held > wanted) else None

    def _forget_hidden(self) -> None:
        """Make room for a record in the place of the hidden ones."""
        hidden, self._hidden, self._unflushed = self._hidden, None, 1
        assert hidden is not None
        try:
            self.flush()  # first of all: from here on a kill at any moment leaves a smaller or a larger part, in order
            for env, (first, count, held) in enumerate(zip(self.first, self.written, hidden[0].tolist(), strict=True)):
                self._rows.cut(env, int(first), int(count))
                # Left in place, they would count again once new records precede them
                for number in reversed(range(max(int(count), held - self._capacity), held)):
                    self._index.erase(env, number)
        except OSError:
            self._hidden = hidden  # to be tried again
            raise

    def pack(self, rows: Sequence[int]) -> dict[str, list[int]]:
        self.flush()
        return {"written": self.written.tolist(), "newest": self._newest()}

    def unpack(self, packed: dict[str, list[int]]) -> None:
        self.hide(packed["written"])
        newest = self._newest()
        if any(now not in (0, then) for now, then in zip(newest, packed.get("newest", newest), strict=True)):
            raise StorageError(f"The replay buffer in {self.folder} has other records {OTHERS}")

    def _newest(self) -> list[int]:
        """Checksums of the newest records, which tell whether these are still the same; 0 for one that is not there."""
        self._check_open()
        return [self._index.checksum(env, int(count) - 1) for env, count in enumerate(self.written)]

    def ends(self) -> list[list[int]]:
        """
        Find the ends of episodes.

        :return: for each ring, the numbers of the records that end an episode, ascending
        """
        self._check_open()
        ends = []
        for env, (first, count) in enumerate(zip(self.first.tolist(), self.written.tolist(), strict=True)):
            done = self._index.read(env, first, count - first)["flags"] & (1 << FLAGS.index("done"))
            ends.append((first + np.flatnonzero(done)).tolist())
        return ends

    def damaged(self) -> list[tuple[int, int]]:
        self._check_open()
        return [(env, number) for env, number in self._records() if not self._is_whole(env, number)]

    def _records(self) -> Iterator[tuple[int, int]]:
        """Ring and number of every record."""
        return ((env, number) for env in range(self._n_envs) for number in range(self.first[env], self.written[env]))

    def close(self, flush: bool = True) -> None:
        """
        Let others write the folder.

        :param flush: False leaves it as a kill would
        """
        if self._files and flush:
            self.flush()
        for descriptor in self._files.values():
            os.close(descriptor)
        self._open_files({}, self.written)  # other files may get the descriptors
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        try:
            self.close()
        except (OSError, AttributeError, TypeError, ImportError):  # the interpreter is shutting down
            pass

    @property
    def _sizes(self) -> dict[str, int]:
        return {**self._rows.sizes, **self._index.sizes}

    def _create(self) -> None:
        """Sparse files: a row takes disk space when it is written. The format comes last, which makes the folder a buffer."""
        for name, size in self._sizes.items():
            with open(self.folder / name, "wb") as file:
                file.truncate(size)
        self._write_counts()
        with atomic_file(self.folder / "format.json") as file:
            file.write(json.dumps({**self._format, "sb3_dreamer": VERSION}, indent=1).encode())

    def _open(self) -> None:
        path = self.folder / "format.json"
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} is damaged or missing: {error}.") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            other = found.get("format") if isinstance(found, dict) else found
            raise StorageError(f"{path} has format {other!r}, expected {FORMAT}: another version of sb3_dreamer wrote it.")
        different = [name for name, value in self._format.items() if found.get(name) != value]
        if different:
            texts = [f"{name}: the folder has {found.get(name)}, expected {self._format[name]}" for name in different]
            raise StorageError(f"The replay buffer in {self.folder} does not fit: " + "; ".join(texts) + ".")
        for name, size in self._sizes.items():
            path = self.folder / name
            held = path.stat().st_size if path.exists() else 0
            if held != size:  # which is never 0
                raise StorageError(f"{path} is damaged: it has {held} bytes, expected {size}.")
            self._files[name] = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        flushed = self._flushed_counts()
        self._open_files(self._files, flushed)
        self._recover(flushed)
        self._unflushed = int((self.written - flushed).sum())

    def _open_files(self, descriptors: dict[str, int], flushed: np.ndarray) -> None:
        self._files = descriptors
        for part in (self._rows, self._index):
            part.open(descriptors, flushed)

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
        try:
            return self._index.fits(env, number, self._rows.read(env, number, 1).tobytes())
        except ValueError:  # of a chunk
            return False


def is_open(folder: str | Path) -> bool:
    """
    Tell whether this process has a folder open.

    :param folder: of a buffer
    """
    place = os.path.realpath(folder)
    return any(os.path.realpath(storage.folder) == place for storage in _OPEN.values() if not storage.closed)


def _checksum(content: bytes, number: int, flags: int) -> int:
    """CRC-32 of a record with its number and flags, but never 0, which an unwritten entry has."""
    return zlib.crc32(number.to_bytes(8, "little") + bytes([flags]), zlib.crc32(content)) or 1


def _lock_folder(folder: Path) -> int | None:
    """Descriptor with an exclusive lock that ends with the process; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StorageError(f"The replay buffer in {folder} is in use by another buffer or process.") from error
    return descriptor
