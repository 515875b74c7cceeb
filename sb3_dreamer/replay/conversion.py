"""Copies the records of replay buffers into one with another number of environments or records."""

import numpy as np

from sb3_dreamer.replay.buffer import SequenceReplayBuffer


def refill(target: SequenceReplayBuffer, *sources: SequenceReplayBuffer) -> int:
    """
    Replace all records by those of other buffers, episode by episode, the oldest first.

    :param target: to be filled
    :param sources: with the same spaces
    :return: number of records that had no room, the oldest
    :raises ValueError: if records of a source on the disk are damaged; the target is as it was
    """
    for source in sources:
        _check_records(source)
    target.reset()
    found = [
        (first - int(source.rings.written[env]), source, env, first, end)
        for source in sources
        for env, first, end in source.rings.episodes()
    ]
    for _, source, env, first, end in sorted(found, key=lambda part: part[0]):
        ring = int(target.rings.written.argmin())
        for number in range(first, end):
            records = source.storage.read(np.array([env]), np.array([number]), 1)
            record = {name: value[0] for name, value in records.items()}
            record["episode_start"] |= number == first
            target.append(np.array([ring]), record)
    return sum(source.num_records for source in sources) - target.num_records


def _check_records(buffer: SequenceReplayBuffer) -> None:
    """Refuse a buffer on the disk with damaged records, which a copy would give a new checksum."""
    damaged = buffer.storage.damaged()
    if damaged:
        raise ValueError(
            f"{buffer.storage_path} has {len(damaged)} damaged records, the first of them number {damaged[0][1]} of ring "
            f"{damaged[0][0]}: nothing was copied."
        )
