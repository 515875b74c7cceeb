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


def is_path(target: object) -> bool:
    """
    Tell a path from an open file.

    :param target: what a user gave to ``save``
    :return: whether it is a path
    """
    return not isinstance(target, io.IOBase) and isinstance(target, str | os.PathLike)
