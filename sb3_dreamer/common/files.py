"""Files that are replaced atomically: temporary file, fsync, rename."""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)  # there is no other way to read it
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
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


#: Descriptors of locked files of this process
_LOCKED: set[int] = set()


def hold(descriptor: int, alone: bool = True) -> None:
    """
    Lock an open file for this process; children that it forks do not hold the lock with it. Does nothing where the system
    has no such locks.

    :param descriptor: of the file, given to :func:`release` later
    :param alone: False shares it with others that do
    :raises OSError: if another process holds it
    """
    _LOCKED.add(descriptor)
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        release(descriptor)
        raise


def release(descriptor: int | None) -> None:
    """
    Close a file that is locked; does nothing in a forked process, which has closed it already.

    :param descriptor: of the file, None for none
    """
    if descriptor is not None and descriptor in _LOCKED:
        _LOCKED.discard(descriptor)
        os.close(descriptor)


def _release_all() -> None:
    for descriptor in list(_LOCKED):
        release(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)


def is_path(target: object) -> bool:
    """
    Tell a path from an open file.

    :param target: what a user gave to ``save``
    :return: whether it is a path
    """
    return not isinstance(target, io.IOBase) and isinstance(target, str | os.PathLike)
