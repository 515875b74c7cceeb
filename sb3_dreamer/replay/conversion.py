"""Folders of replay buffers that were written in format 1 (sb3_dreamer 0.1.0 before its release)."""

import zlib
from typing import Any

import numpy as np

from sb3_dreamer.common.files import atomic_file
from sb3_dreamer.replay.folder import StorageFolder
from sb3_dreamer.replay.index import RecordIndex
from sb3_dreamer.replay.rows import PlainRows, RingFile

#: An entry of format 1: its checksum covers record, number and flags
OLD_ENTRY = np.dtype([("number", "<i8"), ("checksum", "<u4"), ("flags", "u1"), ("unused", "u1", (3,))])


class _OldIndex(RingFile):
    name = "index.bin"


def convert(folder: StorageFolder, rows: PlainRows, index: RecordIndex, description: dict[str, Any]) -> None:
    """
    Give a folder of format 1 the index of format 2. All records are read and compared with their checksums. A kill at any
    moment leaves one format or the other.

    :param folder: locked; nothing is done if it is of format 2
    :param rows: of its records
    :param index: to make
    :param description: expected in ``format.json``
    :raises StorageError: if the folder does not fit, or cannot be written
    """
    if folder.found is None or folder.found["format"] != 1:
        return
    old = _OldIndex(OLD_ENTRY, index.n_envs, index.capacity)
    folder.check_writable()
    folder.open(description, {**rows.sizes, **old.sizes})
    for part in (rows, old):
        part.open(folder.files)
    folder.change_identity()
    index.belong_to(folder.identity)
    with atomic_file(folder.path / index.name) as file:
        file.truncate(index.sizes[index.name])
        index.open({index.name: file.fileno()})
        for env in range(index.n_envs):
            _convert_ring(env, rows, old, index)
    folder.describe(description)
    folder.close_files()
    (folder.path / old.name).unlink()


def _convert_ring(env: int, rows: PlainRows, old: _OldIndex, index: RecordIndex) -> None:
    """Enter every record that fits its old entry."""
    for row in range(index.capacity):
        entry = old.read(env, row, 1)[0]
        number, flags = int(entry["number"]), int(entry["flags"])
        if entry["checksum"] == 0 or number < 0 or number % index.capacity != row:
            continue
        for content in (copy.tobytes() for copy in rows.copies(env, number)):
            checksum = zlib.crc32(number.to_bytes(8, "little") + bytes([flags]), zlib.crc32(content)) or 1
            if checksum == entry["checksum"]:
                index.write(env, number, index.entries([(env, number)], [content], [flags])[0])
                break
