"""Records of one replay buffer for another one with other numbers of environments or records."""

from itertools import pairwise

import numpy as np

from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.replay.disk_storage import DiskStorage


def refill(target: SequenceReplayBuffer, *sources: SequenceReplayBuffer) -> int:
    """
    Replace everything by the records of other buffers, episode by episode, the oldest first.

    :param target: to be filled
    :param sources: with the same spaces
    :return: the number of records that have no room, the oldest
    :raises ValueError: if records of a source on the disk are not what was written; the target is as it was
    """
    for source in sources:
        check_records(source)
    target.reset()
    found = [
        (first - int(source._written[env]), source, env, first, end)
        for source in sources
        for env, first, end in episodes(source)
    ]
    for _, source, env, first, end in sorted(found, key=lambda part: part[0]):
        ring = int(target._written.argmin())
        target.start_episodes([ring])
        target._episode_first[ring] = target._written[ring]
        for number in range(first, end):
            records = source._storage.read(np.array([env]), np.array([number % source.buffer_size]), 1)
            record = {name: value[0] for name, value in records.items()}
            record["episode_start"] |= number == first
            target.append(np.array([ring]), record)
    target.start_episodes()
    return sum(source.num_records for source in sources) - target.num_records


def check_records(buffer: SequenceReplayBuffer) -> None:
    """
    :param buffer: any; records in memory are not checked
    :raises ValueError: naming the first record on the disk that is damaged
    """
    damaged = buffer._storage.damaged() if isinstance(buffer._storage, DiskStorage) else []
    if damaged:
        raise ValueError(
            f"{buffer.storage_path} has {len(damaged)} damaged records, the first of them number {damaged[0][1]} of ring "
            f"{damaged[0][0]}: nothing was copied."
        )


def episodes(buffer: SequenceReplayBuffer) -> list[tuple[int, int, int]]:
    """
    :param buffer: with records
    :return: ring, first and last record (exclusive) of every episode or part of one, the oldest first
    """
    found, newest = [], buffer._written.tolist()
    for env, oldest in enumerate((buffer._written - buffer._rows()).tolist()):
        cuts = [oldest, *(end + 1 for end in buffer._ends[env] if oldest <= end), newest[env]]
        found += [(env, first, end) for first, end in pairwise(cuts) if end > first]
    return sorted(found, key=lambda part: part[1] - newest[part[0]])
