"""Files that every rank has for itself, and who takes them when a run goes on with another number of ranks."""

import re
from pathlib import Path

from sb3_dreamer.ranks.distributed import rank, world_size


def file_of_rank(path: str | Path, of: int | None = None) -> Path:
    """
    Name of a file that each rank has: ``replay_buffer.pkl`` on rank 0, ``replay_buffer.rank1.pkl`` on rank 1.

    :param path: of rank 0's file
    :param of: the rank, None for this one
    :return: path of the rank's file
    """
    path, number = Path(path), rank() if of is None else of
    return path if number == 0 else path.with_name(f"{path.stem}.rank{number}{path.suffix}")


def folder_of_rank(path: str | Path) -> str:
    """
    :param path: of rank 0's folder
    :return: this rank's, ``replay`` or ``replay.rank1``
    """
    return str(path) if rank() == 0 else f"{path}.rank{rank()}"


def number_of_ranks(path: str | Path) -> int:
    """
    :param path: of rank 0's file
    :return: how many ranks have saved theirs
    """
    number = 1
    while file_of_rank(path, number).exists():
        number += 1
    return number


def remove_others(path: str | Path) -> None:
    """
    Remove files of ranks that this run does not have, left by a run that had more of them.

    :param path: of rank 0's file
    """
    number = world_size()
    while (old := file_of_rank(path, number)).exists():
        old.unlink()
        number += 1


def is_of_rank(name: str) -> int:
    """
    :param name: of a file
    :return: the rank that it belongs to
    """
    found = re.search(r"\.rank(\d+)(\.[^.]*)?$", name)
    return int(found[1]) if found else 0


def taken_by(number: int, size: int, saved: int) -> list[int]:
    """
    Whose files a rank takes: all that were saved have one taker if there are fewer ranks now, and if there are more, the later
    ones begin with copies.

    :param number: of the rank
    :param size: ranks now
    :param saved: ranks then
    :return: ranks of then
    """
    return list(range(number, saved, size)) or [number % saved]
