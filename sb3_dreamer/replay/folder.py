"""
The folder of a replay buffer on disk: what it is, whose it is, and who may write it.

A folder becomes a buffer's with ``format.json``, which is written before any other file. Without it, nothing in the folder is
ours, whatever its name. The identity in it is a part of every seal in the index, so files of other folders do not fit.
"""

import json
import os
import secrets
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from sb3_dreamer.common.files import Lock, StorageError, atomic_file
from sb3_dreamer.common.version import VERSION

FORMAT = 2
#: Files that a folder of ours may hold
NAMES = ("records.bin", "chunks.bin", "entries.bin", "index.bin", "flushed.bin")


class StorageFolder:
    """
    A folder, not yet opened.

    :param path: of the folder
    :raises StorageError: if it holds something else, or a buffer that this version does not know
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self._lock: Lock | None = None
        self._owner = os.getpid()
        self.files: dict[str, int] = {}
        self.is_writable = True
        self.identity = self._previous = 0
        self.found = self._read_format()

    @property
    def is_complete(self) -> bool:
        """Whether there is a buffer in it. A kill while it was made leaves a folder that is ours, but has none."""
        return self.found is not None and self.found.get("complete", True) is True

    def _read_format(self) -> dict[str, Any] | None:
        path = self.path / "format.json"
        if not path.exists():
            foreign = [name for name in NAMES if (self.path / name).exists()]
            if foreign:
                raise StorageError(
                    f"{self.path} holds {', '.join(foreign)}, but no format.json that says what they are: nothing in it is "
                    "touched. Name another folder; if these are the files of a replay buffer, bring its format.json back."
                )
            return None
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} is damaged: {error}.") from error
        version = found.get("format") if isinstance(found, dict) else found
        if type(version) is not int or not 1 <= version <= FORMAT:  # True equals 1
            raise StorageError(
                f"{path} has format {version!r}, expected {FORMAT}: another version of sb3_dreamer, or another "
                "program, wrote it."
            )
        return found

    def lock(self) -> None:
        """
        Keep others out until :meth:`close`. A folder that cannot be written is opened for reading, together with others.

        :raises StorageError: if another process has it
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._owner = os.getpid()
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            if not self.is_complete:
                raise
            self.is_writable = False
            if not (self.path / "lock").exists():
                return
            descriptor = os.open(self.path / "lock", os.O_RDONLY)
        try:
            self._lock = Lock(descriptor, alone=self.is_writable)
        except OSError as error:
            raise StorageError(f"The replay buffer in {self.path} is in use by another buffer or process.") from error
        self.found = self._read_format()  # another process may have made it in the meantime

    def create(self, description: dict[str, Any], sizes: dict[str, int]) -> None:
        """
        Make the folder a buffer's, with sparse files: a row takes disk space when it is written.

        :param description: for ``format.json``
        :param sizes: of the files, in bytes
        """
        ours = "xb" if self.found is None else "wb"  # what was begun may be begun again
        self.change_identity()
        self._write_format(description, complete=False)
        for name, size in sizes.items():
            with open(self.path / name, ours) as file:
                file.truncate(size)
        self._write_format(description, complete=True)

    def change_identity(self) -> None:
        """Take a new identity, with which nothing in the index counts any longer, as soon as :meth:`describe` is called."""
        self._previous, self.identity = self.identity, secrets.randbits(64)

    def renew(self, description: dict[str, Any]) -> None:
        """
        Give the folder a new identity, or leave everything as it is.

        :param description: for ``format.json``
        """
        before = self.identity, self._previous, self.found
        try:
            self.change_identity()
            self.describe(description)
        except BaseException:
            self.identity, self._previous, self.found = before
            raise

    def describe(self, description: dict[str, Any]) -> None:
        """
        Write ``format.json`` anew.

        :param description: for it
        """
        self._write_format(description, complete=True)

    def _write_format(self, description: dict[str, Any], complete: bool) -> None:
        identities = {"identity": f"{self.identity:016x}", "previous_identity": f"{self._previous:016x}"}
        self.found = {"format": FORMAT, **description, **identities, "complete": complete, "sb3_dreamer": VERSION}
        with atomic_file(self.path / "format.json") as file:
            file.write(json.dumps(self.found, indent=1).encode())

    def open(self, description: dict[str, Any], sizes: dict[str, int]) -> None:
        """
        Open the files.

        :param description: expected in ``format.json``
        :param sizes: expected of the files, in bytes
        :raises StorageError: naming what does not fit
        """
        assert self.found is not None
        different = [name for name, value in description.items() if self.found.get(name) != value]
        if different:
            texts = [f"{name}: the folder has {self.found.get(name)}, expected {description[name]}" for name in different]
            raise StorageError(f"The replay buffer in {self.path} does not fit: " + "; ".join(texts) + ".")
        if self.found["format"] == FORMAT:
            self._read_identity(self.found)
        for name, size in sizes.items():
            path = self.path / name
            held = path.stat().st_size if path.exists() else 0
            if held != size:  # which is never 0
                raise StorageError(f"{path} is damaged: it has {held} bytes, expected {size}.")
            self.files[name] = self._open_file(path)

    def _read_identity(self, found: dict[str, Any]) -> None:
        try:
            self.identity, self._previous = (int(found[name], 16) for name in ("identity", "previous_identity"))
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{self.path / 'format.json'} is damaged: it has no identity.") from error

    def _open_file(self, path: Path) -> int:
        binary = getattr(os, "O_BINARY", 0)
        if self.is_writable:
            try:
                return os.open(path, os.O_RDWR | binary)
            except PermissionError:
                self.is_writable = False
        return os.open(path, os.O_RDONLY | binary)

    @property
    def is_own(self) -> bool:
        """Whether this process opened it, not one from which it was forked."""
        return os.getpid() == self._owner

    def check_writable(self) -> None:
        """
        Check that this process may write.

        :raises StorageError: if it has only inherited the folder, or can only read it
        """
        if not self.is_own:
            raise StorageError(
                f"The replay buffer in {self.path} belongs to process {self._owner}, which opened it: process {os.getpid()}, "
                "forked from it, cannot write there."
            )
        if not self.is_writable:
            raise StorageError(f"The replay buffer in {self.path} can only be read: its files are not writable.")

    def check_in_place(self) -> None:
        """
        Check that the open files still are those of the folder.

        :raises StorageError: if it was moved, deleted or replaced
        """
        for name, descriptor in self.files.items():
            path = self.path / name
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(descriptor)):
                raise StorageError(
                    f"The replay buffer's folder {self.path} was moved, deleted or replaced while it was in use: {name} is no "
                    "longer in its place, so what is written would be lost. Move it back, or resume with its new path."
                )

    def flush(self, written: np.ndarray) -> None:
        """
        Bring everything to the disk, and note what is there.

        :param written: number that the next record of each ring gets, (n_envs,)
        """
        self.check_writable()
        self.check_in_place()
        for descriptor in self.files.values():
            getattr(os, "fdatasync", os.fsync)(descriptor)
        counts = self.identity.to_bytes(8, "little") + written.astype("<i8").tobytes()
        with atomic_file(self.path / "flushed.bin") as file:
            file.write(counts + zlib.crc32(counts).to_bytes(4, "little"))

    def flushed(self, n_envs: int) -> np.ndarray | None:
        """
        Read how much is on the disk for certain.

        :param n_envs: number of rings
        :return: records of each ring, (n_envs,); None if the file is missing or damaged: every record is then compared with
            its checksum
        :raises StorageError: if it is of another folder
        """
        path = self.path / "flushed.bin"
        content = path.read_bytes() if path.exists() else b""
        counts, check = content[:-4], content[-4:]
        if len(counts) != 8 + 8 * n_envs or zlib.crc32(counts).to_bytes(4, "little") != check:
            return None
        identity = int.from_bytes(counts[:8], "little")
        if identity == self._previous:  # the process ended while it emptied the buffer
            return np.zeros(n_envs, dtype=np.int64)
        if identity != self.identity:
            raise StorageError(
                f"{path} and format.json are of different folders: nothing was changed. Put the right ones back."
            )
        return np.frombuffer(counts[8:], "<i8").astype(np.int64)

    def close_files(self) -> None:
        """Close the files, but keep others out."""
        for descriptor in self.files.values():
            os.close(descriptor)
        self.files = {}

    def close(self) -> None:
        """Let others write the folder."""
        self.close_files()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
