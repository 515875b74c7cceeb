"""Model and buffer files, checked from end to end before anything in them is used."""

import io
import json
import os
import pathlib
import pickle
import zipfile
import zlib
from typing import Any, BinaryIO

from stable_baselines3.common.save_util import open_path

from sb3_dreamer.common.files import FormatError, StorageError, is_path
from sb3_dreamer.common.options import limit

#: Attribute of a model that says how its file is written, and the present way
FORMAT_ATTRIBUTE, MODEL_FORMAT = "_file_format", 2
#: Bytes of options in a model file, which otherwise are some hundred thousand
LARGEST_DATA = 1 << 26
#: After the pickle of a buffer: this and the CRC-32 of the pickle. SB3's own reader stops before it
TRAILER = b"sb3_dreamer replay buffer crc32 "


def with_suffix(path: Any) -> pathlib.Path:
    """
    Append the suffix of a buffer file, as SB3 does.

    :param path: of a buffer's file
    :return: the same, with a suffix
    """
    path = pathlib.Path(path)
    return path if path.suffix else pathlib.Path(f"{path}.pkl")


class ChecksumWriter:
    """
    Computes the checksum of everything that is written to a file.

    :param file: open for writing
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.value = file, 0

    def write(self, content: Any) -> int:
        """
        Write to the file.

        :param content: bytes, or a buffer of them
        :return: number of bytes
        """
        self.value = zlib.crc32(content, self.value)
        return self._file.write(content)


def check_model_file(path: str | pathlib.Path | io.BufferedIOBase) -> None:
    """
    Check a model file completely: the checksums of its parts, and the version of its format.

    :param path: of the file; the suffix may be left out
    :raises ValueError: if it is not a complete model file, or written in another format
    :raises FileNotFoundError: if there is none
    """
    file = open_path(path, "r", suffix="zip") if not is_path(path) or not os.path.isdir(path) else None  # type: ignore[arg-type]
    if file is None:
        raise ValueError(f"{path} is a folder, not a model file.")
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {part.filename: part.file_size for part in archive.infolist()}
            limit("the size of its part 'data'", sizes.get("data", 0), LARGEST_DATA)
            damaged = archive.testzip()
            missing = {"data", "policy.pth"} - set(archive.namelist())
            data = json.loads(archive.read("data")) if damaged is None and not missing else {}
    except Exception as error:  # zipfile raises anything
        raise ValueError(f"{path} is not a complete model file (truncated or of another kind): {error}") from error
    finally:
        if file is not path:
            file.close()
        else:
            file.seek(0)
    if damaged is not None:
        raise ValueError(f"{path} is damaged: its part '{damaged}' does not match its checksum.")
    if missing:
        # The front part of a model file still is a zip file, since it holds others
        raise ValueError(f"{path} is not a complete model file (truncated or of another kind): it has no {sorted(missing)}.")
    written = data.get(FORMAT_ATTRIBUTE, 1)
    if "batch_length" in data and written != MODEL_FORMAT:  # one of ours
        raise ValueError(
            f"{path} has format {written} of another sb3_dreamer, expected format {MODEL_FORMAT}. Load it with the version "
            "that wrote it, or train the agent again."
        )


def _check_buffer_file(file: BinaryIO, path: Any) -> None:
    """Compare a buffer file, open at its beginning, with its checksum."""
    length = len(TRAILER) + 4
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - length))
    trailer = file.read()
    file.seek(0)
    if not trailer.startswith(TRAILER):
        raise ValueError(f"{path} is not a complete replay buffer file (truncated or of another kind): it has no checksum.")
    left, value = size - length, 0
    while left > 0:
        content = file.read(min(left, 1 << 24))
        value, left = zlib.crc32(content, value), left - len(content)
    file.seek(0)
    if value != int.from_bytes(trailer[-4:], "little"):
        raise ValueError(f"{path} is damaged: its content does not match its checksum.")


def unpickle(path: str | pathlib.Path | io.BufferedIOBase, verbose: int = 0) -> Any:
    """
    Unpickle a buffer file. Unlike SB3's ``load_from_pkl`` it raises one kind of error for all damage and closes the file.

    :param path: of the file; the suffix may be left out
    :param verbose: 2 prints the path
    :return: what the file holds
    :raises ValueError: if it is damaged
    """
    if is_path(path) and os.path.isdir(path):  # type: ignore[arg-type]
        raise ValueError(f"{path} is a folder, not a replay buffer file.")
    file: Any = open_path(path, "r", verbose=verbose, suffix="pkl")
    try:
        if file is not path:
            _check_buffer_file(file, path)
        return pickle.load(file)
    except (OSError, MemoryError):
        raise
    except StorageError as error:
        raise StorageError(f"{path} refers to records on the disk. {error}") from error
    except FormatError as error:
        raise FormatError(f"{path} cannot be read. {error}") from error
    except Exception as error:  # pickle raises anything
        if isinstance(error, ImportError) and error.name == "zstandard":
            raise
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{path} is not a complete replay buffer file (truncated or of another kind): {error}") from error
    finally:
        if file is not path:
            file.close()
