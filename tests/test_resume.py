"""Nothing is lost: checkpoints from which training goes on, files that are whole or not there, damage that is named."""

import io
import json
import os
import pickle
import random
import time
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_dreamer import DreamerV2
from sb3_dreamer.callbacks import ResumableCheckpointCallback
from sb3_dreamer.common.files import atomic_file
from sb3_dreamer.saving.checkpoint import Checkpoint, checkpoints
from tests.small import SMALL, SMALL_POLICY, VECTOR, RandomEnv

EPISODE = 10


class Clockwork(gym.Env):
    """Without any chance: what is seen depends on the actions of the episode."""

    observation_space = spaces.Box(-10.0, 10.0, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.seen, self.steps = np.zeros(3, np.float32), 0
        return self.seen, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.seen = 0.9 * self.seen + np.eye(3, dtype=np.float32)[int(action)]
        self.steps += 1
        return self.seen, float(self.seen[0] - self.seen[1]), False, self.steps == EPISODE, {}


OPTIONS: dict[str, Any] = {
    **SMALL,
    "learning_starts": 30,
    "train_freq": 5,
    "learning_rate": "lin_1e-2",
    "ent_coef": "lin_1e-1_1e-3",
    "policy_kwargs": {**SMALL_POLICY, "normalize_observations": True},
    "seed": 3,
}


class PowerCut(Exception):
    """Ends a run in the middle."""


class Stop(BaseCallback):
    """Raises an error after so many steps."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__()
        self.after, self.error = after, error

    def _on_step(self) -> bool:
        if self.num_timesteps == self.after:
            raise self.error
        return True


def scramble() -> None:
    """Another process has other random numbers."""
    th.manual_seed(99)
    np.random.seed(99)
    random.seed(99)


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("at", [20, 100], ids=["random steps", "training"])
def test_resumed_training_is_the_same_training(on_disk: bool, at: int, tmp_path: Path) -> None:
    """To the bit, with schedules, statistics of observations, and the optimizers' moments."""

    def where(name: str) -> dict[str, Any]:
        return {"replay_buffer_kwargs": dict(storage_path=str(tmp_path / name))} if on_disk else {}

    straight = DreamerV2("MlpPolicy", Clockwork(), **OPTIONS, **where("a"))
    straight.learn(200)
    stopped = DreamerV2("MlpPolicy", Clockwork(), **OPTIONS, **where("b"))
    callbacks = [ResumableCheckpointCallback(at, tmp_path / "checkpoints"), Stop(at + 13, PowerCut())]
    with pytest.raises(PowerCut):
        stopped.learn(200, callback=callbacks)
    scramble()
    resumed = DreamerV2.resume(tmp_path / "checkpoints", Clockwork())
    assert resumed.num_timesteps == at
    resumed.learn(200 - at, reset_num_timesteps=False)
    assert resumed.num_timesteps == straight.num_timesteps and resumed._n_updates == straight._n_updates > 30
    for (name, a), b in zip(straight.policy.state_dict().items(), resumed.policy.state_dict().values(), strict=True):
        assert a.equal(b), name
    assert straight.replay_buffer.num_records == resumed.replay_buffer.num_records
    batches = [model.replay_buffer.sample(5) for model in (straight, resumed)]
    assert batches[0].rewards.equal(batches[1].rewards), "the same records, the same choice"
    assert straight.policy.optimizer.state_dict()["param_groups"] == resumed.policy.optimizer.state_dict()["param_groups"]


def test_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    model = DreamerV2("MlpPolicy", Clockwork(), **OPTIONS)
    model.learn(90, callback=ResumableCheckpointCallback(20, tmp_path, keep=2))
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000000000080", "step_000000000090"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    everything = tmp_path / "all"
    model.learn(60, callback=ResumableCheckpointCallback(20, everything, keep=None), reset_num_timesteps=False)
    assert len(checkpoints(everything)) == 3
    older = DreamerV2.resume(everything / "step_000000000110", Clockwork())
    assert older.num_timesteps == 110
    with pytest.raises(ValueError, match="must be at least 1"):
        ResumableCheckpointCallback(0, tmp_path)


@pytest.mark.parametrize("norm_obs", [True, False])
def test_statistics_of_vec_normalize_come_back(norm_obs: bool, tmp_path: Path) -> None:
    def env() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: RandomEnv(VECTOR)]), norm_obs=norm_obs, norm_reward=True)

    options = {**OPTIONS, "policy_kwargs": SMALL_POLICY}
    model = DreamerV2("MlpPolicy", env(), **options)
    model.learn(40, callback=ResumableCheckpointCallback(20, tmp_path))
    resumed = DreamerV2.resume(tmp_path, env())
    ours, theirs = model.get_vec_normalize_env(), resumed.get_vec_normalize_env()
    assert ours is not None and theirs is not None
    if norm_obs:
        np.testing.assert_array_equal(ours.obs_rms.mean, theirs.obs_rms.mean)  # type: ignore[attr-defined, union-attr]
    assert ours.ret_rms.var == theirs.ret_rms.var and theirs.ret_rms.count > 1
    resumed.learn(10, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="was made with VecNormalize, but the environment comes without"):
        DreamerV2.resume(tmp_path, DummyVecEnv([lambda: RandomEnv(VECTOR)]))


def test_checkpoints_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        DreamerV2.resume(tmp_path, Clockwork())
    DreamerV2("MlpPolicy", Clockwork(), **OPTIONS).learn(40, callback=ResumableCheckpointCallback(20, tmp_path))
    older, newest = checkpoints(tmp_path)
    for name in json.loads((newest / "contents.json").read_text()):
        content = (newest / name).read_bytes()
        (newest / name).write_bytes(content[:-3] + b"abc")
        with pytest.raises(ValueError, match=f"is damaged: {name} is not what was written"):
            DreamerV2.resume(newest, Clockwork())
        with pytest.warns(UserWarning, match=f"is damaged: {name} is not what was written. Trying the checkpoint before it"):
            assert Checkpoint.newest(tmp_path).path == older
        (newest / name).write_bytes(content)
    assert Checkpoint.newest(tmp_path).path == newest
    for path in (older, newest):
        (path / "model.zip").write_bytes(b"nothing")
    all_damaged = pytest.raises(ValueError, match=f"{older.name} is damaged")
    with pytest.warns(UserWarning, match="Trying the checkpoint before"), all_damaged:
        DreamerV2.resume(tmp_path, Clockwork())


def test_another_run_in_the_same_folder(tmp_path: Path) -> None:
    """Newest is what the present run wrote, not the highest number of steps; the other run's are kept under another name."""

    def names() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    saving = ResumableCheckpointCallback(20, tmp_path)
    DreamerV2("MlpPolicy", Clockwork(), **OPTIONS).learn(100, callback=saving)
    assert names() == ["step_000000000080", "step_000000000100"]
    with pytest.warns(UserWarning, match=r"later than step 0 .*: step_000000000080, step_000000000100 were renamed"):
        DreamerV2("MlpPolicy", Clockwork(), **OPTIONS).learn(70, callback=saving)
    kept = ["aside1_step_000000000080", "aside1_step_000000000100"]
    assert names() == [*kept, "step_000000000060", "step_000000000070"]
    resumed = DreamerV2.resume(tmp_path, Clockwork())
    assert resumed.num_timesteps == 70
    # the newest is damaged: training goes on from the older, whose successors replace it
    (tmp_path / "step_000000000070" / "model.zip").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match="Trying the checkpoint before"):
        resumed = DreamerV2.resume(tmp_path, Clockwork())
    with pytest.warns(UserWarning, match="step_000000000070 were renamed"):
        resumed.learn(25, callback=saving, reset_num_timesteps=False)
    assert names() == ["aside1_step_000000000070", *kept, "step_000000000080", "step_000000000085"]


# ---------------------------------------------------------------------------------------------------------- whole or not


@pytest.mark.parametrize("method", ["save", "save_replay_buffer"])
def test_a_failed_save_leaves_the_older_file(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = DreamerV2("MlpPolicy", Clockwork(), **OPTIONS)
    model.learn(20)
    path = tmp_path / "file.bin"
    getattr(model, method)(path)
    before = path.read_bytes()
    model.learn(20, reset_num_timesteps=False)
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(descriptor: int, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(type(error)):
            getattr(model, method)(path)
        monkeypatch.undo()
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["file.bin"]
    getattr(model, method)(path)
    assert path.read_bytes() != before


def test_files_are_readable_by_others_and_have_their_suffix(tmp_path: Path) -> None:
    model = DreamerV2("MlpPolicy", Clockwork(), **OPTIONS)
    model.learn(4)
    model.save(tmp_path / "new" / "model")
    model.save_replay_buffer(str(tmp_path / "new" / "buffer"))
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["buffer.pkl", "model.zip"]
    before = os.umask(0o027)
    try:
        model.save(tmp_path / "new" / "model")
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "model.zip").stat().st_mode & 0o777 == 0o640
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    DreamerV2.load(stream)
    with open(tmp_path / "new" / "buffer.pkl", "rb") as file:
        assert type(pickle.load(file)).__name__ == "SequenceReplayBuffer", "SB3's own reader can read it"


def test_saving_leaves_the_umask_to_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the process: files that other threads make in the meantime would get other permissions."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was changed"))
    with atomic_file(tmp_path / "file") as file:
        file.write(b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


# ----------------------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model = DreamerV2("MlpPolicy", Clockwork(), **OPTIONS)
    model.learn(40)
    model.save(folder / "model.zip")
    model.save_replay_buffer(folder / "buffer.pkl")
    PPO("MlpPolicy", Clockwork()).save(folder / "ppo.zip")
    return folder


def damaged(content: bytes) -> list[bytes]:
    """Truncated at every twentieth, single bits flipped, empty, something else."""
    flips = np.random.default_rng(0).integers(len(content), size=60)
    cut = [content[: len(content) * part // 20] for part in range(20)]
    flipped = [content[:at] + bytes([content[at] ^ (1 << int(at) % 8)]) + content[at + 1 :] for at in flips.tolist()]
    return [*cut, *flipped, b"", b"text", bytes(1000), b"PK\x03\x04" + content[100:]]


def test_damaged_models(whole: Path, tmp_path: Path) -> None:
    """One of our errors within a second, or, where the flipped bit means nothing, exactly the weights that were saved."""
    model, path, refused = DreamerV2.load(whole / "model.zip"), tmp_path / "model.zip", 0
    for content in damaged((whole / "model.zip").read_bytes()):
        path.write_bytes(content)
        started = time.perf_counter()
        try:
            loaded = DreamerV2.load(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            for a, b in zip(model.policy.state_dict().values(), loaded.policy.state_dict().values(), strict=True):
                assert a.equal(b)
        assert time.perf_counter() - started < 3.0
    assert refused > 70
    with pytest.raises(ValueError, match="is a folder, not a model file"):
        DreamerV2.load(tmp_path)
    with pytest.raises(ValueError, match="needs a policy derived from DreamerPolicy"):
        DreamerV2.load(whole / "ppo.zip")
    with pytest.raises(FileNotFoundError):
        DreamerV2.load(tmp_path / "missing")


def test_damaged_buffers(whole: Path, tmp_path: Path) -> None:
    model, path = DreamerV2.load(whole / "model.zip", Clockwork()), tmp_path / "buffer.pkl"
    present = model.replay_buffer
    contents = damaged((whole / "buffer.pkl").read_bytes())
    for content in contents:
        path.write_bytes(content)
        started = time.perf_counter()
        with pytest.raises(ValueError, match=str(path)):
            model.load_replay_buffer(path)
        assert time.perf_counter() - started < 3.0
        assert model.replay_buffer is present
    with pytest.raises(ValueError, match="is a folder, not a replay buffer file"):
        model.load_replay_buffer(tmp_path)
    model.load_replay_buffer(whole / "buffer.pkl")


def test_a_part_that_was_exchanged_is_found(whole: Path, tmp_path: Path) -> None:
    """A zip file whose checksums fit, but which lacks a part."""
    with zipfile.ZipFile(whole / "model.zip") as archive, zipfile.ZipFile(tmp_path / "m.zip", "w") as other:
        for name in set(archive.namelist()) - {"policy.pth"}:
            other.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match=r"it has no \['policy.pth'\]"):
        DreamerV2.load(tmp_path / "m.zip")


@pytest.mark.parametrize("level", [None, 3])
def test_a_loaded_model_opens_its_folder_when_it_learns(level: int | None, tmp_path: Path) -> None:
    """To look at a model must not disturb the run that writes its buffer."""
    options = dict(storage_path=str(tmp_path / "replay"), storage_compression=level)
    storage: dict[str, Any] = {"replay_buffer_kwargs": options}
    model = DreamerV2("MlpPolicy", Clockwork(), **OPTIONS, **storage)
    model.learn(40)
    model.save(tmp_path / "model.zip")
    looked_at = DreamerV2.load(tmp_path / "model.zip", Clockwork())
    looked_at.predict(np.zeros(3, np.float32))
    model.learn(10, reset_num_timesteps=False)
    records = model.replay_buffer.num_records
    looked_at.learn(10, reset_num_timesteps=False)
    assert looked_at.replay_buffer.storage_path == str(tmp_path / "replay")
    assert looked_at.replay_buffer.num_records == records + 11


def test_a_loaded_model_keeps_the_buffer_that_it_was_given(whole: Path, tmp_path: Path) -> None:
    """Its own folder is opened only if there is nothing else to learn from."""
    storage: dict[str, Any] = {"replay_buffer_kwargs": dict(storage_path=str(tmp_path / "replay"))}
    model = DreamerV2("MlpPolicy", Clockwork(), **OPTIONS, **storage).learn(20)
    model.save(tmp_path / "model.zip")
    loaded = DreamerV2.load(tmp_path / "model.zip", Clockwork())
    loaded.load_replay_buffer(whole / "buffer.pkl")
    given, records = loaded.replay_buffer, loaded.replay_buffer.num_records
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded.replay_buffer is given and given.storage_path is None and given.num_records == records + 11


# ------------------------------------------------------------------------------------------ without an environment, bad ones


def test_training_without_an_environment(whole: Path, tmp_path: Path) -> None:
    """More updates on the data of a finished run, with another batch size, logged by update."""
    model = DreamerV2.load(whole / "model.zip", batch_size=3, tensorboard_log=None)
    with pytest.raises(ValueError, match="no experience to learn from: call load_replay_buffer"):
        model.train_offline(10)
    model.load_replay_buffer(whole / "buffer.pkl")
    before, updates, steps = [p.detach().clone() for p in model.policy.parameters()], model._n_updates, model.num_timesteps
    model.set_logger(configure(str(tmp_path), ["csv"]))
    assert model.train_offline(12.0, log_interval=4) is model
    assert model._n_updates == updates + 12 and model.num_timesteps == steps
    assert not all(p.equal(b) for p, b in zip(model.policy.parameters(), before, strict=True))
    rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(rows) == 4 and "train/model_loss" in rows[0]
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 / 12)


def test_training_without_statistics_is_refused(tmp_path: Path) -> None:
    """The buffer holds what the environment gave, a thousand times as large as what the model has learned from."""

    def env() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: RandomEnv(VECTOR)]), norm_obs=False, norm_reward=True)

    model = DreamerV2("MlpPolicy", env(), **OPTIONS).learn(40)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = DreamerV2.load(tmp_path / "model")
    loaded.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match=r"has learned behind VecNormalize.*Load it with its environment"):
        loaded.train_offline(1)
    loaded.set_env(env())
    assert loaded.train_offline(1)._n_updates == model._n_updates + 1


class Dies(Clockwork):
    """Ends its process in the eighth step of its second episode."""

    episode = 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.episode += 1
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.episode == 2 and self.steps == 7:
            os._exit(1)
        return super().step(action)


class Raises(Dies):
    """The same with an exception, in this process."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.episode == 2 and self.steps == 7:
            raise RuntimeError("the motor is broken")
        return Clockwork.step(self, action)


class Changes(Dies):
    """The same with an observation of another shape."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.episode == 2 and self.steps == 7:
            return np.zeros(4, np.float32), 0.0, False, False, {}
        return Clockwork.step(self, action)


class Poisons(Dies):
    """The same with a reward that is no number."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = Clockwork.step(self, action)
        bad = self.episode == 2 and self.steps == 8
        return observation, float("nan") if bad else reward, *rest  # type: ignore[return-value]


@pytest.mark.parametrize(
    "faulty, error, message",
    [
        (Dies, RuntimeError, "An environment process ended in step 18 .*Model and replay buffer are those of the last step"),
        (Raises, RuntimeError, "the motor is broken"),
        (Changes, ValueError, "shape"),
        (Poisons, ValueError, "reward of environment 0 is nan"),
    ],
)
def test_faulty_environments_lose_nothing(faulty: type, error: type[Exception], message: str, tmp_path: Path) -> None:
    """One error; the buffer has all steps before, can be saved, and training goes on with a mended environment."""
    env = SubprocVecEnv([faulty], start_method="fork") if faulty is Dies else DummyVecEnv([faulty])
    model = DreamerV2("MlpPolicy", env, **{**OPTIONS, "learning_starts": 5})
    with pytest.raises(error, match=message):
        model.learn(60)
    assert model.replay_buffer.num_records == 2 * 1 + 17
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.set_env(DummyVecEnv([Clockwork]), force_reset=True)
    model.learn(20, reset_num_timesteps=False)
    loaded = DreamerV2.load(tmp_path / "model.zip", Clockwork())
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    assert loaded.replay_buffer.num_records == 19
    loaded.learn(20, reset_num_timesteps=False)
