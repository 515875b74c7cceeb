"""Files that belong to single ranks, and how they are redistributed when a run resumes with another number of ranks."""

import re
from itertools import count
from pathlib import Path
from typing import NamedTuple

from sb3_dreamer.ranks.distributed import rank, world_size


def file_of_rank(path: str | Path, of: int | None = None) -> Path:
    """
    Path of a rank's file: ``replay_buffer.pkl`` on rank 0, ``replay_buffer.rank1.pkl`` on rank 1.

    :param path: of rank 0's file
    :param of: the rank, None for this one
    :return: path of the rank's file
    """
    path, number = Path(path), rank() if of is None else of
    return path if number == 0 else path.with_name(f"{path.stem}.rank{number}{path.suffix}")


def folder_of_rank(path: str | Path) -> str:
    """
    Path of this rank's folder: ``replay`` on rank 0, ``replay.rank1`` on rank 1.

    :param path: of rank 0's folder
    :return: path of this rank's folder
    """
    return str(path) if rank() == 0 else f"{path}.rank{rank()}"


def number_of_ranks(path: str | Path, at_least: int = 1) -> int:
    """
    Count the ranks that have saved their file.

    :param path: of rank 0's file
    :param at_least: ranks that need no check
    :return: number of ranks
    """
    return next(number for number in count(at_least) if not file_of_rank(path, number).exists())


class SavedFiles(NamedTuple):
    """Files that all ranks of a run have saved, as far as this rank loads them."""

    n_ranks: int  # that have saved
    ranks: list[int]  # whose files this rank loads
    paths: list[Path]  # of these files


def saved_files_for_rank(path: str | Path) -> SavedFiles:
    """
    Find the files that this rank loads: its own, or those that :func:`taken_by` chooses if the number of ranks has changed.

    :param path: of rank 0's file
    :return: the files
    """
    saved = number_of_ranks(path)
    ranks = taken_by(rank(), world_size(), saved)
    return SavedFiles(saved, ranks, [file_of_rank(path, number) for number in ranks])


def remove_others(path: str | Path) -> None:
    """
    Remove files of ranks that this run does not have, left by a run with more ranks.

    :param path: of rank 0's file
    """
    for number in range(world_size(), number_of_ranks(path, at_least=world_size())):
        file_of_rank(path, number).unlink()


def is_of_rank(name: str) -> int:
    """
    Find the rank to which a file belongs.

    :param name: of the file
    :return: the rank
    """
    found = re.search(r"\.rank(\d+)(\.[^.]*)?$", name)
    return int(found[1]) if found else 0


def taken_by(number: int, size: int, saved: int) -> list[int]:
    """
    Choose the saved files that a rank loads.

    With fewer ranks than before, every file is loaded by exactly one rank. With more, the additional ranks load copies.

    :param number: of the rank
    :param size: number of ranks now
    :param saved: number of ranks that have saved
    :return: ranks whose files are loaded
    """
    return list(range(number, saved, size)) or [number % saved]
