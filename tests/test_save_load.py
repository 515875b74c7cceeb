"""Model, policy, parameter and buffer files: everything comes back, and what does not fit is refused clearly."""

import io
import json
import pathlib
import pickle
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_dreamer import DreamerV2, SequenceReplayBuffer
from sb3_dreamer.saving.saved_files import TRAILER
from tests.collector import make_env
from tests.small import (
    BOX,
    DICT,
    DISCRETE,
    IMAGE,
    SMALL,
    SMALL_POLICY,
    VECTOR,
    RandomEnv,
    logged,
    random_envs,
    random_model,
    same_weights,
    small_model,
    weights,
)

SPACES: dict[str, tuple[spaces.Space, spaces.Space]] = {
    "vector": (VECTOR, DISCRETE),
    "image": (IMAGE, DISCRETE),
    "dict": (DICT, BOX),
}


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def moments(model: Any) -> list[Any]:
    """States of all optimizers."""
    return [one.optimizer.state_dict() for one in model.policy.optimizers.values()]


def same(a: Any, b: Any) -> bool:
    """Bit-equal nested containers of tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(th.equal(a, b)) if isinstance(a, th.Tensor) else a == b


def deterministic(model: Any) -> list[np.ndarray]:
    """States and actions along a few steps."""
    result: list[np.ndarray] = []
    state = None
    model.observation_space.seed(5)
    for _ in range(3):
        action, state = model.predict(model.observation_space.sample(), state, deterministic=True)
        result += [action, *(state or ())]
    return result


# --------------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("kind", SPACES)
def test_save_and_load(kind: str, tmp_path: pathlib.Path, algorithm: Any) -> None:
    model = random_model(*SPACES[kind], seed=0, reward_scale=0.3).learn(70)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model.zip", env=random_envs(*SPACES[kind]), device="cpu")
    assert same_weights(weights(model), weights(loaded)) and same(moments(model), moments(loaded))
    assert all(np.array_equal(a, b) for a, b in zip(deterministic(model), deterministic(loaded), strict=True))
    for name in ("num_timesteps", "_n_updates", "_episode_num", "reward_scale", "batch_length", "train_freq", "policy_kwargs"):
        assert getattr(loaded, name) == getattr(model, name), name
    loaded.learn(70, reset_num_timesteps=False)
    assert loaded._n_updates > model._n_updates and loaded.num_timesteps >= 140


def test_load_without_environment_predicts_only(tmp_path: pathlib.Path, algorithm: Any) -> None:
    model = random_model(n_envs=3)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model", device="cpu")
    assert loaded.get_env() is None and loaded.predict(np.zeros((5, 3)))[0].shape == (5,)
    assert loaded.replay_buffer.memory_bytes() > 0 and loaded.replay_buffer.size() == 0
    with pytest.raises(AssertionError, match="set the environment"):
        loaded.learn(10)
    loaded.set_env(random_envs(n_envs=3))
    assert loaded.learn(60).num_timesteps >= 60


@pytest.mark.parametrize("device", ["cpu", "auto", th.device("cpu")])
def test_load_for_other_environments_and_devices(device: Any, tmp_path: pathlib.Path, algorithm: Any) -> None:
    random_model(n_envs=2, seed=0).learn(70).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=random_envs(n_envs=3), device=device)
    assert loaded.n_envs == loaded.replay_buffer.n_envs == 3
    assert loaded.learn(90)._n_updates > 0
    assert loaded.replay_buffer.device == loaded.device == loaded.policy.device


def test_other_spaces_are_refused(tmp_path: pathlib.Path, algorithm: Any) -> None:
    random_model().save(tmp_path / "model")
    for spaces_ in ((DICT, DISCRETE), (VECTOR, BOX)):
        with pytest.raises(ValueError, match="spaces do not match"):
            algorithm.load(tmp_path / "model", env=random_envs(*spaces_))


def test_custom_objects_of_the_zoo(tmp_path: pathlib.Path) -> None:
    random_model(learning_rate=lambda progress: 1e-3 * progress, actor_learning_rate=lambda progress: 1e-4).save(
        tmp_path / "m"
    )
    replaced = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    loaded = DreamerV2.load(tmp_path / "m", env=random_envs(), custom_objects=replaced, device="cpu", seed=0)
    loaded.learn(60, log_interval=None)
    assert logged(loaded)["train/learning_rate"] == 0.0 and logged(loaded)["train/actor_learning_rate"] == 1e-4


@pytest.mark.parametrize("written", [None, 1, 99])
def test_model_files_of_another_format_are_refused(written: int | None, tmp_path: pathlib.Path) -> None:
    """Files written before the first release have no format: one message says what to do, whatever else has changed."""
    random_model().save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(parts["data"])
    assert data.pop("_file_format") == 2
    parts["data"] = json.dumps(data if written is None else data | {"_file_format": written}).encode()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(
        ValueError, match=rf"has format {written or 1} of another sb3_dreamer, expected format 2\. Load it with"
    ):
        DreamerV2.load(tmp_path / "other.zip")
    assert DreamerV2.load(tmp_path / "model.zip").batch_size == random_model().batch_size


def test_files_hold_no_derived_things(tmp_path: pathlib.Path, algorithm: Any) -> None:
    """Nothing that ``_setup_model`` makes anew, and no lambda besides the user's, which another Python could not read."""
    model = random_model(learning_rate=lambda progress: 1e-3).learn(60)
    model.save(tmp_path / "model")
    data, params, _ = load_from_zip_file(tmp_path / "model")
    assert data is not None and params is not None
    derived = {"policy", "replay_buffer", "clock", "_metrics", "_acting_state", "_learning_rate_schedules", "env", "_logger"}
    assert not derived & set(data)
    assert (
        next(iter(params)) == "policy" and all("optim" in name for name in list(params)[1:]) and "policy.optimizer" in params
    )
    pointers = [value.data_ptr() for value in model.policy.state_dict().values() if value.numel()]
    assert len(pointers) == len(set(pointers))  # no module under two names


def test_loading_with_changes(tmp_path: pathlib.Path) -> None:
    random_model().save(tmp_path / "model")
    changes: dict[str, Any] = dict(train_freq=[4, "step"], batch_size=3, learning_rate=lambda p: 0.5 * p, kl_balance=None)
    loaded = DreamerV2.load(tmp_path / "model", env=random_envs(), **changes).learn(56, log_interval=None)
    assert loaded._n_updates == 2 and loaded.kl_balance is None and loaded.batch_size == 3  # at 52 and 56
    assert logged(loaded)["train/learning_rate"] == 0.0  # at the end of the run
    with pytest.warns(UserWarning, match=r"DreamerV2.load\(\) was given unknown arguments.*\['kl_balence'\]"):
        DreamerV2.load(tmp_path / "model", kl_balence=0.5)
    with pytest.raises(ValueError, match="tau must be a number between 0 and 1"):
        DreamerV2.load(tmp_path / "model", tau=3.0)


def test_force_reset_false_begins_a_new_memory(tmp_path: pathlib.Path, algorithm: Any) -> None:
    model = small_model(make_env(2), learning_starts=1000, train_freq=6).learn(12)
    assert model.env is not None
    model.save(tmp_path / "model")
    for force_reset in (True, False):
        loaded = algorithm.load(tmp_path / "model", env=model.env, force_reset=force_reset)
        assert (loaded._last_obs is None) == force_reset
        loaded.learn(12, reset_num_timesteps=False)
        assert loaded.num_timesteps == 24 and loaded.replay_buffer.size() >= 6


def test_the_callers_dicts_are_left_alone(tmp_path: pathlib.Path) -> None:
    policy_kwargs = dict(SMALL_POLICY, net_arch=dict(actor=[8]), optimizer_kwargs=dict(eps=1e-4), features_extractor_kwargs={})
    buffer_kwargs = dict(prioritize_ends=False)
    copies = deepcopy((policy_kwargs, buffer_kwargs))
    kwargs: dict[str, Any] = dict(policy_kwargs=policy_kwargs, replay_buffer_kwargs=buffer_kwargs)
    model = DreamerV2("MlpPolicy", RandomEnv(), replay_buffer_class=SequenceReplayBuffer, **kwargs, **SMALL).learn(60)
    model.save(tmp_path / "model")
    assert (policy_kwargs, buffer_kwargs) == copies
    loaded = DreamerV2.load(tmp_path / "model", **kwargs)
    assert loaded.policy_kwargs == copies[0] and loaded.replay_buffer_kwargs == copies[1]
    assert loaded.replay_buffer.prioritize_ends is False and loaded.replay_buffer_class is SequenceReplayBuffer
    with pytest.raises(ValueError, match="policy kwargs do not equal"):
        DreamerV2.load(tmp_path / "model", policy_kwargs=dict(hidden_size=8))


@pytest.mark.parametrize("optimizer_kwargs", [None, dict(eps=1e-3, alpha=0.9)])
def test_other_optimizers(optimizer_kwargs: dict[str, Any] | None, tmp_path: pathlib.Path) -> None:
    kwargs = dict(optimizer_class=th.optim.RMSprop, optimizer_kwargs=optimizer_kwargs)
    model = random_model(policy_kwargs=kwargs).learn(60)
    model.save(tmp_path / "model")
    loaded = DreamerV2.load(tmp_path / "model", env=random_envs())
    assert same(moments(model), moments(loaded)) and loaded.learn(60)._n_updates == 4
    assert isinstance(loaded.policy.optimizer, th.optim.RMSprop)
    assert loaded.policy.optimizer.defaults["eps"] == (optimizer_kwargs or dict(eps=1e-8))["eps"]


@pytest.mark.parametrize("other", [PPO, SAC, DQN])
def test_model_of_another_algorithm_is_refused(other: Any, tmp_path: pathlib.Path) -> None:
    env = RandomEnv(action_space=BOX if other is SAC else DISCRETE)
    other("MlpPolicy", env, device="cpu").save(tmp_path / "other")
    all_options: list[dict[str, Any]] = [dict(env=env), {}]
    for options in all_options:
        with pytest.raises(
            ValueError, match=r"needs a policy derived from DreamerPolicy, but \w+ was given .*another algorithm"
        ):
            DreamerV2.load(tmp_path / "other", **options)


def test_damaged_model_file_is_refused(tmp_path: pathlib.Path, algorithm: Any) -> None:
    random_model().save(tmp_path / "model")
    whole = (tmp_path / "model.zip").read_bytes()
    for part in (whole[: len(whole) // 2], whole[:-10], b"", b"text"):
        (tmp_path / "part.zip").write_bytes(part)
        with pytest.raises(ValueError, match=r"wasn't a zip-file|not a complete model file \(truncated"):
            algorithm.load(tmp_path / "part")
    with pytest.raises(FileNotFoundError):
        algorithm.load(tmp_path / "missing")


def test_saving_to_and_from_memory(algorithm: Any) -> None:
    model, file = random_model(), io.BytesIO()
    model.save(file)
    file.seek(0)
    assert same_weights(weights(model), weights(algorithm.load(file)))


@pytest.mark.parametrize("real", [True, False])
def test_compiled_policy(real: bool, tmp_path: pathlib.Path) -> None:
    class Wrapper(th.nn.Module):
        """What ``th.compile`` looks like from outside."""

        def __init__(self, module: th.nn.Module) -> None:
            super().__init__()
            self._orig_mod = module

        def __getattr__(self, name: str) -> Any:
            return self._modules["_orig_mod"] if name == "_orig_mod" else getattr(self._modules["_orig_mod"], name)

    model = random_model(seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        model.policy = th.compile(model.policy) if real else Wrapper(model.policy)  # type: ignore[assignment]
    model.learn(60)
    model.save(tmp_path / "model")
    loaded = DreamerV2.load(tmp_path / "model", env=random_envs())
    assert same_weights(weights(loaded), weights(model.policy._orig_mod))
    assert not any(name.startswith("_orig_mod") for name in weights(loaded))


# ------------------------------------------------------------------------------------------------------------------ parameters


def test_set_parameters(algorithm: Any) -> None:
    model, other = random_model(seed=0).learn(60), random_model(seed=1)
    parameters: Any = deepcopy(model.get_parameters())
    other.set_parameters(parameters)
    assert same_weights(weights(model), weights(other)) and same(moments(model), moments(other))

    part: Any = {"policy": {name: value + 1 for name, value in parameters["policy"].items() if "actor" in name}}
    other.set_parameters(part, exact_match=False)
    for name, value in parameters["policy"].items():
        assert th.equal(weights(other)[name], value + 1 if "actor" in name else value)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.set_parameters(part | {name: value for name, value in parameters.items() if name != "policy"})
    with pytest.raises(ValueError, match="do not match agents' parameters"):
        other.set_parameters({"policy": parameters["policy"]})
    with pytest.raises(ValueError, match="Key polizy is an invalid object name"):
        other.set_parameters({"polizy": parameters["policy"]}, exact_match=False)


def test_set_parameters_from_a_file(tmp_path: pathlib.Path, algorithm: Any) -> None:
    model = random_model(seed=0).learn(60)
    model.save(tmp_path / "model.zip")
    other = random_model(seed=1)
    other.set_parameters(str(tmp_path / "model.zip"))
    assert same_weights(weights(model), weights(other))


# --------------------------------------------------------------------------------------------------------------------- buffers


@pytest.mark.parametrize("kind", SPACES)
def test_replay_buffer_file(kind: str, tmp_path: pathlib.Path, algorithm: Any) -> None:
    model = random_model(*SPACES[kind], n_envs=2, buffer_size=60).learn(90)
    old = model.replay_buffer
    model.save_replay_buffer(tmp_path / "buffer")  # adds .pkl
    model.replay_buffer = None  # type: ignore[assignment]
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    new = model.replay_buffer
    assert isinstance(new, ReplayBuffer) and new is not old and new.size() == old.size() == 30
    assert (new.pos, new.full, new.buffer_size, new.device) == (old.pos, old.full, old.buffer_size, model.device)
    for name in ("actions", "rewards", "dones", "timeouts"):
        assert np.array_equal(getattr(old, name), getattr(new, name)), name
    a, b = old.observations, new.observations
    assert isinstance(a, dict) == (kind == "dict")
    for key in a if isinstance(a, dict) else (...,):
        assert np.array_equal(a[key], b[key])  # type: ignore[index, call-overload]
    model.learn(70, reset_num_timesteps=False)


def test_loaded_replay_buffer_serves_the_models_device(tmp_path: pathlib.Path, algorithm: Any) -> None:
    model = random_model().learn(4)
    model.save_replay_buffer(tmp_path / "buffer")
    model.device = th.device("meta")
    model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer.device == th.device("meta")


def test_replay_buffer_extend(algorithm: Any) -> None:
    model = random_model(n_envs=2).learn(20)
    transition = np.zeros((3, 2, 3)), np.zeros((3, 2, 3)), np.zeros((3, 2, 1), int), np.zeros((3, 2)), np.zeros((3, 2))
    size = model.replay_buffer.size()
    model.replay_buffer.extend(*transition, [[{}, {}]] * 3)
    assert model.replay_buffer.size() == size + 3


def sealed(thing: object) -> bytes:
    """A file of something else, with a checksum that fits."""
    content = pickle.dumps(thing)
    return content + TRAILER + zlib.crc32(content).to_bytes(4, "little")


def test_unfit_replay_buffer_files_are_refused(tmp_path: pathlib.Path) -> None:
    model = random_model(n_envs=2).learn(20)
    model.save_replay_buffer(tmp_path / "whole")
    whole, present = (tmp_path / "whole.pkl").read_bytes(), model.replay_buffer
    damaged = [whole[: len(whole) * i // 50] for i in range(50)] + [b"text", b"\x80\x05garbage", bytes(100)]
    damaged += [whole[:i] + bytes([255 - whole[i]]) + whole[i + 1 :] for i in (10, 14, 30, 40)]
    misfits = {"image": random_model(IMAGE), "action": random_model(VECTOR, BOX, 2)}
    foreign = ReplayBuffer(10, VECTOR, DISCRETE, "cpu", n_envs=2)
    contents = {
        "is not a complete replay buffer file|is damaged": damaged,
        r"holds a \w+, not a SequenceReplayBuffer": [sealed(thing) for thing in ({"a": 1}, None, foreign)],
        "does not fit the algorithm: .*buffer has .*expected": [sealed(m.learn(4).replay_buffer) for m in misfits.values()],
    }
    for message, files in contents.items():
        for content in files:
            (tmp_path / "bad.pkl").write_bytes(content)
            with pytest.raises(ValueError, match=message):
                model.load_replay_buffer(tmp_path / "bad.pkl")
            assert model.replay_buffer is present
    with pytest.raises(FileNotFoundError):
        model.load_replay_buffer(tmp_path / "missing")
    assert model.replay_buffer is present


# -------------------------------------------------------------------------------------------------------------------- resuming

CONTINUE = """
import pathlib, sys, torch as th
from sb3_dreamer import DreamerV2
from tests.small import random_envs
from tests.test_save_load import moments, same
folder = pathlib.Path(sys.argv[1])
model = DreamerV2.load(folder / "model", env=random_envs(n_envs=2), device="cpu")
model.load_replay_buffer(folder / "buffer")
saved = th.load(folder / "saved.pt", weights_only=False)
counters = (model.num_timesteps, model._n_updates, model._episode_num)
assert counters == saved["counters"], (counters, saved["counters"])
assert same(dict(model.policy.state_dict()), saved["weights"]) and same(moments(model), saved["moments"])
assert model.replay_buffer.num_records == saved["records"]
model.learn(80, reset_num_timesteps=False)
assert model.num_timesteps == 160 and model._n_updates == saved["counters"][1] + 5
assert not same(dict(model.policy.state_dict()), saved["weights"])
print("continued")
"""


def test_continued_in_a_new_process(tmp_path: pathlib.Path) -> None:
    model = random_model(n_envs=2, seed=0).learn(80)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    counters = (model.num_timesteps, model._n_updates, model._episode_num)
    saved = dict(counters=counters, weights=weights(model), moments=moments(model), records=model.replay_buffer.num_records)
    th.save(saved, tmp_path / "saved.pt")
    result = subprocess.run([sys.executable, "-c", CONTINUE, str(tmp_path)], capture_output=True, text=True)
    assert result.stdout.endswith("continued\n"), result.stdout + result.stderr


def test_loaded_buffer_takes_the_present_options(tmp_path: pathlib.Path, algorithm: Any) -> None:
    model = random_model().learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    other = random_model(buffer_size=500, replay_buffer_kwargs=dict(prioritize_ends=False, sample_running=False))
    with pytest.warns(UserWarning, match="keeps its own size of 1000 steps"):
        other.load_replay_buffer(tmp_path / "buffer")
    assert not other.replay_buffer.prioritize_ends and not other.replay_buffer.sample_running


def test_buffer_on_disk_of_another_number_of_environments(tmp_path: pathlib.Path, algorithm: Any) -> None:
    """It is copied into a new folder, neither into memory without a word nor into the folder that it is in."""
    there = dict(storage_path=str(tmp_path / "there"))
    source = random_model(n_envs=2, replay_buffer_kwargs=there).learn(40)
    source.save(tmp_path / "model")
    source.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", random_envs(n_envs=1))
    with pytest.raises(ValueError, match=r"of 2 environments, this model has 1\. To copy its episodes, name a new folder"):
        loaded.load_replay_buffer(tmp_path / "buffer")
    elsewhere = dict(storage_path=str(tmp_path / "elsewhere"))
    loaded = algorithm.load(tmp_path / "model", random_envs(n_envs=1), replay_buffer_kwargs=elsewhere)
    with pytest.warns(UserWarning, match="its episodes were copied"):
        loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.replay_buffer.storage_path == elsewhere["storage_path"] and loaded.replay_buffer.num_records > 40


@pytest.mark.parametrize("n_from, n_to, size", [(1, 3, 60), (3, 1, 60), (4, 2, 20), (1, 2, 1000)])
def test_buffer_of_another_number_of_environments(
    n_from: int, n_to: int, size: int, tmp_path: pathlib.Path, algorithm: Any
) -> None:
    """Every episode is whole, in one ring, with its own records; the oldest are left out where there is no room."""
    source = random_model(n_envs=n_from, buffer_size=400).learn(96)
    source.save_replay_buffer(tmp_path / "buffer")
    model = random_model(n_envs=n_to, buffer_size=size).learn(24)
    fits = size // n_to * n_to >= source.replay_buffer.num_records
    with pytest.warns(UserWarning, match=f"is of {n_from} environments, this model of {n_to}: its episodes were copied"):
        model.load_replay_buffer(tmp_path / "buffer")
    target = model.replay_buffer
    known = {tuple(obs) for obs in np.asarray(source.replay_buffer.observations).reshape(-1, 3).tolist()}
    batch = target.sample(50, batch_length=6)
    assert {tuple(obs) for obs in batch.observations["observation"].reshape(-1, 3).tolist()} <= known
    assert target.n_envs == n_to and (target.num_records == source.replay_buffer.num_records or not fits)
    for env in range(n_to):
        rows = target.size() if target.full else int(target.positions[env])
        done, starts = target.dones[:rows, env], target.storage.view("episode_start")[env, :rows]
        if not target.full:
            assert starts[0] and (starts[1:] >= done[:-1]).all(), "after an end there is a beginning"
    model.learn(24, reset_num_timesteps=False)
