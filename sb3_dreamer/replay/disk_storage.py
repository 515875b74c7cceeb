"""
The replay buffer's records on disk: a folder that outlives the process that writes it.

    format.json   version, package version, layout, identity
    records.bin   n_envs rings of capacity rows, one record each; compressed: only the rows of records that await compression
    chunks.bin    compressed: records in chunks, see :mod:`~sb3_dreamer.replay.rows`
    entries.bin   for every row which record it holds, with checksums, see :mod:`~sb3_dreamer.replay.index`; an entry is
                  written after its record, which makes it count
    flushed.bin   records of each ring that are known to be on the disk, with a checksum
    lock          held by the process that writes

Records are written and read with plain file operations: a full disk is an exception, not a signal, and nothing is mapped into
memory. Opening looks for every entry that fits its seal. Where all is consistent, it compares only those records with their
checksums that may not have reached the disk; otherwise all of them. Records that do not fit are left out and named; opening
erases nothing. Every record is compared with its checksum again each time that it is read.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np

from sb3_dreamer.common.files import DamageError, StorageError
from sb3_dreamer.replay.conversion import convert
from sb3_dreamer.replay.folder import StorageFolder
from sb3_dreamer.replay.index import ENTRY, ERASED, NO_ENTRY, RecordIndex, flags_of, runs
from sb3_dreamer.replay.rows import CompressedRows, Compression, PlainRows
from sb3_dreamer.replay.storage import RecordStorage

OTHERS = "than this file refers to: training has gone on from an earlier state, and its records took the place of these."

#: Records of each ring that opening always compares with their checksums, so that a file of another folder is noticed at once
NEWEST = 128
PIECE = 256  # records that are compared together

#: Folders that this process has open. Opening one again takes it over
_OPEN: WeakValueDictionary[Path, "DiskStorage"] = WeakValueDictionary()


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
    :raises ValueError: if the folder holds something else, another layout, or files that cannot be understood; nothing in
        it is changed then
    :raises ImportError: if they are to be compressed and the package ``zstandard`` is missing
    """

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
        self.flush_interval = min(flush_interval, capacity)  # what was not flushed has not been overwritten
        self._index = RecordIndex(ENTRY, n_envs, capacity)
        size = self._row, n_envs, capacity
        self._rows = PlainRows(*size)
        if compression is not None:
            self._rows = CompressedRows(*size, compression, max(self.flush_interval, n_envs))
        self._description = {
            "n_envs": n_envs,
            "capacity": capacity,
            "row": str(self._row.descr),
            "layout": layout,
            "compression": self._rows.format,
        }
        self.written = np.zeros(n_envs, dtype=np.int64)  # number that the next record of each ring gets
        self.first = np.zeros(n_envs, dtype=np.int64)  # number of the oldest record of each ring
        self.holes: list[list[int]] = [[] for _ in range(n_envs)]  # records in between that are lost, ascending
        self._unflushed = 0
        self._folder = StorageFolder(folder)
        self.folder = self._folder.path
        if self._folder.is_complete and not resume:
            raise StorageError(
                f"{self.folder} holds a replay buffer already. Set storage_resume=True to continue with its records, or name "
                "another folder."
            )
        before = _OPEN.get(self.folder)
        if before is not None:
            before.close()
        self._folder.lock()
        _OPEN[self.folder] = self
        try:
            self._open()
        except BaseException:
            self.close(flush=False)
            raise

    @property
    def closed(self) -> bool:
        """Whether it can no longer read and write the folder."""
        return not self._folder.files

    @property
    def identity(self) -> int:
        """Number of 64 bits that only this buffer has, until it is emptied."""
        return self._folder.identity

    @property
    def nbytes(self) -> int:
        return super().nbytes + ENTRY.itemsize * self._n_envs * self._capacity

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
        self._folder.check_writable()
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
        contents = [row.tobytes() for row in rows]
        entries = self._index.entries(places, contents, flags_of(records))
        for content, entry, (env, number) in zip(contents, entries, places, strict=True):
            self.first[env] = max(self.first[env], number + 1 - self._capacity)
            self._rows.write(env, number, content)
            self._index.write(env, number, entry)
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
        places = zip(envs.tolist(), numbers.tolist(), strict=True)
        windows = [(env, number, self._rows.read(env, number, length)) for env, number in places]
        damaged = self._index.misfits(windows)
        if damaged:
            raise DamageError(f"The replay buffer in {self.folder} is damaged: {_named(damaged)}.")
        for column, (_, _, rows) in enumerate(windows):
            for name in names:
                result[name][:, column] = rows[name]
        return result

    def flush(self) -> None:
        """
        Bring everything written so far to the disk.

        :raises StorageError: if the folder was moved or deleted, or this process may not write it
        """
        if self._unflushed == 0 or self._hidden is not None or not self._folder.is_writable:
            return
        self._folder.check_writable()
        for env in range(self._n_envs):
            self._rows.settle(env, int(self.written[env]))
        self._folder.flush(self.written)
        self._unflushed = 0

    def clear(self) -> None:
        self._check_open()
        self._folder.check_writable()
        self._folder.check_in_place()
        self._folder.renew(self._description)  # from here on no entry fits any longer
        self.written[:], self.first[:], self._unflushed, self._hidden = 0, 0, 1, None
        self.holes = [[] for _ in self.holes]
        self._use_files()
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
            for env, (held, oldest) in enumerate(zip(*(part.tolist() for part in hidden), strict=True)):
                count = int(self.written[env])
                # Left in place, they would count again once new records precede them; so would what a kill tore behind them
                end = min(oldest + self._capacity, held + self.flush_interval + 1)
                for number in reversed(range(max(count, end - self._capacity), end)):
                    self._index.erase(env, number)
                self._rows.cut(env, int(self.first[env]), count)  # into rows of records that no longer count
                self.holes[env] = [number for number in self.holes[env] if number < count]
            self._unflushed = 1
            self.flush()  # so that a power cut does not bring some of them back among new ones
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
        """Seals of the newest records, which tell whether these are still the same; 0 for one that is not there."""
        self._check_open()
        return [self._index.checksum(env, int(count) - 1) for env, count in enumerate(self.written)]

    def ends(self) -> list[list[int]]:
        """
        Find the ends of episodes.

        :return: for each ring, the numbers of the records that end an episode, ascending
        """
        self._check_open()
        spans = zip(self.first.tolist(), self.written.tolist(), strict=True)
        return [self._index.ends(env, first, count) for env, (first, count) in enumerate(spans)]

    def damaged(self) -> list[tuple[int, int]]:
        self._check_open()
        found: list[tuple[int, int]] = []
        for env, holes in enumerate(map(set, self.holes)):
            end = int(self.written[env])
            for start in range(int(self.first[env]), end, PIECE):
                numbers = range(start, min(start + PIECE, end))
                try:
                    misfits = self._index.misfits([(env, start, self._rows.read(env, start, len(numbers)))])
                except DamageError:  # of a chunk
                    misfits = [(env, number) for number in numbers if not self._is_whole(env, number)]
                found += [record for record in misfits if record[1] not in holes]
        return found

    def leave_out(self, records: Sequence[tuple[int, int]], for_good: bool = False) -> None:
        self._check_open()
        if for_good:
            self._folder.check_writable()
            for env, number in records:
                self._index.erase(env, number)
            self._unflushed = max(self._unflushed, 1)
        for env in range(self._n_envs):
            gone = {*self.holes[env], *(number for ring, number in records if ring == env)}
            while self.first[env] in gone and self.first[env] < self.written[env]:
                self.first[env] += 1
            self.holes[env] = sorted(number for number in gone if self.first[env] < number < self.written[env])

    def _records(self) -> Iterator[tuple[int, int]]:
        """Ring and number of every record that is not known to be lost."""
        for env, holes in enumerate(map(set, self.holes)):
            yield from ((env, number) for number in range(self.first[env], self.written[env]) if number not in holes)

    def _is_whole(self, env: int, number: int) -> bool:
        try:
            return not self._index.misfits([(env, number, self._rows.read(env, number, 1))])
        except DamageError:  # of a chunk
            return False

    def close(self, flush: bool = True) -> None:
        """
        Let others write the folder, even if flushing fails.

        :param flush: False leaves it as a kill would
        :raises OSError: if the disk is full
        :raises StorageError: if the folder was moved or deleted
        """
        try:
            if flush and not self.closed and self._folder.is_own:
                self.flush()
        finally:
            self._folder.close()
            self._use_files()  # other files may get the descriptors

    def __del__(self) -> None:
        try:
            self.close()
        except (OSError, AttributeError, TypeError, ValueError, ImportError):  # the interpreter is shutting down
            pass

    def _use_files(self) -> None:
        for part in (self._rows, self._index):
            part.open(self._folder.files)
        self._index.belong_to(self._folder.identity)

    def _open(self) -> None:
        sizes = {**self._rows.sizes, **self._index.sizes}
        if not self._folder.is_complete:
            self._folder.create(self._description, sizes)
        convert(self._folder, self._rows, self._index, self._description)
        self._folder.open(self._description, sizes)
        self._use_files()
        self._recover(self._folder.flushed(self._n_envs))

    def _recover(self, flushed: np.ndarray | None) -> None:
        """Find the records that count, and name those that are missing."""
        known = np.zeros(self._n_envs, dtype=np.int64) if flushed is None else flushed
        rings = [self._index.numbers(env) for env in range(self._n_envs)]
        if all((ring == NO_ENTRY).all() for ring in rings) and (known.any() or (flushed is None and self._index.is_used())):
            raise StorageError(
                f"The replay buffer in {self.folder} cannot be understood: no entry of entries.bin fits format.json, so one "
                "of them may be of another folder. Nothing was changed."
            )
        lost = [(env, n) for env, ring in enumerate(rings) for n in self._recover_ring(env, ring, int(known[env]))]
        # A kill may have come while the oldest record was overwritten; entries are aligned, so that it tears none of them
        oldest = [(env, number) for env, number in enumerate((self.written - self._capacity).tolist())]
        overwritten = [(env, n) for env, n in oldest if n >= 0 and rings[env][n % self._capacity] == n]
        if lost and set(lost) <= set(overwritten):
            warnings.warn(
                f"The replay buffer in {self.folder} leaves out {_named(lost)}, the oldest: either the process ended while it "
                "was overwriting them, which is harmless, or they are damaged."
            )
        elif lost:  # then nothing is taken for granted
            self.leave_out(lost := sorted({*lost, *self.damaged()}))
            left = sum(1 for _ in self._records())
            if left == 0:
                raise StorageError(
                    f"The replay buffer in {self.folder} cannot be understood: none of its {len(lost)} records is what was "
                    "written, so one of its files may be of another folder. Nothing was changed."
                )
            warnings.warn(
                f"The replay buffer in {self.folder} is damaged: {_named(lost)} lost. The other {left} are used; nothing was "
                "erased."
            )
        self._unflushed = int(np.maximum(self.written - known, 0).sum())

    def _recover_ring(self, env: int, numbers: np.ndarray, flushed: int) -> list[int]:
        """Count one ring; returns records that should be there and are not."""
        capacity, present = self._capacity, np.sort(numbers[numbers >= 0])
        present = present[[n < flushed or self._is_anywhere(env, n) for n in present.tolist()]]
        newest, oldest = (int(present[-1]), int(present[0])) if len(present) else (-1, flushed)
        count = newest + 1 if flushed - capacity > oldest else max(newest + 1, flushed)
        self._rows.recover(env, flushed, count, lambda first, rows: not self._index.misfits([(env, first, rows)]))
        # The rows after the newest record, those of the oldest, may hold pieces of records that never counted
        risky = count - capacity + self.flush_interval + 1
        checked = (present < risky) | (present > newest - NEWEST)
        whole = [not check or self._is_whole(env, n) for n, check in zip(present.tolist(), checked, strict=True)]
        present = present[whole]
        present = present[present >= count - capacity]
        first = int(present[0]) if len(present) else count
        expected = np.arange(max(count - capacity, 0), count)
        missing = np.setdiff1d(expected, present, assume_unique=True)
        self.written[env], self.first[env], self.holes[env] = count, first, missing[missing > first].tolist()
        return [*missing[numbers[missing % capacity] != ERASED].tolist(), *range(count, flushed)]

    def _is_anywhere(self, env: int, number: int) -> bool:
        return any(not self._index.misfits([(env, number, row)]) for row in self._rows.copies(env, number))


def is_open(folder: str | Path) -> bool:
    """
    Tell whether this process has a folder open.

    :param folder: of a buffer
    """
    place = os.path.realpath(folder)
    return any(os.path.realpath(storage.folder) == place for storage in _OPEN.values() if not storage.closed)


def _named(records: Sequence[tuple[int, int]]) -> str:
    """How many records, and where, in a few words."""
    places = [
        f"{first} of ring {env}" if first == last else f"{first} to {last} of ring {env}"
        for env in sorted({env for env, _ in records})
        for first, last in runs(np.unique([number for ring, number in records if ring == env]))
    ]
    more = f" and {len(places) - 5} more places" if len(places) > 5 else ""
    count = len(records)
    return f"{count} record{'s' if count > 1 else ''} ({', '.join(places[:5])}{more})"
