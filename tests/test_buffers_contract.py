"""Sequence replay buffer: options, bad input, memory, pickling and the words of SB3's replay buffer."""

import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_dreamer.common.preprocessing import resize_images
from sb3_dreamer.replay import SequenceReplayBuffer
from sb3_dreamer.replay.records import RecordFormat
from tests.collector import check_samples, make_collector, make_env


@pytest.mark.parametrize("image_size", [(8, 8), None])
def test_images_are_resized_once_and_copied(image_size: tuple[int, int] | None) -> None:
    space = spaces.Box(0, 255, (3, 12, 16), np.uint8)
    buffer = SequenceReplayBuffer(10, space, spaces.Discrete(2), "cpu", batch_length=2, image_size=image_size)
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 3, 12, 16), dtype=np.uint8)
    expected = [resize_images(frame.copy(), image_size) for frame in frames]
    buffer.add(frames[0], frames[1], np.array([1]), np.ones(1), np.zeros(1), [{}])
    frames[:] = 0  # VecEnvs reuse their arrays
    images = buffer.sample(1).observations["observation"]
    assert images.dtype == th.uint8 and images.shape == (2, 1, 3, *(image_size or (12, 16)))
    assert np.array_equal(images, np.stack(expected))


def test_box_actions_are_flat_float32() -> None:
    collector = make_collector(make_env(2, continuous=True), 20)
    collector.collect(3)
    assert collector.buffer.actions.shape == (10, 2, 2) and collector.buffer.actions.dtype == np.float32
    batch = collector.buffer.sample(3)
    assert batch.actions.shape[-1] == 2 and batch.actions.dtype == th.float32


def test_handle_timeout_termination() -> None:
    for handle, continues in ((True, 1.0), (False, 0.0)):
        script: dict[str, Any] = dict(lengths=(2,), endings=("truncated",))
        collector = make_collector(make_env(**script), 20, handle_timeout_termination=handle)
        collector.collect(2)
        assert collector.buffer.sample(1).continues[:, 0].tolist() == [1.0, 1.0, continues]
        assert collector.buffer.timeouts[2, 0] == handle


def vector_buffer(buffer_size: int = 20, n_envs: int = 2, **kwargs: Any) -> SequenceReplayBuffer:
    space = spaces.Dict({"camera": spaces.Box(0, 255, (1, 36, 36), np.uint8), "arm": spaces.Box(-1, 1, (3,), np.float64)})
    return SequenceReplayBuffer(buffer_size, space, spaces.Discrete(4), "cpu", n_envs, image_size=(8, 8), **kwargs)


def transition(**changes: Any) -> dict[str, Any]:
    obs = {"camera": np.zeros((2, 1, 36, 36), np.uint8), "arm": np.zeros((2, 3))}
    good = dict(obs=obs, next_obs=obs, action=np.array([1, 2]), reward=np.zeros(2), done=np.zeros(2, bool), infos=[{}, {}])
    return good | changes


def arm(value: float) -> dict[str, np.ndarray]:
    return {**transition()["obs"], "arm": np.array([[0, 0, 0], [0, value, 0]])}


def camera(frames: np.ndarray) -> dict[str, np.ndarray]:
    return {**transition()["obs"], "camera": frames}


BAD_INPUTS: dict[str, tuple[dict[str, Any], str]] = {
    "nan obs": (dict(next_obs=arm(np.nan)), r"next_obs 'arm' of environment 1 is nan at index 1"),
    "inf obs": (dict(next_obs=arm(-np.inf)), r"next_obs 'arm' of environment 1 is -inf"),
    "huge obs": (dict(next_obs=arm(1e300)), r"environment 1 is 1e\+300 at index 1, expected a finite float32"),
    "nan first obs": (dict(obs=arm(np.nan)), r"^obs 'arm' of environment 1 is nan"),
    "nan reward": (dict(reward=np.array([0.0, np.nan])), r"reward of environment 1 is nan"),
    "float image": (dict(next_obs=camera(np.zeros((2, 1, 36, 36)))), r"'camera' has dtype float64, expected uint8"),
    "channel last": (dict(next_obs=camera(np.zeros((2, 36, 36, 1), np.uint8))), r"\(2, 36, 36, 1\).*\(2, 1, 36, 36\)"),
    "missing key": (dict(next_obs={"arm": np.zeros((2, 3))}), r"keys \['arm'\], expected \['arm', 'camera'\]"),
    "array for dict": (dict(next_obs=np.zeros((2, 3))), r"expected \['arm', 'camera'\]"),
    "text obs": (dict(next_obs=transition()["obs"] | {"arm": np.full((2, 3), "x")}), r"dtype <U1, expected numbers"),
    "reward shape": (dict(reward=np.zeros((2, 1))), r"reward has shape \(2, 1\).*\(2,\)"),
    "done shape": (dict(done=np.zeros(3)), r"done has shape \(3,\)"),
    "action shape": (dict(action=np.zeros(3, int)), r"action has shape \(3,\), expected \(2, 1\)"),
    "action range": (dict(action=np.array([1, 4])), r"action of environment 1 is \[4\].*from 0 to 3"),
    "float action": (dict(action=np.array([1.0, 2.0])), r"float64.*expected an integer"),
    "infos": (dict(infos=[{}]), r"infos has 1 entries"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
@pytest.mark.filterwarnings("error")
def test_bad_input_changes_nothing(case: str) -> None:
    changes, message = BAD_INPUTS[case]
    buffer = vector_buffer()
    buffer.add(**transition(done=np.ones(2, bool)))  # both environments start anew
    before = pickle.dumps(buffer)
    with pytest.raises(ValueError, match=message):
        buffer.add(**transition(**changes))
    assert pickle.dumps(buffer) == before
    buffer.add(**transition())
    assert pickle.dumps(buffer) != before
    if case == "nan first obs":
        buffer.add(**transition(**changes))  # not the first of an episode any more: not even read


def test_bad_first_observation_names_the_environment() -> None:
    buffer = vector_buffer()
    buffer.add(**transition(done=np.array([False, True])))
    with pytest.raises(ValueError, match=r"^obs 'arm' of environment 1 is inf at index 1"):
        buffer.add(**transition(obs=arm(np.inf)))


def test_bad_box_action() -> None:
    buffer = SequenceReplayBuffer(5, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)), "cpu")
    with pytest.raises(ValueError, match=r"action of environment 0 is nan at index 1"):
        buffer.add(np.zeros((1, 2)), np.zeros((1, 2)), np.array([[0, np.nan]]), np.zeros(1), np.zeros(1), [{}])
    assert buffer.num_records == 0


def test_refused_options() -> None:
    with pytest.raises(ValueError, match="optimize_memory_usage=True"):
        vector_buffer(optimize_memory_usage=True)
    with pytest.raises(ValueError, match="batch_length must be at least 1, but is 0"):
        vector_buffer(batch_length=0)
    with pytest.raises(ValueError, match="does not support the action space Text"):
        SequenceReplayBuffer(5, spaces.Box(-1, 1, (2,)), spaces.Text(3))


def test_too_little_data() -> None:
    buffer = vector_buffer(120, batch_length=50)
    with pytest.raises(ValueError, match="0 records"):
        buffer.sample(2)
    buffer.add(**transition(done=np.array([True, False])))
    assert buffer.sample(3).rewards.shape == (2, 3)  # shorter as long as there is no more
    buffer.add(**transition())
    assert buffer.sample(3).rewards.shape == (4, 3)  # in the one ring that holds as much
    assert buffer.sample(3, batch_length=1).rewards.shape == (1, 3)
    with pytest.raises(ValueError, match=r"batch_length=61.*buffer_size=120 over n_envs=2 environments holds 60"):
        buffer.sample(3, batch_length=61)


def test_waits_for_the_first_episode() -> None:
    buffer = vector_buffer(sample_running=False, batch_length=5)
    buffer.add(**transition())
    assert buffer.num_sampleable == 0 and buffer.num_records == 4
    with pytest.raises(ValueError, match="sample_running=False"):
        buffer.sample(1)
    buffer.add(**transition(done=np.array([False, True])))
    assert buffer.num_sampleable == 3 and buffer.sample(1).rewards.shape == (3, 1)


@pytest.mark.parametrize("buffer_size", [1, 3, 5])
def test_tiny_buffers(buffer_size: int) -> None:
    buffer = vector_buffer(buffer_size, n_envs=2, batch_length=1)
    for _ in range(7):
        buffer.add(**transition(done=np.array([True, False])))
    assert buffer.size() == buffer.buffer_size == max(buffer_size // 2, 1)
    assert buffer.sample(4).rewards.shape == (1, 4)
    with pytest.raises(ValueError, match="batch_length=50"):
        buffer.sample(4, batch_length=50)


def test_nothing_is_allocated_before_the_first_add() -> None:
    space = spaces.Box(0, 255, (3, 210, 160), np.uint8)
    tracemalloc.start()
    buffer = SequenceReplayBuffer(2_000_000, space, spaces.Discrete(18), "cpu", n_envs=8)
    assert buffer.memory_bytes() == 2_000_000 * (3 * 64 * 64 + 8 + 4 + 3)
    assert isinstance(buffer.observations, np.ndarray) and buffer.observations.shape == (0, 8, 3, 64, 64)
    assert len(buffer.dones) == buffer.pos == buffer.size() == 0
    assert len(pickle.dumps(buffer)) < 1_000_000
    restored: Any = pickle.loads(pickle.dumps(buffer))
    assert restored.rewards.shape == (0, 8)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    small: Any = vector_buffer()
    small.add(**transition())
    assert small.rewards.shape == (10, 2)
    assert isinstance(small.observations, dict)
    arrays = [*small.observations.values(), small.actions, small.rewards, small.dones, small.timeouts]
    assert small.memory_bytes() == sum(array.nbytes for array in arrays) + 20  # one flag per record is not in SB3's words


def test_pickle_holds_the_rows_in_use() -> None:
    buffer = vector_buffer(200_000)
    buffer.add(**transition())
    assert len(pickle.dumps(buffer)) < 10_000
    restored = pickle.loads(pickle.dumps(buffer))
    assert restored.observations["arm"].shape == (100_000, 2, 3)
    assert restored.sample(2).rewards.shape == (2, 2)
    buffer.add(**transition())
    restored.add(**transition())
    assert buffer.size() == 3 and restored.size() == 4  # it goes on with new episodes
    state = buffer.__getstate__()
    assert state["package_version"] and isinstance(state["attributes"]["device"], str)
    with pytest.raises(ValueError, match=r"format 99 by sb3_dreamer .* reads format 3\. .* or record the data again"):
        restored.__setstate__(state | {"format": 99})


def test_full_rings_are_neither_copied_to_a_file_nor_from_it() -> None:
    buffer = vector_buffer(8)
    for _ in range(5):
        buffer.add(**transition())
    state = buffer.__getstate__()
    restored = vector_buffer(8)
    restored.__setstate__(state)
    assert np.shares_memory(restored.actions, buffer.actions)


def test_bookkeeping_of_ends_stays_small() -> None:
    buffer = vector_buffer(20)
    for _ in range(200):
        buffer.add(**transition(done=np.ones(2, bool)))
    assert all(len(ends) <= 2 * buffer.buffer_size for ends in buffer.rings.ends)


def test_seeds() -> None:
    def draws(seed: int | None) -> list[int]:
        collector.buffer.seed(seed)
        return [int(reward) for reward in collector.buffer.sample(20).rewards[0]]

    collector = make_collector(make_env(2))
    collector.collect(30)
    assert draws(3) == draws(3) != draws(4)
    np.random.seed(7)
    first = draws(None)
    assert draws(None) != first
    np.random.seed(7)
    assert draws(None) == first
    restored = pickle.loads(pickle.dumps(collector.buffer))
    assert th.equal(restored.sample(20).rewards, collector.buffer.sample(20).rewards)


def test_extend_and_reset_as_in_sb3() -> None:
    """SB3's own save and load test does this with what it finds in the buffer."""
    collector = make_collector(make_env(), 30)
    collector.collect(50)
    buffer = collector.buffer
    restored = pickle.loads(pickle.dumps(buffer))
    for name in ("observations", "actions", "rewards", "dones", "timeouts"):
        assert np.allclose(getattr(buffer, name), getattr(restored, name)) and len(getattr(buffer, name)) == 30
    infos = [[{"TimeLimit.truncated": truncated}] for truncated in buffer.timeouts]
    restored.extend(buffer.observations, buffer.observations, buffer.actions, buffer.rewards, buffer.dones, infos)
    assert restored.num_records == 30 and restored.rewards.sum() > 0
    restored.reset()
    assert restored.size() == restored.pos == restored.num_sampleable == 0 and not restored.full
    collector.buffer, collector.expected = restored, [[]]
    collector.reset()
    collector.collect(9)
    check_samples(collector)


def test_check_compatible() -> None:
    buffer = vector_buffer()
    fitting = (buffer.observation_space, buffer.action_space, 2, (8, 8))
    buffer.format.check_compatible(RecordFormat(*fitting))
    other_obs = spaces.Dict({"camera": spaces.Box(0, 255, (3, 36, 36), np.uint8), "arm": spaces.Box(-1, 1, (3,), np.float64)})
    for place, value, message in (
        (0, other_obs, r"uint8 \(1, 36, 36\).*uint8 \(3, 36, 36\)"),
        (1, spaces.Discrete(5), r"buffer has Discrete\(4\), expected Discrete\(5\)"),
        (2, 3, r"n_envs: buffer has 2, expected 3"),
        (3, (16, 16), r"image_size: buffer has .*\(1, 8, 8\).*expected .*\(1, 16, 16\)"),
    ):
        given: list[Any] = [*fitting]
        given[place] = value
        with pytest.raises(ValueError, match=message):
            buffer.format.check_compatible(RecordFormat(*given))
    with pytest.raises(ValueError, match=r"Discrete\(5\).*n_envs"):
        buffer.format.check_compatible(RecordFormat(fitting[0], spaces.Discrete(5), 3, (8, 8)))
