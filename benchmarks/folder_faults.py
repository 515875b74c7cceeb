"""
Faults that happen to the folder of a replay buffer, without an agent, for ``benchmarks/soak.py``.

Every record says by its reward in which life of the folder it was written, in which ring and as which one. After a fault the
folder is opened and every record is read. What is there must be what was written. What is missing must be named by a warning,
or the folder must be refused and unchanged. A power cut may cost what came after the last flush, a kill nothing that counted.
"""

import os
import random
import re
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_dreamer import SequenceReplayBuffer
from sb3_dreamer.common.files import StorageError

N_ENVS, CAPACITY = 2, 200
SPACE = spaces.Box(-1e9, 1e9, (3,), np.float32)
FILES = ("entries.bin", "records.bin", "chunks.bin", "flushed.bin", "format.json")
#: Functions that change something on a disk, or make it certain
CALLS = ("pwrite", "replace", "fsync", "fdatasync", "open", "unlink")
Truth = list[dict[int, float]]
#: Number of records in a warning
NAMED = re.compile(r"(\d+) (?:damaged )?records?\b[^.]*(?: lost|,)")


class Outcome(NamedTuple):
    """What a check found."""

    records: int  # that were read and compared
    problem: str | None


def open_buffer(folder: Path) -> SequenceReplayBuffer:
    """
    Open or make the buffer of a folder.

    :param folder: compressed if its name says so
    :return: the buffer
    """
    level = 1 if folder.name.startswith("compressed") else None
    storage: dict[str, Any] = dict(storage_path=str(folder), storage_resume=True, storage_compression=level)
    buffer = SequenceReplayBuffer(N_ENVS * CAPACITY, SPACE, spaces.Discrete(3), "cpu", N_ENVS, batch_length=5, **storage)
    buffer.storage.flush_interval = 60  # type: ignore[attr-defined]
    return buffer


def fill(buffer: SequenceReplayBuffer, steps: int, truth: Truth, life: int) -> None:
    """
    Write steps, and note what was written as soon as it counts.

    :param buffer: to write to
    :param steps: number of steps
    :param truth: for each ring the reward by record, changed
    :param life: of the folder, to tell records apart that have the same number
    """
    for _ in range(steps):
        first = buffer.rings.written + buffer.rings.starting
        rewards = (life * 1000 + first) * N_ENVS + np.arange(N_ENVS)
        before = buffer.rings.written.copy()
        observation = np.repeat(rewards[:, None], 3, axis=1).astype(np.float32)
        done = first % 17 == 16
        buffer.add(observation, observation, np.zeros(N_ENVS, np.int64), rewards, done, [{}] * N_ENVS)
        for env in range(N_ENVS):
            if first[env] > before[env]:
                truth[env][int(before[env])] = 0.0
            truth[env][int(first[env])] = float(rewards[env])


def prepare(folder: Path, chance: random.Random) -> Truth:
    """
    A closed folder with records.

    :param folder: to make
    :param chance: chooses how many
    :return: what is in it
    """
    truth: Truth = [{} for _ in range(N_ENVS)]
    buffer = open_buffer(folder)
    fill(buffer, chance.randint(30, 400), truth, 0)
    buffer.storage.close()  # type: ignore[attr-defined]
    return truth


def check(folder: Path, truth: Truth, may_lose: int = 0, may_refuse: bool = False) -> Outcome:
    """
    Open a folder after a fault and compare everything.

    :param folder: of the buffer
    :param truth: what was written
    :param may_lose: newest records that may be missing
    :param may_refuse: whether an error that leaves everything as it is will do
    :return: what was found
    """
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            buffer = open_buffer(folder)
        except StorageError as error:
            unchanged = before == {path.name: path.read_bytes() for path in folder.iterdir()}
            return Outcome(0, None if may_refuse and unchanged else f"refused: {error}")
        for _ in range(3):
            if buffer.num_records:
                buffer.sample(8)
        buffer.leave_out_damaged()
        found: dict[tuple[int, int], float] = {}
        for env, first, end in buffer.rings.episodes():
            rewards = buffer.storage.read(np.array([env]), np.array([first]), end - first)["reward"][:, 0]
            found |= {(env, first + index): float(reward) for index, reward in enumerate(rewards)}
        buffer.storage.close()  # type: ignore[attr-defined]
    wrong = [place for place, reward in found.items() if truth[place[0]].get(place[1]) != reward]
    named = sum(int(number) for one in said for number in re.findall(NAMED, str(one.message)))
    newest = [max(ring, default=-1) for ring in truth]
    spans = [range(last - CAPACITY + may_lose + 1, last - may_lose + 1) for last in newest]
    expected = {(env, number) for env, span in enumerate(spans) for number in truth[env] if number in span}
    missing = expected - set(found)
    if wrong:
        return Outcome(len(found), f"{len(wrong)} records are not what was written, such as {wrong[:3]}")
    silent = len(missing) - named
    return Outcome(len(found), f"{silent} records lost silently, such as {sorted(missing)[:3]}" if silent > 0 else None)


# ------------------------------------------------------------------------------------------------------------------ faults


@contextmanager
def counted(act: Callable[[str, tuple[Any, ...]], None]) -> Iterator[None]:
    """
    Context in which something happens before each call that matters for a disk.

    :param act: given the name of the function and its arguments
    """

    def layer(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            act(name, arguments)
            return function(*arguments, **options)

        return call

    kept = {name: getattr(os, name) for name in CALLS if hasattr(os, name)}
    for name, function in kept.items():
        setattr(os, name, layer(name, function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(os, name, function)


def kill_at_a_call(folder: Path, chance: random.Random) -> Outcome:
    """A process that writes, empties and writes again is killed at one of its system calls."""
    told = folder.parent / "told"
    descriptor = os.open(told, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    left, life = chance.randint(0, 900), chance.random() < 0.3
    child = os.fork()
    if child == 0:

        def act(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        truth: Truth = [{} for _ in range(N_ENVS)]
        try:
            write = os.pwrite
            with counted(act):
                buffer = open_buffer(folder)
                for step in range(10**6):
                    if step == 60 and life:
                        write(descriptor, (1).to_bytes(8, "little"), 0)
                        buffer.reset()
                    fill(buffer, 1, truth, 1 if step >= 60 and life else 0)
                    content = [int(life and step >= 60), *buffer.rings.written.tolist()]
                    write(descriptor, b"".join(number.to_bytes(8, "little") for number in content), 0)
        finally:
            os._exit(1)
    os.waitpid(child, 0)
    told_bytes = told.read_bytes()
    os.close(descriptor)
    if not (folder / "format.json").exists():
        return Outcome(0, "the folder is gone" if told_bytes else None)
    numbers = [int.from_bytes(told_bytes[start : start + 8], "little") for start in range(0, len(told_bytes), 8)]
    emptied, written = (numbers[0], numbers[1:]) if numbers else (0, [])
    buffer = open_buffer(folder)
    now = buffer.rings.written.tolist()
    rewards = (
        buffer.storage.read(np.arange(N_ENVS), buffer.rings.written - 1, 1)["reward"][0] if all(now) else np.zeros(N_ENVS)
    )
    buffer.storage.close()  # type: ignore[attr-defined]
    in_new_life = bool(emptied) and (rewards.max() >= 1000 * N_ENVS or not all(now) or max(now) < 50)
    told_counts = written if written and (not emptied or in_new_life) else []
    if any(is_now < was for is_now, was in zip(now, told_counts, strict=False)) and not (
        emptied and in_new_life and max(now) < 3
    ):
        return Outcome(0, f"{told_counts} records were told, {now} are there")
    truth = [{} for _ in range(N_ENVS)]
    for env, count in enumerate(now):
        for number in range(count):
            start = number == 0 or (number - 1) % 17 == 16
            truth[env][number] = 0.0 if start else float(((1000 if in_new_life else 0) + number) * N_ENVS + env)
    return check(folder, truth, may_lose=1)


def flip_in(name: str) -> Callable[[Path, random.Random], Outcome]:
    """
    Make a fault: one bit of a file.

    :param name: of the file
    """

    def flip(folder: Path, chance: random.Random) -> Outcome:
        truth, path = prepare(folder, chance), folder / name
        content = bytearray(path.read_bytes())
        used = [place for place in range(len(content)) if content[place]] or [0]
        content[chance.choice(used)] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        return check(folder, truth, may_refuse=name == "format.json")

    return flip


def zeroed_block(folder: Path, chance: random.Random) -> Outcome:
    """A part of a file reads as zeros."""
    truth = prepare(folder, chance)
    path = chance.choice([folder / name for name in FILES[:3] if (folder / name).exists()])
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    path.write_bytes(content)
    return check(folder, truth, may_refuse=True)


def truncated_file(folder: Path, chance: random.Random) -> Outcome:
    """A file ends early, or is gone."""
    truth = prepare(folder, chance)
    path = chance.choice([folder / name for name in FILES if (folder / name).exists()])
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])
    if chance.random() < 0.3:
        path.unlink()
    return check(folder, truth, may_refuse=True)


def swapped_file(folder: Path, chance: random.Random) -> Outcome:
    """A file is that of another folder."""
    truth, other = prepare(folder, chance), folder.with_name(f"{folder.name} other")
    buffer = open_buffer(other)
    fill(buffer, chance.randint(30, 400), [{} for _ in range(N_ENVS)], 7)
    buffer.storage.close()  # type: ignore[attr-defined]
    name = chance.choice([name for name in FILES if (folder / name).exists()])
    shutil.copy(other / name, folder / name)
    shutil.rmtree(other)
    return check(folder, truth, may_refuse=True)


def copied_in_use(folder: Path, chance: random.Random) -> Outcome:
    """Files are copied one after the other while the buffer is written."""
    truth: Truth = [{} for _ in range(N_ENVS)]
    source = folder.with_name(f"{folder.name} in use")
    buffer = open_buffer(source)
    fill(buffer, chance.randint(30, 300), truth, 0)
    folder.mkdir()
    for name in chance.sample(FILES, len(FILES)):
        if (source / name).exists():
            shutil.copy(source / name, folder)
        fill(buffer, chance.randint(0, 40), truth, 0)
    buffer.storage.close()  # type: ignore[attr-defined]
    problem = check(source, truth).problem
    shutil.rmtree(source)
    # What is newer than the copy is not missing: nothing in the copy tells of it
    outcome = check(folder, truth, may_lose=CAPACITY, may_refuse=True)
    return outcome if problem is None else Outcome(outcome.records, f"the original: {problem}")


def moved_in_use(folder: Path, chance: random.Random) -> Outcome:
    """The folder is moved while the buffer is written."""
    truth: Truth = [{} for _ in range(N_ENVS)]
    buffer, moved = open_buffer(folder), folder.with_name(f"{folder.name} moved")
    fill(buffer, chance.randint(30, 300), truth, 0)
    folder.rename(moved)
    try:
        fill(buffer, 100, truth, 0)
        problem: str | None = "the move was not noticed"
    except StorageError:
        problem = "a new folder was made" if folder.exists() else None
        for env, count in enumerate(buffer.rings.written.tolist()):
            truth[env].setdefault(count - 1, 0.0)  # a first observation, stored before the step that was refused
    try:
        buffer.storage.close()  # type: ignore[attr-defined]
    except StorageError:
        pass
    moved.rename(folder)
    outcome = check(folder, truth)
    return outcome if problem is None else Outcome(outcome.records, problem)


def forked(folder: Path, chance: random.Random) -> Outcome:
    """A forked process writes, flushes, empties or drops the buffer that it inherited."""
    truth: Truth = [{} for _ in range(N_ENVS)]
    buffer = open_buffer(folder)
    fill(buffer, chance.randint(30, 300), truth, 0)
    kind = chance.choice(["write", "flush", "reset", "drop"])
    child = os.fork()
    if child == 0:
        try:
            storage: Any = buffer.storage
            acts: dict[str, Callable[[], Any]] = {"write": lambda: fill(buffer, 5, truth, 3), "flush": storage.flush}
            acts |= {"reset": buffer.reset, "drop": storage.close}
            acts[kind]()
        except StorageError:
            pass
        finally:
            os._exit(0)
    fill(buffer, chance.randint(0, 300), truth, 0)
    os.waitpid(child, 0)
    buffer.storage.close(flush=chance.random() < 0.5)  # type: ignore[attr-defined]
    return check(folder, truth)


def power_cut(folder: Path, chance: random.Random) -> Outcome:
    """Of what was written after the last flush any part is lost, in units of entries and of pages."""
    truth: Truth = [{} for _ in range(N_ENVS)]
    log: list[tuple[str, int, bytes]] = []
    names: dict[int, str] = {}
    flushed = [0] * N_ENVS

    def act(name: str, arguments: tuple[Any, ...]) -> None:
        if name == "pwrite":
            descriptor, content, offset = arguments
            log.append((names[descriptor], offset, os.pread(descriptor, len(content), offset)))
        elif name in ("fsync", "fdatasync") and arguments[0] in names:
            log[:] = [entry for entry in log if entry[0] != names[arguments[0]]]
            flushed[:] = [max(ring, default=-1) + 1 for ring in truth]

    buffer = open_buffer(folder)
    names |= {descriptor: name for name, descriptor in buffer.storage._folder.files.items()}  # type: ignore[attr-defined]
    with counted(act):
        fill(buffer, chance.randint(30, 500), truth, 0)
    buffer.storage.close(flush=False)  # type: ignore[attr-defined]
    for name, offset, old in reversed(log):
        if chance.random() < 0.5:
            with open(folder / name, "r+b") as file:
                file.seek(offset)
                file.write(old)
    newest = [max(ring, default=-1) + 1 for ring in truth]
    return check(folder, truth, may_lose=max(now - then for now, then in zip(newest, flushed, strict=True)))


KINDS: dict[str, Callable[[Path, random.Random], Outcome]] = {
    "kill at a system call": kill_at_a_call,
    **{f"bit of {name}": flip_in(name) for name in FILES},
    "zeroed block": zeroed_block,
    "folder's file truncated or gone": truncated_file,
    "file of another folder": swapped_file,
    "copy while in use": copied_in_use,
    "folder moved while in use": moved_in_use,
    "fork": forked,
    "power cut": power_cut,
}


def happen(kind: str, place: Path, compressed: bool, chance: random.Random) -> Outcome:
    """
    Let one fault happen to a new folder.

    :param kind: one of ``KINDS``
    :param place: for the folder, which is removed afterwards
    :param compressed: whether its records are
    :param chance: chooses everything else
    :return: what was found
    """
    folder = place / ("compressed folder" if compressed or "chunks" in kind else "plain folder")
    try:
        return KINDS[kind](folder, chance)
    except Exception as error:  # any error is a finding
        return Outcome(0, f"{type(error).__name__}: {error}")
    finally:
        for path in place.glob(f"{folder.name}*"):
            shutil.rmtree(path)
