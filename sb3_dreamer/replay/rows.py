"""
Files of the replay buffer on disk whose rows have a fixed size, and the records in them, plain or compressed.

Compressed, the newest records wait in rows until they fill a chunk. The chunk is then written as a whole to a slot of fixed
size in a sparse file, which takes only as much of the disk as it fills. Slots never move, so there is no log to compact and no
table of chunks that could be lost.
"""

import os
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from sb3_dreamer.common.files import DamageError

#: Precedes every chunk: number of its first record, bytes that follow, their CRC-32
HEADER = np.dtype([("first", "<i8"), ("size", "<u4"), ("checksum", "<u4")])


class Compression(NamedTuple):
    """How records are compressed."""

    level: int  # of zstandard: 1 is the fastest, 22 the smallest
    chunk: int = 64  # records that are compressed, and read, together


class RingFile:
    """
    Rings of rows in one file: number n of a ring is in row ``n % capacity``.

    :param row: layout of a row
    :param n_envs: number of rings
    :param capacity: rows per ring
    """

    name: str  # of the file

    def __init__(self, row: np.dtype, n_envs: int, capacity: int) -> None:
        self._row, self.n_envs, self.capacity = row, n_envs, capacity
        self._files: dict[str, int] = {}

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, written or not."""
        return {self.name: self._row.itemsize * self.n_envs * self.capacity}

    def open(self, files: dict[str, int]) -> None:
        """
        Read and write these files from now on.

        :param files: descriptors by name; none to let go of those it has
        """
        self._files = files

    def write(self, env: int, number: int, content: bytes) -> None:
        """
        Write one row.

        :param env: a ring
        :param number: of the row in it
        :param content: of the row
        :raises OSError: if the disk is full
        """
        _write_at(self._files[self.name], content, self._place(env, number))

    def read(self, env: int, number: int, count: int) -> np.ndarray:
        """
        Read consecutive rows.

        :param env: a ring
        :param number: of the first row
        :param count: number of rows, at most the capacity
        :return: (count,) rows
        :raises DamageError: if the file ends early, or a chunk is damaged
        """
        head = min(count, self.capacity - number % self.capacity)
        content = _read_at(self._files[self.name], head * self._row.itemsize, self._place(env, number))
        rows = np.frombuffer(content, self._row)
        return rows if head == count else np.concatenate([rows, RingFile.read(self, env, number + head, count - head)])

    def _place(self, env: int, number: int) -> int:
        return (env * self.capacity + number % self.capacity) * self._row.itemsize


class PlainRows(RingFile):
    """Records, one row each."""

    name = "records.bin"
    #: What must agree when the files are opened again
    format: dict[str, Any] | None = None

    def settle(self, env: int, written: int) -> None:
        """
        Compress the chunks that are complete, before the next record is written.

        :param env: a ring
        :param written: number that its next record gets
        :raises OSError: if the disk is full; nothing is lost then
        """

    def cut(self, env: int, first: int, written: int) -> None:
        """
        Bring the records of an incomplete chunk back into rows, after the newest records were forgotten.

        :param env: a ring
        :param first: number of its oldest record
        :param written: number that its next record gets
        """

    def copies(self, env: int, number: int) -> list[np.ndarray]:
        """
        Read a record wherever it may be, before :meth:`recover` has found out.

        :param env: a ring
        :param number: of the record
        :return: contents of which one is the record, if it is whole, (1,) each
        """
        return [self.read(env, number, 1)]

    def recover(self, env: int, flushed: int, written: int, fits: Callable[[int, np.ndarray], bool]) -> None:
        """
        Find out where the records of a ring are, after its files were opened.

        :param env: the ring
        :param flushed: number of records that are known to be on the disk
        :param written: number that its next record gets
        :param fits: whether consecutive records are what was written, given the number of the first
        """


class CompressedRows(PlainRows):
    """
    Records of which the newest are in rows, and all older ones in compressed chunks.

    A row is used again only when its record is in a chunk that has been flushed: if a power cut tears a chunk, it is
    compressed again.

    :param row: layout of a record
    :param n_envs: number of rings
    :param capacity: records per ring
    :param compression: level and size of chunks
    :param flush_interval: records that a power cut may lose
    :raises ImportError: if the package ``zstandard`` is missing
    """

    def __init__(self, row: np.dtype, n_envs: int, capacity: int, compression: Compression, flush_interval: int) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise ImportError(
                "storage_compression needs the package zstandard: pip install zstandard, or leave the option out.",
                name="zstandard",
            ) from error
        self._chunk = compression.chunk
        super().__init__(row, n_envs, flush_interval + 2 * self._chunk)
        self._slots = -(-capacity // self._chunk)  # per ring
        self._slot_bytes = HEADER.itemsize + self._chunk * row.itemsize
        self.format = {"name": "zstandard", "chunk": self._chunk, "rows": self.capacity}  # the level may change
        self._compressor, self._decompressor = zstandard.ZstdCompressor(compression.level), zstandard.ZstdDecompressor()
        self._content_size, self._error = zstandard.frame_content_size, zstandard.ZstdError
        self._settled = np.zeros(n_envs, dtype=np.int64)  # records of each ring that are in chunks
        self._latest: dict[tuple[int, int], np.ndarray] = {}  # the chunk that was read last

    @property
    def sizes(self) -> dict[str, int]:
        return {**super().sizes, "chunks.bin": self._slot_bytes * self.n_envs * self._slots}

    def open(self, files: dict[str, int]) -> None:
        super().open(files)
        self._latest = {}
        self._settled[:] = 0

    def read(self, env: int, number: int, count: int) -> np.ndarray:
        end, settled = number + count, int(self._settled[env])
        firsts = range(number - number % self._chunk, min(end, settled), self._chunk)
        pieces = [self._read_chunk(env, first)[max(number - first, 0) : end - first] for first in firsts]
        if end > settled:
            start = max(number, settled)
            pieces.append(super().read(env, start, end - start))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def settle(self, env: int, written: int) -> None:
        while self._settled[env] + self._chunk <= written:
            first = int(self._settled[env])
            content = super().read(env, first, self._chunk).tobytes()
            data = self._compressor.compress(content)
            data = content if len(data) >= len(content) else data
            header = np.array((first, len(data), zlib.crc32(data)), dtype=HEADER)
            self._latest = {}
            _write_at(self._files["chunks.bin"], header.tobytes() + data, self._slot(env, first))
            self._settled[env] += self._chunk

    def cut(self, env: int, first: int, written: int) -> None:
        start = written - written % self._chunk
        if start < self._settled[env]:
            for number in range(max(start, first), written):
                with suppress(DamageError):  # its row then does not fit either
                    self.write(env, number, self.read(env, number, 1).tobytes())
            self._settled[env] = start

    def copies(self, env: int, number: int) -> list[np.ndarray]:
        found, first = [super().read(env, number, 1)], number - number % self._chunk
        with suppress(DamageError):  # there is none, as usual
            found.append(self._read_chunk(env, first)[number - first : number - first + 1])
        return found

    def recover(self, env: int, flushed: int, written: int, fits: Callable[[int, np.ndarray], bool]) -> None:
        # Later chunks may be torn, but their records still have their rows
        start = min(flushed, written) // self._chunk * self._chunk
        while written - start > self.capacity:
            start += self._chunk
        while start + self._chunk <= written and self._has_chunk(env, start, fits):
            start += self._chunk
        self._settled[env] = start
        for number in range(start, written):  # back into rows, as cut() was about to do when the process ended
            copies = self.copies(env, number)
            if not fits(number, copies[0]) and len(copies) > 1 and fits(number, copies[1]):
                with suppress(OSError):  # of a folder that can only be read
                    self.write(env, number, copies[1].tobytes())

    def _has_chunk(self, env: int, first: int, fits: Callable[[int, np.ndarray], bool]) -> bool:
        try:
            return fits(first, self._read_chunk(env, first))
        except DamageError:
            return False

    def _slot(self, env: int, first: int) -> int:
        return (env * self._slots + first // self._chunk % self._slots) * self._slot_bytes

    def _read_chunk(self, env: int, first: int) -> np.ndarray:
        if (env, first) in self._latest:
            return self._latest[env, first]
        place, limit = self._slot(env, first), self._chunk * self._row.itemsize
        header = np.frombuffer(_read_at(self._files["chunks.bin"], HEADER.itemsize, place), HEADER)[0]
        if header["first"] != first or not 0 < header["size"] <= limit:
            raise DamageError(f"chunks.bin is damaged: record {first} of ring {env} is not in its place.")
        data = _read_at(self._files["chunks.bin"], int(header["size"]), place + HEADER.itemsize)
        if zlib.crc32(data) != header["checksum"]:
            raise DamageError(f"chunks.bin is damaged: the chunk of record {first} of ring {env} does not fit its checksum.")
        content = data if len(data) == limit else self._decompress(data, limit)
        if len(content) != limit:
            raise DamageError(f"chunks.bin is damaged: the chunk of record {first} of ring {env} does not have its size.")
        self._latest = {(env, first): np.frombuffer(content, self._row)}
        return self._latest[env, first]

    def _decompress(self, data: bytes, limit: int) -> bytes:
        """Content of a chunk; nothing if it would take more memory than it may have."""
        try:
            if self._content_size(data) > limit:
                return b""
            return self._decompressor.decompress(data, max_output_size=limit)
        except self._error:
            return b""


def _read_at(descriptor: int, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        content = os.pread(descriptor, count, offset)
    else:
        os.lseek(descriptor, offset, os.SEEK_SET)
        content = os.read(descriptor, count)
    if len(content) != count:
        raise DamageError(f"The replay buffer on disk ends early: {len(content)} of {count} bytes at {offset}.")
    return content


def _write_at(descriptor: int, content: bytes, offset: int) -> None:
    if hasattr(os, "pwrite"):
        done = os.pwrite(descriptor, content, offset)
    else:
        os.lseek(descriptor, offset, os.SEEK_SET)
        done = os.write(descriptor, content)
    if done != len(content):  # a full disk writes a part first
        raise OSError(28, "No space left on device for the replay buffer")
