"""Damaged, moved, copied, forked and foreign folders: nothing is lost silently, and nothing damaged is sampled."""

import json
import os
import shutil
import signal
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sb3_dreamer import SequenceReplayBuffer
from sb3_dreamer.common.files import DamageError, Lock, StorageError
from sb3_dreamer.replay.disk_storage import DiskStorage
from sb3_dreamer.replay.index import ENTRY
from sb3_dreamer.replay.rows import HEADER, CompressedRows, Compression
from tests.test_disk_storage import CHUNK, COMPRESSED, KINDS, PLAIN, ROW, append, check, fill, make_buffer, same_samples

FORMAT_1 = Path(__file__).parent / "data" / "replay_format_1"
ENTRY_BYTES = ENTRY.itemsize
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compression.__new__, "__defaults__", (CHUNK,))


def storage(folder: Path, resume: bool = False, capacity: int = 300, kind: Compression | None = PLAIN) -> DiskStorage:
    return DiskStorage(ROW, 2, capacity, folder, "", resume, kind, flush_interval=60)


def written(folder: Path, count: int = 200, kind: Compression | None = PLAIN, timeout: bool = False) -> Path:
    """A folder with records that know their number, closed."""
    target = storage(folder, kind=kind)
    append(target, count, timeout)
    target.close()
    return folder


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "lock"}


# ------------------------------------------------------------------------------------------------------- damaged entries


@KINDS
@pytest.mark.parametrize("byte", range(ENTRY_BYTES))
def test_a_flipped_bit_in_the_index_costs_one_record(byte: int, kind: Compression | None, tmp_path: Path) -> None:
    flip(written(tmp_path, kind=kind) / "entries.bin", 77 * ENTRY_BYTES + byte, byte % 8)
    with pytest.warns(UserWarning, match=r"1 record \(77 of ring 0\) lost. The other 399 are used; nothing was erased"):
        again = storage(tmp_path, True, kind=kind)
    assert again.holes == [[77], []] and again.first.tolist() == [0, 0] and again.written.tolist() == [200, 200]
    check(again)
    append(again, 50)
    again.close()
    with pytest.warns(UserWarning, match="1 record"):
        check(storage(tmp_path, True, kind=kind))


@KINDS
@pytest.mark.parametrize("rows", [(0, 20), (50, 90), (150, 200)], ids=["oldest", "middle", "newest"])
def test_a_lost_block_of_the_index_is_named(rows: tuple[int, int], kind: Compression | None, tmp_path: Path) -> None:
    first, end = rows
    overwrite(written(tmp_path, kind=kind) / "entries.bin", first * ENTRY_BYTES, bytes((end - first) * ENTRY_BYTES))
    with pytest.warns(UserWarning, match=rf"{end - first} records \({first} to {end - 1} of ring 0\) lost"):
        again = storage(tmp_path, True, kind=kind)
    check(again)
    left = int((again.written - again.first).sum()) - len(again.holes[0])
    assert left == 400 - (end - first) and again.written[0] == 200, "numbers go on where they were"


@KINDS
def test_what_was_flushed_is_only_a_hint(kind: Compression | None, tmp_path: Path) -> None:
    """A wrong, damaged or missing flushed.bin costs nothing, since every entry says by itself what it is."""
    folder = written(tmp_path / "a", 40, kind)
    stale = (folder / "flushed.bin").read_bytes()
    target = storage(folder, True, kind=kind)
    append(target, 500)
    target.close()
    wrong: list[bytes | None] = [stale, stale[:-1], bytes(len(stale)), None]
    for content in wrong:
        (folder / "flushed.bin").unlink()
        if content is not None:
            (folder / "flushed.bin").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = storage(folder, True, kind=kind)
        assert again.written.tolist() == [540, 540] and again.first.tolist() == [240, 240]
        check(again)
        again.close()


@KINDS
@pytest.mark.parametrize("last", ["entries.bin", "records.bin", "chunks.bin", "flushed.bin"])
def test_a_copy_made_while_in_use(last: str, kind: Compression | None, tmp_path: Path) -> None:
    """Files copied one after the other, with 100 steps in between: what fits is there, the rest is named."""
    target = storage(tmp_path / "a", kind=kind)
    append(target, 260)
    target.flush()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    append(target, 100)
    target.flush()
    if not (tmp_path / "a" / last).exists():
        return
    names = [last] if last == "flushed.bin" else [path.name for path in (tmp_path / "a").iterdir() if path.name != last]
    for name in names:
        shutil.copy(tmp_path / "a" / name, tmp_path / "b")
    target.close()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        copy = storage(tmp_path / "b", True, kind=kind)
    check(copy)
    assert copy.damaged() == []
    if last == "records.bin" and kind is not None:  # where nothing was missing in the chunks
        assert not said and copy.written.tolist() == [360, 360] and not any(copy.holes)
    else:
        assert len(said) == 1 and "lost. The other" in str(said[0].message)
    left = sum(int(copy.written[env] - copy.first[env]) - len(copy.holes[env]) for env in range(2))
    assert left >= 300, "of each ring at least the 200 records that all files have"
    append(copy, 400)
    check(copy)


@pytest.mark.parametrize("envs", [[0], [0, 1]], ids=["one ring", "both rings"])
def test_damage_of_the_oldest_record_of_a_full_ring_is_not_silent(envs: list[int], tmp_path: Path) -> None:
    """It looks like a kill while the record was overwritten."""
    target = storage(tmp_path, capacity=100)
    append(target, 250)
    target.close()
    for env in envs:
        overwrite(tmp_path / "records.bin", target._rows._place(env, 150), b"\xff")
    places = ", ".join(f"150 of ring {env}" for env in envs)
    with pytest.warns(
        UserWarning, match=rf"leaves out {len(envs)} records? \({places}\), the oldest: either .* overwriting"
    ) as said:
        again = storage(tmp_path, True, capacity=100)
    assert len(said) == 1
    assert again.first.tolist() == [151 if env in envs else 150 for env in range(2)] and not any(again.holes)
    check(again)
    again.close()


def test_damage_of_the_oldest_record_beside_others_is_counted_with_them(tmp_path: Path) -> None:
    target = storage(tmp_path, capacity=100)
    append(target, 250)
    target.close()
    for number in (150, 240):
        overwrite(tmp_path / "records.bin", target._rows._place(0, number), b"\xff")
    with pytest.warns(UserWarning, match=r"2 records \(150 of ring 0, 240 of ring 0\) lost. The other 198 are used"):
        check(storage(tmp_path, True, capacity=100))


def test_a_damaged_entry_of_the_oldest_record_is_damage(tmp_path: Path) -> None:
    target = storage(tmp_path, capacity=100)
    append(target, 250)
    target.close()
    flip(tmp_path / "entries.bin", 50 * ENTRY_BYTES)
    with pytest.warns(UserWarning, match=r"is damaged: 1 record \(150 of ring 0\) lost. The other 199 are used"):
        check(storage(tmp_path, True, capacity=100))


# -------------------------------------------------------------------------------------------------------- damaged records


def reward_place(buffer: SequenceReplayBuffer, env: int, number: int) -> int:
    target: Any = buffer.storage
    offset = target._row.fields["reward"][1]
    return target._rows._place(env, number) + offset


def damage_records(buffer: SequenceReplayBuffer, what: str) -> None:
    target: Any = buffer.storage
    path, row = Path(buffer.storage_path or "") / "records.bin", target._row.itemsize
    if what == "bit":
        flip(path, reward_place(buffer, 1, 9) + 3, 6)
    elif what == "nan":
        overwrite(path, reward_place(buffer, 0, 12), np.float32(np.nan).tobytes())
    else:
        overwrite(path, target._rows._place(0, 5), bytes(20 * row))


@pytest.mark.parametrize("what", ["bit", "nan", "zeros"])
@pytest.mark.parametrize("reopened", [False, True])
def test_damaged_records_are_never_sampled(what: str, reopened: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_dreamer.replay.disk_storage.NEWEST", 1)
    size = 4000 if reopened else 200  # of a large one, opening compares only the newest and the oldest
    buffer = make_buffer(tmp_path, size=size)
    fill(buffer, 60)
    clean = {env: buffer.storage.read(np.array([env]), np.array([0]), 60)["reward"][:, 0] for env in range(2)}
    if reopened:
        buffer.storage.close()  # type: ignore[attr-defined]
    damage_records(buffer, what)
    if reopened:
        buffer = make_buffer(tmp_path, size=size, resume=True)
    count = {"bit": 1, "nan": 1, "zeros": 20}[what]
    held = buffer.num_records
    with pytest.warns(UserWarning, match=f"has {count} damaged records, the first of them number .* {held - count} are left"):
        for _ in range(30):
            buffer.sample(20)
    known = np.concatenate(list(clean.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = buffer.sample(200)
    assert np.isin(batch.rewards.numpy(), np.append(known, buffer.rewards)).all() and batch.rewards.isfinite().all()
    episodes = buffer.rings.episodes()
    assert sum(end - first for _, first, end in episodes) == buffer.num_records == held - count
    for env, first, end in episodes:
        buffer.recall(np.array([env]), np.array([first]), end - first)
    fill(buffer, 0 if reopened else 150, seed=5)
    assert reopened or (
        buffer.num_records == 200 and not any(h >= buffer.rings.first[e] for e in range(2) for h in buffer.rings.holes[e])
    )


def test_windows_have_their_mass_beside_holes(tmp_path: Path) -> None:
    """Each window without a hole is drawn as often as before, those with one never."""
    buffer = make_buffer(None, size=40, n_envs=2)
    fill(buffer, 40)
    buffer.rings.leave_out([(0, int(buffer.rings.first[0]) + 9), (1, int(buffer.rings.first[1]))])
    envs, starts, length = buffer.rings.draw_windows(np.random.default_rng(0), 60_000, 5, True, False)
    seen = {(int(e), int(s - buffer.rings.first[e])) for e, s in zip(envs, starts, strict=True)}
    wanted = {(0, s) for s in [*range(5), *range(10, 16)]} | {(1, s) for s in range(1, 16)}
    assert seen == wanted and length == 5
    counts = np.unique(envs * 1000 + starts, return_counts=True)[1]
    assert abs(counts / counts.mean() - 1).max() < 0.1


def test_a_file_without_any_record_is_refused_and_kept(tmp_path: Path) -> None:
    folder = written(tmp_path)
    overwrite(folder / "records.bin", 0, b"\xff" * (folder / "records.bin").stat().st_size)
    before = contents(folder)
    with pytest.raises(StorageError, match=r"none of its 400 records is what was written.*Nothing was changed"):
        storage(folder, True)
    assert contents(folder) == before


def test_dropped_records_stay_away(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, size=100)
    fill(buffer, 30)
    held = buffer.num_records
    buffer.drop([(0, 4), (0, 5), (1, 11)])
    assert buffer.num_records == held - 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = make_buffer(tmp_path, size=100, resume=True)
    assert again.num_records == held - 3 and again.rings.holes == [[4, 5], [11]]


def test_a_chunk_may_not_unpack_to_more_than_its_place(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    kind = Compression(1, 64)
    folder = written(tmp_path, kind=kind)
    bomb = zstandard.ZstdCompressor().compress(bytes(32 << 20))
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(32 << 20))
    target = storage(folder, True, kind=kind)
    rows = target._rows
    assert isinstance(rows, CompressedRows)
    for content in (bomb, streamed):
        header = np.array((0, len(content), zlib.crc32(content)), dtype=HEADER)
        overwrite(folder / "chunks.bin", rows._slot(0, 0), header.tobytes() + content)
        rows._latest = {}
        tracemalloc.start()
        with pytest.raises(DamageError, match="does not have its size"):
            rows.read(0, 4, 1)
        assert tracemalloc.get_traced_memory()[1] < 1e6
        tracemalloc.stop()


# -------------------------------------------------------------------------------------------------------- foreign folders


@KINDS
@pytest.mark.parametrize("name", ["records.bin", "entries.bin", "chunks.bin", "index.bin", "flushed.bin"])
@pytest.mark.parametrize("resume", [False, True])
def test_files_of_others_are_not_touched(name: str, resume: bool, kind: Compression | None, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"a file of the user" * 10)
    before = contents(tmp_path)
    with pytest.raises(StorageError, match=rf"holds {name}, but no format.json .* nothing in it is touched"):
        make_buffer(tmp_path, resume=resume, kind=kind)
    assert contents(tmp_path) == before
    folder = written(tmp_path / "ours", kind=kind)
    (folder / "format.json").rename(tmp_path / "kept.json")
    before = contents(folder)
    with pytest.raises(StorageError, match=r"but no format.json .* bring its format\.json back"):
        storage(folder, resume, kind=kind)
    assert contents(folder) == before
    (tmp_path / "kept.json").rename(folder / "format.json")
    check(storage(folder, True, kind=kind))


@pytest.mark.parametrize("text", ["true", "1.0", "null", '"2"', "[]", "3", "0"])
def test_what_is_no_version(text: str, tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "format.json").write_text((folder / "format.json").read_text().replace('"format": 2', f'"format": {text}'))
    before = contents(folder)
    with pytest.raises(StorageError, match=r"has format .*, expected 2: another version of sb3_dreamer, or another program"):
        storage(folder, True)
    assert contents(folder) == before


def test_a_format_file_of_another_program(tmp_path: Path) -> None:
    for text in ("{}", "[1, 2]", "not json", '{"format": 2}', '{"format": 2, "complete": true, "identity": 5}'):
        (tmp_path / "format.json").write_text(text)
        for resume in (False, True):
            with pytest.raises(StorageError):
                storage(tmp_path, resume)
        assert contents(tmp_path) == {"format.json": text.encode()}


@KINDS
@pytest.mark.parametrize("name", ["records.bin", "chunks.bin", "entries.bin", "flushed.bin", "format.json"])
def test_swapped_files_of_two_folders_are_told_apart(name: str, kind: Compression | None, tmp_path: Path) -> None:
    a, b = written(tmp_path / "a", 200, kind), written(tmp_path / "b", 150, kind, timeout=True)
    if not (a / name).exists():
        return
    for source, target in ((a, b), (b, a)):
        shutil.copy(source / name, target / f"{name}.new")
    for folder in (a, b):
        (folder / f"{name}.new").rename(folder / name)
        before = contents(folder)
        if name == "flushed.bin" or name == "format.json":
            expected = "are of different folders: nothing was changed"
        else:
            expected = r"cannot be understood.*Nothing was changed"
        if kind is not None and folder == b and name in ("records.bin", "chunks.bin"):  # each has some of them
            with pytest.warns(UserWarning, match=r"is damaged: .* lost"):
                check(storage(folder, True, kind=kind))
            continue
        if kind is not None and folder == a and name == "records.bin":  # all are in chunks
            check(storage(folder, True, kind=kind))
            continue
        with pytest.raises(StorageError, match=expected):
            storage(folder, True, kind=kind)
        assert contents(folder) == before


@KINDS
def test_a_kill_while_the_folder_is_made_or_emptied(
    kind: Compression | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each file operation: the folder opens again, and either has all records or none."""

    class Kill(BaseException):
        pass

    def run(folder: Path, moment: int) -> bool:
        """Returns whether it was killed."""
        left = [moment]

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise Kill
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("pwrite", "replace", "ftruncate", "fsync", "fdatasync", "open"):
                patch.setattr(os, name, counted(getattr(os, name)))
            patch.setattr("builtins.open", counted(open))
            try:
                target = storage(folder, resume=True, kind=kind)
                append(target, 7)
                target.clear()
                append(target, 2)
            except Kill:
                return True
        return False

    moment, counts = 0, set()
    while run(tmp_path / str(moment), moment):
        folder = tmp_path / str(moment)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = storage(folder, resume=True, kind=kind)
        check(again)
        counts.add(tuple(again.written.tolist()))
        append(again, 3)
        check(again)
        again.close()
        moment += 1
    assert moment > 40 and {(0, 0), (7, 7), (1, 1)} <= counts


# ----------------------------------------------------------------------------------------------- forks, moves, permissions


@needs_fork
def test_a_forked_process_never_writes(tmp_path: Path) -> None:
    """Neither by what it does, nor by dropping what it inherited, nor does it hold the lock when its parent has ended."""
    buffer = make_buffer(tmp_path, size=100)
    fill(buffer, 20)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            storage_: Any = buffer.storage
            for attempt in (lambda: fill(buffer, 1), buffer.reset, storage_.flush, lambda: buffer.drop([(0, 3)])):
                try:
                    attempt()
                    os.write(writing, b"wrote ")
                except StorageError as error:
                    os.write(writing, b"refused " if "belongs to process" in str(error) else b"other ")
            buffer.sample(4)
            storage_.close()
            os.write(writing, b"closed")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"refused refused refused refused closed"
    fill(buffer, 30, seed=1)
    held = buffer.rings.written.tolist()
    child = os.fork()
    if child == 0:
        os.write(writing, b"forked")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 6)
    try:
        buffer.storage.close(flush=False)  # type: ignore[attr-defined]  # as a kill leaves it
        again = make_buffer(tmp_path, size=100, resume=True)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert again.rings.written.tolist() == held and again.storage.damaged() == []


@needs_fork
@KINDS
def test_a_forked_process_flushes_nothing(kind: Compression | None, tmp_path: Path) -> None:
    """Not even chunks that are complete, in which its parent may have newer records."""
    target = storage(tmp_path, kind=kind)
    append(target, CHUNK)
    before = contents(tmp_path)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            target.flush()
        except StorageError:
            code = 0 if contents(tmp_path) == before else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    target.flush()
    check(target)


@needs_fork
def test_a_forked_process_keeps_its_own_locks(tmp_path: Path) -> None:
    """Their files may have the numbers of those that it inherited."""
    inherited = storage(tmp_path / "a")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own = storage(tmp_path / "b")
            inherited.close()
            try:
                Lock(os.open(own.folder / "lock", os.O_RDWR))
            except BlockingIOError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@KINDS
@pytest.mark.parametrize("what", ["moved", "deleted", "replaced"])
def test_a_folder_that_vanishes_is_an_error_at_the_next_flush(what: str, kind: Compression | None, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    target = storage(folder, kind=kind)
    append(target, 50)
    folder.rename(tmp_path / "b")
    if what == "deleted":
        shutil.rmtree(tmp_path / "b")
    if what == "replaced":
        written(tmp_path / "c", 3, kind).rename(folder)
        before = contents(folder)
    with pytest.raises(StorageError, match=r"was moved, deleted or replaced while it was in use: \w+.bin is no longer"):
        append(target, 50)
    assert folder.exists() == (what == "replaced"), "nothing is made anew in its place"
    with pytest.raises(StorageError, match="was moved"):
        target.close()
    if what == "replaced":
        assert contents(folder) == before
    if what == "moved":
        check(storage(tmp_path / "b", True, kind=kind))


def test_a_full_disk_gives_the_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = storage(tmp_path)
    append(target, 5)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        target.close()
    assert target.closed
    code = f"from tests.test_disk_damage import *; check(storage(Path({str(tmp_path)!r}), True, kind=None))"
    assert os.system(f'{os.sys.executable} -c "{code}"') == 0  # type: ignore[attr-defined]


@KINDS
def test_a_folder_that_can_only_be_read(kind: Compression | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, hence the refusals of a read-only file system."""
    buffer = make_buffer(tmp_path, kind=kind)
    fill(buffer, 25)
    buffer.storage.close(flush=False)  # type: ignore[attr-defined]
    before, opened = contents(tmp_path), os.open

    def read_only(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(30, "Read-only file system", str(path))
        return opened(path, flags, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        again = make_buffer(tmp_path, resume=True, kind=kind)
    again.sample(10)
    held = again.num_records
    with pytest.raises(StorageError, match="can only be read"):
        fill(again, 1)
    with pytest.raises(StorageError, match="can only be read"):
        again.reset()
    again.storage.close()  # type: ignore[attr-defined]
    assert contents(tmp_path) == before and held == make_buffer(tmp_path, resume=True, kind=kind).num_records


# --------------------------------------------------------------------------------------------------------------- format 1


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_folders_of_format_1_are_converted(name: str, tmp_path: Path) -> None:
    """Written by version 0.1.0 with ``fill(make_buffer(folder), 100)``."""
    kind = PLAIN if name == "plain" else COMPRESSED
    shutil.copytree(FORMAT_1 / name, tmp_path / "old")
    memory = make_buffer(None)
    fill(memory, 100)
    for _ in range(2):
        buffer = make_buffer(tmp_path / "old", resume=True, kind=kind)
        same_samples(memory, buffer)
        assert buffer.storage.damaged() == [] and buffer.num_records == memory.num_records
    assert json.loads((tmp_path / "old" / "format.json").read_text())["format"] == 2
    assert not (tmp_path / "old" / "index.bin").exists()
    for one in (memory, buffer):
        one.start_episodes()
        fill(one, 20, seed=1)
    same_samples(memory, buffer)


@pytest.mark.parametrize("name", ["plain", "compressed"])
def test_damage_in_format_1_is_named_when_it_is_converted(name: str, tmp_path: Path) -> None:
    kind = PLAIN if name == "plain" else COMPRESSED
    shutil.copytree(FORMAT_1 / name, tmp_path / "old")
    flip(tmp_path / "old" / "index.bin", 16 * 12 + 2)
    flip(tmp_path / "old" / "index.bin", 16 * 3 + 12)
    with pytest.warns(UserWarning, match="2 records .* lost. The other 58 are used"):
        buffer = make_buffer(tmp_path / "old", resume=True, kind=kind)
    assert buffer.num_records == 58
    buffer.sample(50)
