"""Files that are replaced atomically: temporary file, fsync, rename."""

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from weakref import WeakSet


class StorageError(ValueError):
    """The folder of a replay buffer is in use, damaged, of another kind, or without the records that a file refers to."""


class DamageError(StorageError):
    """Records of a replay buffer on disk are not what was written."""


class FormatError(ValueError):
    """Another version of this package wrote the file."""


@contextmanager
def atomic_file(path: str | Path, suffix: str = "") -> Iterator[BinaryIO]:
    """
    Write a file that replaces an older one only when it is complete and on the disk.

    A full disk, an exception or a kill leaves the older one as it was; a kill may leave a hidden temporary file beside it.

    :param path: of the file; missing folders are created
    :param suffix: appended, with a dot, to a path without one, as SB3 does
    :return: file open for writing
    """
    path = Path(path)
    if suffix and path.suffix == "":
        path = Path(f"{path}.{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # The module tempfile makes files private; here the system applies the umask, which threads cannot read safely
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(hidden, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """
    Flush the names in a folder to the disk, where the system can.

    :param folder: in which files have been renamed
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """
    Lock on an open file, or folder, for this process. Children that it forks do not hold it. Keeps nobody out where the system
    has no such locks.

    :param descriptor: of the file, closed with the lock
    :param alone: False shares it with others that do
    :raises OSError: if another process holds it
    """

    def __init__(self, descriptor: int, alone: bool = True) -> None:
        self._descriptor: int | None = descriptor
        _HELD.add(self)
        try:
            import fcntl
        except ImportError:
            return
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Close the file, once."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    __del__ = release


_HELD: WeakSet[Lock] = WeakSet()


def _release_all() -> None:
    for lock in list(_HELD):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)


def is_path(target: object) -> bool:
    """
    Tell a path from an open file.

    :param target: what a user gave to ``save``
    :return: whether it is a path
    """
    return not isinstance(target, io.IOBase) and isinstance(target, str | os.PathLike)
