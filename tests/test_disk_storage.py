"""The replay buffer on disk: the same buffer, and what is left of it after kills, full disks and damage."""

import copy
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_dreamer import DreamerV2, SequenceReplayBuffer
from sb3_dreamer.algorithm.graphs import tensors_of
from sb3_dreamer.common.files import DamageError
from sb3_dreamer.replay.disk_storage import DiskStorage
from sb3_dreamer.replay.index import ENTRY, FLAGS
from sb3_dreamer.replay.rows import CompressedRows, Compression
from tests.small import DISCRETE, LEARN, SMALL, SMALL_POLICY, VECTOR, RandomEnv

SPACE = spaces.Dict({"camera": spaces.Box(0, 255, (1, 6, 5), np.uint8), "arm": spaces.Box(-1.0, 1.0, (3,), np.float32)})
#: Chunks are smaller than the rings of these tests
CHUNK = 4
PLAIN, COMPRESSED = None, Compression(1, CHUNK)
KINDS = pytest.mark.parametrize("kind", [PLAIN, COMPRESSED], ids=["plain", "compressed"])
ROW = np.dtype([("number", np.int64, (4,)), ("done", bool), ("timeout", bool), ("episode_start", bool)])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compression.__new__, "__defaults__", (CHUNK,))


def make_buffer(
    folder: Path | None,
    size: int = 60,
    n_envs: int = 2,
    resume: bool = False,
    kind: Compression | None = PLAIN,
    **kwargs: Any,
) -> SequenceReplayBuffer:
    level = None if kind is None else kind.level
    storage = {} if folder is None else dict(storage_path=str(folder), storage_resume=resume, storage_compression=level)
    options = dict(n_envs=n_envs, batch_length=5, image_size=None, **storage)
    buffer = SequenceReplayBuffer(size, SPACE, DISCRETE, "cpu", **{**options, **kwargs})
    buffer.seed(0)
    return buffer


def fill(buffer: SequenceReplayBuffer, steps: int, seed: int = 0) -> None:
    """Episodes of different lengths, some cut off by time."""
    random = np.random.default_rng(seed)

    def draw() -> dict[str, np.ndarray]:
        camera = random.integers(256, size=(buffer.n_envs, 1, 6, 5), dtype=np.uint8)
        return {"camera": camera, "arm": random.normal(size=(buffer.n_envs, 3)).astype(np.float32)}

    for _ in range(steps):
        done = random.random(buffer.n_envs) < 0.2
        infos = [{"TimeLimit.truncated": bool(flag and random.random() < 0.5)} for flag in done]
        actions, rewards = random.integers(3, size=buffer.n_envs), random.normal(size=buffer.n_envs)
        buffer.add(draw(), draw(), actions, rewards, done, infos)


def same_samples(a: SequenceReplayBuffer, b: SequenceReplayBuffer) -> None:
    for length in (1, 5, 7):
        for buffer in (a, b):
            buffer.seed(1)
        one, other = (buffer.sample(20, batch_length=length) for buffer in (a, b))
        for x, y in zip(tensors_of(one), tensors_of(other), strict=True):
            assert x.dtype == y.dtype and x.equal(y)


@KINDS
@pytest.mark.parametrize("steps", [3, 20, 100], ids=["few", "half", "wrapped"])
def test_the_same_buffer(steps: int, kind: Compression | None, tmp_path: Path) -> None:
    """Beside one in memory, while it is written, and opened again."""
    memory, disk = make_buffer(None), make_buffer(tmp_path / "replay", kind=kind)
    assert isinstance(disk.storage._rows, CompressedRows) == (kind is not None)  # type: ignore[attr-defined]
    for buffer in (memory, disk):
        fill(buffer, steps)
    same_samples(memory, disk)
    assert disk.num_records == memory.num_records and disk.positions.tolist() == memory.positions.tolist()
    for name in ("actions", "rewards", "dones", "timeouts"):
        rows = slice(disk.size())
        np.testing.assert_array_equal(getattr(memory, name)[rows], getattr(disk, name)[rows])
    again = make_buffer(tmp_path / "replay", resume=True, kind=kind)
    same_samples(memory, again)
    assert again.storage.damaged() == []  # type: ignore[attr-defined]
    for buffer in (memory, again):
        buffer.start_episodes()
        fill(buffer, 7, seed=1)
    same_samples(memory, again)
    with pytest.raises(ValueError, match="has been closed, or opened again"):
        fill(disk, 1)


def test_whoever_opens_a_folder_must_say_so(tmp_path: Path) -> None:
    fill(make_buffer(tmp_path), 3)
    with pytest.raises(ValueError, match=r"holds a replay buffer already\. Set storage_resume=True"):
        make_buffer(tmp_path)
    for options, text in (
        (dict(size=80), "capacity: the folder has 30, expected 40"),
        (dict(n_envs=3), "n_envs: the folder has 2, expected 3"),
        (dict(image_size=(3, 3)), "row: "),
        (dict(kind=COMPRESSED), r"compression: the folder has None, expected \{'name': 'zstandard'"),
    ):
        with pytest.raises(ValueError, match=text):
            make_buffer(tmp_path, resume=True, **options)
    with pytest.raises(ValueError, match="layout: "):
        SequenceReplayBuffer(
            60, SPACE, spaces.Discrete(4), "cpu", 2, image_size=None, storage_path=str(tmp_path), storage_resume=True
        )
    assert make_buffer(tmp_path, resume=True).num_records > 0, "nothing of this has touched it"


def test_another_process_is_kept_out(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path)
    fill(buffer, 3)
    code = f"from tests.test_disk_storage import *; make_buffer(Path({str(tmp_path)!r}), resume=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is in use by another buffer or process" in done.stderr
    fill(buffer, 1)


@KINDS
def test_pickle_refers_to_the_folder(kind: Compression | None, tmp_path: Path) -> None:
    """A checkpoint is small; loaded again it has what it had then, not what came after."""
    buffer = make_buffer(tmp_path / "replay", size=1000, kind=kind)
    fill(buffer, 50)
    checkpoint = pickle.dumps(buffer)
    assert len(checkpoint) < 5000
    fill(buffer, 20, seed=1)
    loaded = pickle.loads(checkpoint)
    memory = make_buffer(None, size=1000)
    fill(memory, 50)
    same_samples(memory, loaded)
    fill(loaded, 5, seed=2)
    memory.start_episodes()
    fill(memory, 5, seed=2)
    same_samples(memory, loaded)
    shutil.rmtree(tmp_path / "replay")
    with pytest.raises(ValueError, match="there is no such buffer"):
        pickle.loads(checkpoint)


@KINDS
def test_forgetting_everything(kind: Compression | None, tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, kind=kind)
    fill(buffer, 100)
    buffer.reset()
    assert buffer.num_records == 0
    assert make_buffer(tmp_path, resume=True, kind=kind).num_records == 0
    again, memory = make_buffer(tmp_path, resume=True, kind=kind), make_buffer(None)
    for one in (again, memory):
        fill(one, 14)
    same_samples(again, memory)


# ------------------------------------------------------------------------------------------------------------ accidents


def storage(
    folder: Path, kind: Compression | None = PLAIN, resume: bool = False, capacity: int = 16, flush_interval: int = 10
) -> DiskStorage:
    return DiskStorage(ROW, 2, capacity, folder, "", resume, kind, flush_interval)


def append(target: DiskStorage, count: int, timeout: bool = False) -> None:
    """Records that know their own number."""
    for _ in range(count):
        numbers = target.written.copy()
        records = {"number": np.repeat(numbers[:, None], 4, axis=1)}
        records |= {name: np.full(2, timeout and name == "timeout") for name in ("done", "timeout", "episode_start")}
        target.write(np.arange(2), numbers, records)


def truncate(target: DiskStorage, count: int) -> None:
    """What writing does after hiding, without the new record."""
    target.hide([count, count])
    target._forget_hidden()


def check(target: DiskStorage) -> None:
    """Every record that counts is the one it says it is."""
    for env in range(2):
        for number in sorted({*range(int(target.first[env]), int(target.written[env]))} - {*target.holes[env]}):
            found = target.read(np.array([env]), np.array([number]), 1)["number"]
            assert (found == number).all(), (env, number, found)


def write_until_killed(folder: Path, kind: Compression | None, told: mmap.mmap) -> None:
    """In a child process; tells how many records are complete."""
    try:
        target = storage(folder, kind, capacity=64, flush_interval=50)
        while True:
            append(target, 1)
            told[:16] = target.written.tobytes()
    finally:
        os._exit(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@KINDS
def test_fifty_kills(kind: Compression | None, tmp_path: Path) -> None:
    """SIGKILL at random moments of writing, in children of this warm process: nothing is lost, nothing is torn."""
    random, told = np.random.default_rng(0), mmap.mmap(-1, 16)
    records = 0
    for kill in range(50):
        folder = tmp_path / str(kill)
        told[:16] = bytes(16)
        child = os.fork()
        if child == 0:
            write_until_killed(folder, kind, told)
        while told[:16] == bytes(16):
            pass
        time.sleep(float(random.uniform(0.0, 0.01)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        complete = np.frombuffer(told[:16], np.int64)
        target = storage(folder, kind, resume=True, capacity=64, flush_interval=50)
        assert (target.written >= complete).all() and (target.written <= complete + 1).all()
        check(target)
        assert target.damaged() == [] and (target.written - target.first >= np.minimum(complete, 63)).all()
        append(target, 20)
        check(target)
        target.close()
        records += int(complete.sum())
    assert records > 500, "they were killed in the midst of it"


@KINDS
def test_records_after_the_flush_that_a_power_cut_tore(kind: Compression | None, tmp_path: Path) -> None:
    """The disk keeps what was flushed; of what came later any part may be missing, old rows may be half overwritten."""
    target = storage(tmp_path, kind)
    append(target, 20)
    target.flush()
    append(target, 4)
    target.close(flush=False)
    with open(tmp_path / "records.bin", "r+b") as file:
        file.seek(target._rows._place(0, 22))  # of ring 0: its index entry is on the disk, its content is not
        file.write(b"\xff" * 8)
    with open(tmp_path / "entries.bin", "r+b") as file:
        file.seek(target._index._place(1, 21))  # of ring 1: the other way round
        file.write(bytes(ENTRY.itemsize))
    with pytest.warns(UserWarning, match=r"2 records \(22 of ring 0, 21 of ring 1\) lost"):
        again = storage(tmp_path, kind, resume=True)
    assert again.written.tolist() == [24, 24] and again.holes == [[22], [21]], "what is whole stays on both sides"
    # Rows of records 20 to 23 are no longer those of 4 to 7
    assert again.first.tolist() == [8, 8]
    check(again)
    assert again.damaged() == []
    append(again, 20)
    check(again)


@KINDS
@pytest.mark.parametrize("more", [5, 14, 40])
def test_truncated_records_do_not_come_back(more: int, kind: Compression | None, tmp_path: Path) -> None:
    """Neither at once nor behind the records that take their places, nor do the rows that they overwrote."""
    target = storage(tmp_path, kind)
    append(target, 23)
    truncate(target, 18)
    check(target)
    append(target, more)
    truncate(target, 20)
    held = (target.first.tolist(), target.written.tolist())
    target.close()
    again = storage(tmp_path, kind, resume=True)
    assert (again.first.tolist(), again.written.tolist()) == held and again.damaged() == []
    append(again, 1)
    again.close(flush=False)
    last = storage(tmp_path, kind, resume=True)
    assert last.written.tolist() == [21, 21] and last.damaged() == []
    check(last)


class Kill(BaseException):
    """Ends a process between two writes, or in one."""


def kill_at(moment: int, random: np.random.Generator, patch: pytest.MonkeyPatch) -> None:
    """
    The ``moment``-th write ends somewhere in its middle, and everything with it. Entries are written as a whole or not at all:
    they are aligned to their size, so that no page and no sector of a disk has a part of one.
    """
    write, left = os.pwrite, [moment]

    def pwrite(descriptor: int, content: bytes, offset: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            part = int(random.integers(len(content)))
            write(descriptor, content[: part if len(content) != ENTRY.itemsize else part // 8 * 16], offset)
            raise Kill
        return write(descriptor, content, offset)

    patch.setattr(os, "pwrite", pwrite)


@KINDS
@pytest.mark.filterwarnings("error:The replay buffer.* is damaged")
@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_writing_hiding_and_kills(
    seed: int, kind: Compression | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is seen is what was written last under its number; what was hidden comes back only if nothing took its place."""
    random = np.random.default_rng(seed)
    capacity, interval = int(random.integers(5, 40)), int(random.integers(1, 12))
    open_again = partial(DiskStorage, ROW, 1, capacity, tmp_path, "", True, kind, interval)
    target, contents, serial = open_again(), list[int](), 0

    def look() -> None:
        first, end = int(target.first[0]), int(target.written[0])
        assert first <= lowest, "none is lost"
        found = [int(target.read(np.array([0]), np.array([n]), 1)["number"][0, 0, 0]) for n in range(first, end)]
        assert found == contents[first:end] and target.damaged() == []

    lowest = 0
    for _ in range(60):
        killed = False
        with monkeypatch.context() as patch:
            if random.random() < 0.3:
                kill_at(int(random.integers(12)), random, patch)
            before = list(contents)
            try:
                if random.random() < 0.25:
                    kept = int(random.integers(len(contents) + 1))
                    target.hide([kept])
                    before, contents = contents, contents[:kept]
                for _ in range(int(random.integers(1, 9))):
                    serial += 1
                    record = {"number": np.full((1, 4), serial), **{n: np.zeros(1, bool) for n in FLAGS}}
                    target.write(np.array([0]), np.array([len(contents)]), record)
                    contents, before = [*contents, serial], []
                    lowest = max(lowest, len(contents) - capacity)
            except Kill:
                killed = True
        if killed or random.random() < 0.2:
            target.close(flush=not killed)
            target = open_again()
            count = int(target.written[0])
            hidden = before[len(contents) :]  # they may be there again, or the record in the making
            newest = target.read(np.array([0]), np.array([count - 1]), 1)["number"][0, 0, 0] if count > target.first[0] else 0
            hidden = [serial] if killed and count == len(contents) + 1 and newest == serial else hidden
            assert len(contents) <= count <= len(contents) + len(hidden)
            contents = [*contents, *hidden][:count]
            overwriting = (
                count + target.flush_interval + 1 - capacity
            )  # rows of the oldest, which the end may have found half written
            assert target.first[0] <= max(lowest, overwriting)
            lowest = max(lowest, int(target.first[0]))
        look()


@KINDS
def test_a_full_disk_is_one_error_and_loses_nothing(
    kind: Compression | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, memory = make_buffer(tmp_path, kind=kind), make_buffer(None)
    for one in (buffer, memory):
        fill(one, 20)
    write, calls = os.pwrite, [0]

    def full(descriptor: int, content: bytes, offset: int) -> int:
        calls[0] += 1
        return write(descriptor, content[: len(content) // 2], offset)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "pwrite", full)
        fill(buffer, 1, seed=1)
    assert calls[0] == 1
    same_samples(memory, buffer)
    again = make_buffer(tmp_path, resume=True, kind=kind)
    assert again.storage.damaged() == []  # type: ignore[attr-defined]
    same_samples(memory, again)


@pytest.mark.filterwarnings("error:The replay buffer.* is damaged")
@KINDS
def test_whichever_write_finds_the_disk_full(
    kind: Compression | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a chunk, a record, an index entry, the first or the second ring; full rings too."""
    target, write, left = storage(tmp_path, kind), os.pwrite, [0]

    def full(descriptor: int, content: bytes, offset: int) -> int:
        left[0] -= 1
        part = len(content) // 2 if len(content) != ENTRY.itemsize else 0
        return write(descriptor, content if left[0] >= 0 else content[:part], offset)

    for count in range(60):
        left[0] = 7 * count % 41
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr(os, "pwrite", full)
            append(target, 100)
        check(target)
        held = target.written.copy()
        assert held[0] == held[1], "a step counts in all rings or in none"
    target.close(flush=False)
    again = storage(tmp_path, kind, resume=True)
    assert again.damaged() == [] and (again.written >= held).all() and held[0] > 100
    check(again)


@pytest.mark.parametrize("name", ["records.bin", "chunks.bin", "entries.bin", "format.json"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_truncated_and_missing_files_are_named(name: str, part: float, tmp_path: Path) -> None:
    make = partial(make_buffer, tmp_path, kind=COMPRESSED)
    fill(make(), 10)
    path = tmp_path / name
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match=rf"{name} (is damaged|has format)"):
        make(resume=True)
    path.unlink()
    with pytest.raises(ValueError, match=f"{name} is damaged" if name != "format.json" else "but no format.json"):
        make(resume=True)
    path.write_bytes(content)
    assert make(resume=True).num_records > 0


@KINDS
def test_flipped_bits_are_found(kind: Compression | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_dreamer.replay.disk_storage.NEWEST", 1)  # opening does not look at them
    target = storage(tmp_path, kind, capacity=100)
    append(target, 50)
    target.close()
    rows: Any = target._rows
    name, place = ("records.bin", rows._place(1, 7) + 3) if kind is None else ("chunks.bin", rows._slot(1, 4) + 20)
    with open(tmp_path / name, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))
    again = storage(tmp_path, kind, resume=True, capacity=100)
    assert again.damaged() == [(1, 7)] if kind is None else [(1, 4), (1, 5), (1, 6), (1, 7)]
    with pytest.raises(DamageError, match=r"record \(7 of ring 1\)" if kind is None else "the chunk of record 4 of ring 1"):
        again.read(np.array([1]), np.array([3]), 5)
    again.leave_out(again.damaged())
    assert again.damaged() == []


def test_another_version_is_named(tmp_path: Path) -> None:
    fill(make_buffer(tmp_path), 3)
    text = (tmp_path / "format.json").read_text()
    assert '"sb3_dreamer": ' in text
    (tmp_path / "format.json").write_text(text.replace('"format": 2', '"format": 7'))
    with pytest.raises(ValueError, match="has format 7, expected 2: another version"):
        make_buffer(tmp_path, resume=True)


def test_what_can_be_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that repeat themselves take little of the disk, noise takes no more than it has."""
    monkeypatch.setattr(Compression.__new__, "__defaults__", (64,))
    frames, random = spaces.Box(0, 255, (1, 64, 64), np.uint8), np.random.default_rng(0)
    used = {}
    for name in ("dark", "noise"):
        folder = tmp_path / name
        buffer = SequenceReplayBuffer(500, frames, DISCRETE, "cpu", storage_path=str(folder), storage_compression=1)
        for _ in range(400):
            obs = random.integers(2 if name == "dark" else 256, size=(2, 1, 1, 64, 64), dtype=np.uint8)
            obs[:, :, :, 2:] *= name == "noise"
            buffer.add(obs[0], obs[1], np.zeros(1, np.int64), np.zeros(1), np.zeros(1, bool), [{}])
        buffer.storage.flush()  # type: ignore[attr-defined]
        used[name] = (folder / "chunks.bin").stat().st_blocks * 512 / (384 * 4096)
    assert used["dark"] < 0.1 and 0.9 < used["noise"] < 1.1


def test_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="storage_compression=3 needs a storage_path"):
        SequenceReplayBuffer(60, SPACE, DISCRETE, "cpu", storage_compression=3)
    for level in (0, 23, 1.5, True):
        with pytest.raises(ValueError, match="must be a level of zstandard from 1 to 22"):
            make_buffer(tmp_path, kind=Compression(level))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ImportError, match="pip install zstandard"):
        make_buffer(tmp_path, kind=COMPRESSED)
    assert not (tmp_path / "format.json").exists()


def test_nothing_is_mapped_or_kept_in_memory(tmp_path: Path) -> None:
    """Two million rows are a sparse file until they are written."""
    frames = spaces.Box(0, 255, (1, 64, 64), np.uint8)
    tracemalloc.start()
    buffer = SequenceReplayBuffer(2_000_000, frames, DISCRETE, "cpu", storage_path=str(tmp_path))
    assert buffer.memory_bytes() > 8e9
    obs = np.zeros((1, 1, 64, 64), np.uint8)
    for _ in range(300):
        buffer.add(obs, obs, np.zeros(1, np.int64), np.zeros(1), np.zeros(1, bool), [{}])
    buffer.sample(4, batch_length=50)
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()
    used = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
    assert used < 10e6


# ----------------------------------------------------------------------------------------------------------- with agents


def test_an_agent_goes_on_with_its_folder(tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, **LEARN, "policy_kwargs": SMALL_POLICY, "seed": 0}
    folder = dict(storage_path=str(tmp_path / "replay"))
    memory = DreamerV2("MlpPolicy", RandomEnv(copy.deepcopy(VECTOR)), **options).learn(40)
    disk = DreamerV2("MlpPolicy", RandomEnv(copy.deepcopy(VECTOR)), replay_buffer_kwargs=folder, **options).learn(40)
    for a, b in zip(memory.policy.parameters(), disk.policy.parameters(), strict=True):
        assert a.equal(b), "the same buffer, the same training"
    with pytest.raises(ValueError, match="holds a replay buffer already"):
        DreamerV2("MlpPolicy", RandomEnv(VECTOR), replay_buffer_kwargs=folder, **options)
    disk.save(tmp_path / "model.zip")
    disk.save_replay_buffer(tmp_path / "buffer.pkl")
    count = disk.replay_buffer.num_records
    disk.learn(16, reset_num_timesteps=False)
    other = DreamerV2("MlpPolicy", RandomEnv(VECTOR), **options)
    other.load_replay_buffer(tmp_path / "buffer.pkl")
    assert other.replay_buffer.num_records == count and other.replay_buffer.storage_path == str(tmp_path / "replay")
    other.learn(24)


def test_damaged_records_are_not_copied(tmp_path: Path) -> None:
    """Copying would give them a new checksum."""
    source = make_buffer(tmp_path)
    fill(source, 20)
    storage_: Any = source.storage
    storage_.flush()
    with open(tmp_path / "records.bin", "r+b") as file:
        file.seek(storage_._rows._place(1, 7) + 3)
        file.write(bytes(3))
    target = make_buffer(None, n_envs=1)
    held = source.num_records
    with pytest.warns(UserWarning, match="has 1 damaged records, the first of them number 7 of ring 1"):
        assert target.refill(source) == 0
    assert target.num_records == source.num_records == held - 1
    starts = target.storage.view("episode_start")[0, : held - 1]
    assert starts.sum() == len(source.rings.episodes()), "what follows the gap begins anew"
