"""Files that are whole or not there: temporary file, fsync, rename."""

import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class StorageError(ValueError):
    """The folder of a replay buffer is in use, damaged, of another kind, or without the records that a file refers to."""


@contextmanager
def atomic_file(path: str | Path, suffix: str = "") -> Iterator[BinaryIO]:
    """
    A file to write that takes the place of an older one only when it is complete and on the disk. A full disk, an exception or
    a kill leaves the older one as it was; a kill may leave a hidden temporary file beside it.

    :param path: of the file; missing folders are made
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
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """
    Bring the names in a folder to the disk, where the system can.

    :param folder: whose files have been renamed
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int | None:
    """
    An exclusive lock that ends with the process.

    :param folder: of a replay buffer
    :return: descriptor that holds it until it is closed; None where the system has no such locks
    :raises StorageError: if another one has it
    """
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


def read_format(path: Path, version: int) -> dict[str, Any]:
    """
    :param path: of a JSON file that describes others
    :param version: that is understood
    :return: its content
    :raises StorageError: if it is missing or damaged, or of another version
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} is damaged or missing: {error}.") from error
    if not isinstance(found, dict) or found.get("format") != version:
        other = found.get("format") if isinstance(found, dict) else found
        raise StorageError(f"{path} has format {other!r}, expected {version}: another version of sb3_dreamer wrote it.")
    return found


def is_path(target: object) -> bool:
    """
    :param target: what a user gave to ``save``
    :return: whether it is the name of a file, not a file
    """
    return not isinstance(target, io.IOBase) and isinstance(target, str | os.PathLike)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
