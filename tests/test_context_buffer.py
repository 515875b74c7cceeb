"""The replay buffer of DreamerV3: stored latent states, one step of context, and the online queue."""

import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer import ContextReplayBuffer, SequenceReplayBuffer
from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.replay import StateSizes
from sb3_dreamer.saving.buffers import BufferLoader, save_buffer

SIZES = StateSizes(deterministic=5, variables=3, classes=4)
SPACE, ACTIONS = spaces.Box(-1e6, 1e6, (1,), np.float32), spaces.Discrete(2)


def make(size: int = 100, n_envs: int = 1, batch_length: int = 4, **options: Any) -> ContextReplayBuffer:
    kwargs = dict(device="cpu", n_envs=n_envs, batch_length=batch_length, states=SIZES) | options
    return ContextReplayBuffer(size, SPACE, ACTIONS, **kwargs)  # type: ignore[arg-type]


def state_of(values: Any) -> LatentState:
    """A state that tells a number below 64: h in units of 1 / 64, and z in base 4."""
    numbers = th.as_tensor(values, dtype=th.float32)
    digits = th.stack([numbers // 4**i % 4 for i in range(3)], dim=-1).long()
    return LatentState((numbers / 64.0)[..., None].expand(*numbers.shape, 5), th.eye(4)[digits].flatten(-2))


def fill(buffer: ContextReplayBuffer, steps: int, ends: tuple[int, ...] = (), offset: float = 0.0, first: int = 0) -> None:
    """Observation t has value t in each episode's order of storage; its state tells ``t + offset``, modulo 64."""
    n, t = buffer.n_envs, first
    for step in range(steps):
        buffer.note_states(state_of(np.full(n, (t + offset) % 64)))
        done = np.full(n, step in ends)
        obs, following = (np.full((n, 1), value, np.float32) for value in (t, t + 1))
        buffer.add(obs, following, np.ones((n, 1), np.int64), np.full(n, t + 1.0), done, [{}] * n)
        t += 2 if step in ends else 1


def told(state: LatentState) -> list[float]:
    """The numbers that states tell, after h and z were found to agree."""
    digits = state.stochastic.unflatten(-1, (3, 4)).argmax(-1)
    numbers = (digits * th.tensor([1, 4, 16])).sum(-1)
    assert th.equal(state.stochastic.unflatten(-1, (3, 4)).sum(-1), th.ones(*numbers.shape, 3))
    assert th.equal(state.deterministic[..., 0] * 64.0, numbers.float())
    return numbers.tolist()


def test_a_sequence_begins_in_the_state_one_record_before_it() -> None:
    buffer = make()
    fill(buffer, 30)
    sample = buffer.sample_with_context(50)
    steps, context = sample.batch
    seen = next(iter(steps.observations.values()))
    assert seen.shape == (4, 50, 1) and th.equal(seen[1:], seen[:-1] + 1.0)
    assert told(context) == (seen[0, :, 0] - 1.0).tolist() and set(sample.envs) == {0}
    assert np.array_equal(sample.firsts, seen[0, :, 0].numpy())
    assert not steps.episode_starts.any() and th.equal(steps.rewards, seen[..., 0])
    assert th.equal(steps.actions[..., 1], th.ones(4, 50))  # also at the first step, whose state is not reset


def test_without_a_state_the_sequence_begins_with_a_reset() -> None:
    buffer = make(online=False)
    fill(buffer, 20)
    buffer.states.clear(0)
    buffer.write_back(np.array([0]), np.array([3]), state_of([[7.0]]))
    steps, context = buffer.recall_with_context(np.array([0, 0]), np.array([3, 5]), 5).batch
    assert steps.episode_starts[0].tolist() == [False, True] and not steps.episode_starts[1:].any()
    assert told(context)[0] == 7 and not context.deterministic[1].any()
    assert not steps.actions[0, 1].any() and steps.actions[0, 0].any()


def test_episodes_that_end_and_that_are_cut_off() -> None:
    buffer = make(online=False)
    fill(buffer, 8, ends=(3,))  # records 0 ... 4 and 5 ... 9
    buffer.start_episodes()  # cut off after record 9
    fill(buffer, 4, first=20)
    steps = buffer.recall_with_context(np.array([0]), np.array([1]), 12).batch.steps
    assert np.flatnonzero(steps.episode_starts[:, 0]).tolist() == [3, 8]
    assert steps.continues[:, 0].tolist() == [1.0, 1.0, 0.0, *[1.0] * 8]
    assert not steps.actions[[3, 8], 0].any()
    # The last record of an episode was not acted on, but what follows it is reset anyway
    after = buffer.recall_with_context(np.array([0]), np.array([4]), 5).batch
    assert after.steps.episode_starts[:, 0].tolist() == [True, False, False, False]


def test_uniform_starts() -> None:
    buffer = make(online=False)
    fill(buffer, 20, ends=(12,))
    firsts = buffer.sample_with_context(20_000).firsts
    count = buffer.num_sampleable
    assert count == 22 - 4 and buffer.num_records == 22
    assert np.bincount(firsts, minlength=19)[1:].min() > 0.8 * 20_000 / count and firsts.max() == 18 and firsts.min() == 1


@pytest.mark.parametrize("n_envs", [1, 3])
def test_every_new_chunk_is_sampled_once_at_once(n_envs: int) -> None:
    buffer = make(300, n_envs)
    fill(buffer, 24)  # 25 records of each: five chunks of five
    first = buffer.sample_with_context(5 * n_envs - 1)
    chunks = sorted((number, env) for env, number in zip(first.envs, first.firsts, strict=True))
    assert chunks == [(1 + 5 * i, env) for i in range(5) for env in range(n_envs)][: 5 * n_envs - 1]
    second = buffer.sample_with_context(40)
    assert (second.envs[0], second.firsts[0]) == (n_envs - 1, 21) and not buffer.queue
    off = make(300, n_envs, online=False)
    fill(off, 24)
    assert not off.queue


def test_chunks_that_are_gone_are_left_out() -> None:
    buffer = make(12)
    fill(buffer, 40)
    assert len(buffer.queue) <= 12 // 5 + 1
    sample = buffer.sample_with_context(30)
    assert sample.firsts.min() > buffer.rings.first[0] and not buffer.queue
    assert told(sample.batch.context) == [number - 1 for number in sample.firsts]


def test_write_back_replaces_what_is_still_there(tmp_path: Path) -> None:
    on_disk: dict[str, Any] = dict(storage_path=str(tmp_path / "records"))
    for options in ({}, on_disk):
        buffer = make(12, online=False, **options)
        fill(buffer, 20)  # records 9 ... 20 are left
        fresh = state_of(np.arange(4)[:, None] + [[40, 50]])
        buffer.write_back(np.array([0, 0]), np.array([7, 12]), fresh)
        context = buffer.recall_with_context(np.zeros(7, np.int64), np.arange(9, 16), 5).batch.context
        assert told(context) == [42, 43, 11, 50, 51, 52, 53]
        buffer.write_back(np.array([0]), np.array([19]), state_of(np.full((4, 1), 60)))  # beyond the newest record
        fill(buffer, 3, first=20, offset=1)
        last = buffer.recall_with_context(np.zeros(2, np.int64), np.array([18, 19]), 5).batch.context
        assert told(last) == [18, 60]


@pytest.mark.parametrize("compression", [None, 1])
def test_states_on_the_disk(compression: int | None, tmp_path: Path) -> None:
    options: dict[str, Any] = dict(storage_path=str(tmp_path / "records"), storage_compression=compression)
    buffer, memory = make(40, 2, **options), make(40, 2)
    for one in (buffer, memory):
        one.seed(3)
        fill(one, 60, ends=(12, 33))
    same(buffer, memory)
    content = pickle.dumps(buffer)
    again = pickle.loads(content)
    again.seed(3)
    memory.seed(3)
    same(again, memory)
    resumed = make(40, 2, storage_resume=True, **options)
    assert told(resumed.sample_with_context(20).batch.context) and resumed.num_records == memory.num_records
    resumed.reset()
    fill(resumed, 8, offset=5)
    resumed.states.write(0, 100, resumed.state_sizes.to_rows(state_of([1.0])))
    _, unknown = resumed.states.read(np.array([0, 0]), np.array([2, 30]))
    assert unknown.tolist() == [False, True]  # of an earlier life


def same(a: ContextReplayBuffer, b: ContextReplayBuffer) -> None:
    for _ in range(3):
        (one, *places), (two, *others) = a.sample_with_context(9), b.sample_with_context(9)
        assert all(np.array_equal(*pair) for pair in zip(places, others, strict=True))
        assert told(one.context) == told(two.context)
        assert th.equal(one.steps.rewards, two.steps.rewards)
        assert th.equal(one.steps.episode_starts, two.steps.episode_starts)


def test_a_folder_with_another_size_of_model_keeps_its_records(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(storage_path=str(tmp_path / "records"))
    fill(make(**options), 20)
    other = make(storage_resume=True, states=StateSizes(6, 2, 5), **options)
    sample = other.sample_with_context(8)
    assert sample.batch.steps.episode_starts[0].all() and sample.batch.context.deterministic.shape == (8, 6)
    own = make(storage_resume=True, **options)
    assert not own.sample_with_context(8).batch.steps.episode_starts[0].any()


def test_damaged_states_count_as_missing(tmp_path: Path) -> None:
    buffer = make(online=False, storage_path=str(tmp_path / "records"))
    fill(buffer, 20)
    file = next((tmp_path / "records").glob("states_*.bin"))
    content = bytearray(file.read_bytes())
    size = SIZES.row.itemsize
    content[3 * size + 8 : 3 * size + 10] = b"\xff\x7f"  # NaN in record 3
    content[5 * size + size - 1] = 250  # a class that does not exist in record 5
    file.write_bytes(content)
    steps, context = buffer.recall_with_context(np.zeros(4, np.int64), np.arange(3, 7), 5).batch
    assert steps.episode_starts[0].tolist() == [True, False, True, False] and th.isfinite(context.deterministic).all()
    assert told(LatentState(*(part[[1, 3]] for part in context))) == [4, 6]


def test_pickle_and_copy_in_memory() -> None:
    buffer = make(30, 2)
    fill(buffer, 40, ends=(12,))
    for other in (pickle.loads(pickle.dumps(buffer)), deepcopy(buffer)):
        other.random_state = buffer.random_state
        twin = deepcopy(buffer)
        assert list(other.queue) == list(buffer.queue) and len(other.queue) > 0
        same(other, twin)
    small = make(30, 2)
    fill(small, 5)
    assert told(pickle.loads(pickle.dumps(small)).sample_with_context(4).batch.context)


def test_refilled_buffers_keep_states_that_fit() -> None:
    source = make(60, 2)
    fill(source, 14, ends=(6,))
    for target, knows in ((make(60), True), (make(60, states=StateSizes(6, 2, 5)), False)):
        assert target.refill(source) == 0 and not target.queue
        sample = target.sample_with_context(60)
        starts = sample.batch.steps.episode_starts[0]
        assert starts.all() != knows
        if knows:
            seen = next(iter(sample.batch.steps.observations.values()))[0, :, 0]
            known = LatentState(*(part[~starts] for part in sample.batch.context))
            assert told(known) == (seen[~starts] - 1.0).tolist()


def test_files_of_other_algorithms_are_copied(tmp_path: Path) -> None:
    plain = SequenceReplayBuffer(50, SPACE, ACTIONS, device="cpu", batch_length=4)
    zero = np.zeros(1)
    for t in range(20):
        obs = np.full((1, 1), t, np.float32)
        plain.add(obs, obs + 1, np.ones((1, 1), np.int64), zero, zero.astype(bool), [{}])
    save_buffer(plain, tmp_path / "plain")
    own = make(50)
    with pytest.warns(UserWarning, match="of another algorithm or size of model: its episodes were copied"):
        loaded = BufferLoader(own, {}, lambda options: make(50, **options), False).load(tmp_path / "plain")
    assert isinstance(loaded, ContextReplayBuffer) and loaded.num_records == 21
    assert loaded.sample_with_context(5).batch.steps.episode_starts[0].all()
    fill(own, 5)
    save_buffer(own, tmp_path / "own")
    with pytest.warns(UserWarning, match="of another algorithm"):
        back = BufferLoader(plain, {}, lambda options: plain, False).load(tmp_path / "own")
    assert type(back) is SequenceReplayBuffer and back.num_records == own.num_records


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"buffer_size=9 over n_envs=2 environments holds 4 records .* needs 5"):
        make(9, 2)
    with pytest.raises(ValueError, match="online must be True or False, but is 1"):
        make(online=1)
    buffer = make(sample_running=False)
    fill(buffer, 3)
    assert buffer.num_sampleable == 0
    with pytest.raises(ValueError, match="has 4 records, but no environment has 5 of them in a row yet: batch_length=4"):
        buffer.sample_with_context(2)
    fill(buffer, 5, ends=(4,), first=3)
    assert buffer.num_sampleable == 9 - 4 and len(buffer.sample_with_context(2).envs) == 2


def test_memory_is_stated() -> None:
    big = StateSizes(512, 32, 4)
    assert big.row.itemsize == 1064
    plain = SequenceReplayBuffer(1000, SPACE, ACTIONS, device="cpu").memory_bytes()
    assert make(1000, states=big).memory_bytes() == plain + 1_064_000
    assert StateSizes(4, 2, 300).row["z"].base == np.uint16
