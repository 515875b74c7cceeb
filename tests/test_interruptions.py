"""Interrupted runs: signals, frozen machines, dead workers, two runs in one folder, checkpoints that cannot be read."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from sb3_dreamer import DreamerV2
from sb3_dreamer.algorithm.diagnostics import NonFiniteError
from sb3_dreamer.callbacks import ResumableCheckpointCallback
from sb3_dreamer.common.files import StorageError
from sb3_dreamer.ranks.heartbeat import Heartbeat, RankError
from sb3_dreamer.saving.checkpoint import Checkpoint, checkpoints
from tests.ranks import run_ranks
from tests.small import SMALL, SMALL_POLICY, VECTOR, RandomEnv
from tests.test_resume import EPISODE, OPTIONS, Clockwork, PowerCut, Stop

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def make_env() -> RandomEnv:
    return RandomEnv(VECTOR, length=10)


def make(env: Any = None, **options: Any) -> DreamerV2:
    return DreamerV2("MlpPolicy", env or make_env(), policy_kwargs=SMALL_POLICY, **{**SMALL, "train_freq": 10, **options})


class Signals(BaseCallback):
    """Sends this process a signal at one step."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__()
        self.number, self.at = number, at

    def _on_step(self) -> bool:
        if self.num_timesteps == self.at:
            os.kill(os.getpid(), self.number)
        return True


# ----------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_and_the_usual_status(number: int, tmp_path: Path) -> None:
    model, before, updates = make(), signal.getsignal(number), make().learn(30)._n_updates
    with pytest.raises(SystemExit) as ended:
        model.learn(1000, callback=[Signals(number, 37), ResumableCheckpointCallback(500, tmp_path)])
    assert ended.value.code == 128 + number
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000000000037"]
    assert signal.getsignal(number) is before, "nothing is left behind"
    assert model._n_updates == updates, "the rollout was not completed"
    resumed = DreamerV2.resume(tmp_path, make_env())
    resumed.learn(10, reset_num_timesteps=False, callback=ResumableCheckpointCallback(500, tmp_path))
    assert resumed.num_timesteps == 47


@needs_fork
def test_a_signal_to_all_processes_of_a_job_leaves_a_checkpoint(tmp_path: Path) -> None:
    """It ends the workers of ``SubprocVecEnv`` at once, which the next step finds."""
    env = SubprocVecEnv([make_env, make_env], start_method="fork")

    class SignalsAll(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 17:
                for pid in (*(process.pid for process in env.processes), os.getpid()):
                    os.kill(pid, signal.SIGUSR1)
            return True

    model = make(env)
    with pytest.raises(SystemExit) as ended:
        model.learn(1000, callback=[ResumableCheckpointCallback(500, tmp_path), SignalsAll()])
    assert ended.value.code == 128 + signal.SIGUSR1
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000000000034"]
    resumed = DreamerV2.resume(tmp_path, DummyVecEnv([make_env, make_env]))
    assert resumed.replay_buffer.num_records == model.replay_buffer.num_records >= 34


def test_a_signal_without_a_checkpoint_callback_ends_the_process_as_ever(tmp_path: Path) -> None:
    for callback in ([], [EveryNTimesteps(10, ResumableCheckpointCallback(1, tmp_path))]):
        child = os.fork()
        if child == 0:
            try:
                make().learn(1000, callback=[Signals(signal.SIGTERM, 37), *callback])
            finally:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def test_a_failed_run_takes_signals_as_before(tmp_path: Path) -> None:
    class Fails(BaseCallback):
        def _on_step(self) -> bool:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make().learn(100, callback=[ResumableCheckpointCallback(10, tmp_path), Fails()])
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_own_handlers_stay(tmp_path: Path) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        make().learn(60, callback=[Signals(signal.SIGTERM, 37), ResumableCheckpointCallback(30, tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM] and checkpoints(tmp_path)[-1].name == "step_000000000060"


@pytest.mark.slow
def test_the_zoo_command_leaves_a_checkpoint(tmp_path: Path) -> None:
    """``callback`` in the hyperparameters, as anybody would write it."""
    from tests.installed import ROOT
    from tests.test_zoo import TINY

    callback = "  callback: {sb3_dreamer.callbacks.ResumableCheckpointCallback: {save_freq: 100000, folder: saved}}\n"
    (tmp_path / "tiny.yml").write_text(TINY.rstrip("\n") + "\n" + callback)
    zoo = ["-m", "sb3_dreamer.zoo", "train", "--algo", "dreamer", "--env", "CartPole-v1", "-conf", "tiny.yml", "-n", "100000"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, *zoo], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "Updates:" in line:
            break
    time.sleep(3.0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and len(checkpoints(tmp_path / "saved")) == 1


# -------------------------------------------------------------------------------------------------- two runs in one folder


@needs_fork
def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            callback = ResumableCheckpointCallback(20, tmp_path)
            hold = type("Hold", (BaseCallback,), {"_on_step": lambda one: one.num_timesteps < 50 or hang()})()

            def hang() -> bool:
                os.write(writing, b"x")
                time.sleep(60)
                return True

            make().learn(100, callback=[callback, hold])
        finally:
            os._exit(0)
    try:
        os.read(reading, 1)
        names = [path.name for path in checkpoints(tmp_path)]
        with pytest.raises(StorageError, match=r"Another run writes its checkpoints to .*: each run needs its own folder"):
            make().learn(30, callback=ResumableCheckpointCallback(10, tmp_path))
        assert [path.name for path in checkpoints(tmp_path)] == names == ["step_000000000020", "step_000000000040"]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with pytest.warns(UserWarning, match="has checkpoints of another run"):
        make().learn(30, callback=ResumableCheckpointCallback(10, tmp_path))


def test_keep_deletes_only_what_the_run_wrote(tmp_path: Path) -> None:
    make().learn(40, callback=ResumableCheckpointCallback(20, tmp_path, keep=None))
    other = make()
    other.learn(40)
    other.learn(60, reset_num_timesteps=False, callback=ResumableCheckpointCallback(20, tmp_path, keep=1))
    assert [path.name for path in checkpoints(tmp_path)] == [f"step_{n:012d}" for n in (20, 40, 100)]
    resumed = DreamerV2.resume(tmp_path / "step_000000000040", make_env())
    assert Checkpoint(tmp_path / "step_000000000040").run == resumed.run_id != other.run_id


# ------------------------------------------------------------------------------------------------- unreadable checkpoints


def spoil_missing(path: Path) -> None:
    (path / "contents.json").unlink()


def spoil_null(path: Path) -> None:
    (path / "contents.json").write_text("null")


def spoil_list(path: Path) -> None:
    (path / "contents.json").write_text("[1]")


def spoil_empty(path: Path) -> None:
    (path / "contents.json").write_text("{}")


def spoil_binary(path: Path) -> None:
    (path / "contents.json").write_bytes(b"\xff\xfe\x00")


def spoil_directory(path: Path) -> None:
    spoil_missing(path)
    (path / "contents.json").mkdir()


def spoil_model_directory(path: Path) -> None:
    (path / "model.zip").unlink()
    (path / "model.zip").mkdir()


def spoil_all(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("a file")


SPOILERS = [
    spoil_missing,
    spoil_null,
    spoil_list,
    spoil_empty,
    spoil_binary,
    spoil_directory,
    spoil_model_directory,
    spoil_all,
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_an_older_checkpoint_counts_whatever_is_wrong_with_the_newest(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    make().learn(60, callback=ResumableCheckpointCallback(30, tmp_path))
    older, newest = checkpoints(tmp_path)
    spoil(newest)
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged: .* Trying the checkpoint before it"):
        assert DreamerV2.resume(tmp_path, make_env()).num_timesteps == 30
    with pytest.raises(ValueError, match="is damaged: "):
        DreamerV2.resume(newest, make_env())
    spoil(older)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="is damaged"):
        DreamerV2.resume(tmp_path, make_env())


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make().learn(60, callback=ResumableCheckpointCallback(30, tmp_path))
    newest = checkpoints(tmp_path)[-1]

    def failing(path: Path) -> str:
        if path.parent == newest:
            raise OSError(5, "Input/output error", str(path))
        return digest(path)

    from sb3_dreamer.saving import checkpoint

    digest = checkpoint._digest
    monkeypatch.setattr(checkpoint, "_digest", failing)
    with pytest.warns(UserWarning, match="Input/output error"):
        assert DreamerV2.resume(tmp_path, make_env()).num_timesteps == 30


# -------------------------------------------------------------------------------------------------------- frozen machines


class FrozenStore:
    """A store whose machine stops answering."""

    def __init__(self) -> None:
        self.frozen, self.values = threading.Event(), dict[str, bytes]()

    def __getattr__(self, name: str) -> Any:
        if self.frozen.is_set():
            time.sleep(60)
        return {
            "set": lambda key, value: self.values.update({key: value.encode()}),
            "check": lambda keys: keys[0] in self.values,
            "get": lambda key: self.values[key],
            "compare_set": lambda key, _, value: self.values.update({key: value.encode()}),
        }[name]


def test_every_wait_for_the_store_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_dreamer.ranks.heartbeat._PATIENCE", 0.5)
    store = FrozenStore()
    heartbeat = Heartbeat(store, 0, 2, timeout=1.0)
    heartbeat.check()
    store.frozen.set()
    started = time.monotonic()
    with pytest.raises(RankError, match="store has not answered for 1 s: its machine may be frozen"):
        while time.monotonic() - started < 10.0:
            time.sleep(0.05)
            heartbeat.check()
    assert time.monotonic() - started < 3.0
    for call in (
        lambda: heartbeat.lost(RuntimeError("x")),
        heartbeat.ended,
        lambda: heartbeat.tell(ValueError()),
        heartbeat.stop,
    ):
        started = time.monotonic()
        call()
        assert time.monotonic() - started < 5.0


@needs_fork
def test_a_frozen_rank_0_which_holds_the_store() -> None:
    """Without torchrun the store is in rank 0's process."""

    def job(rank: int) -> None:
        make(make_env(), train_freq=5, seed=0).learn(10_000, callback=Signals(signal.SIGSTOP, 60) if rank == 0 else None)

    started = time.monotonic()
    frozen, other = run_ranks(job, SB3_DREAMER_TIMEOUT="3", limit=25.0)
    assert other.exit_code == 1 and other.error.startswith("RankError: Rank 1 of 2 stops: "), other
    assert frozen.exit_code is None and time.monotonic() - started < 60.0


class Mark:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@needs_fork
def test_what_ranks_exchange_is_not_executed(tmp_path: Path) -> None:
    from sb3_dreamer.ranks import distributed

    def job(rank: int) -> list[Any]:
        distributed.join()
        return distributed.gather({"mine": (rank, np.float32(0.5), np.arange(2), None), "object": Mark(tmp_path / "mark")})

    for outcome in run_ranks(job):
        assert outcome.error == "", outcome
        for number, part in enumerate(outcome.result):
            assert part["mine"] == [number, 0.5, [0, 1], None] and "Mark object" in part["object"]
    assert not (tmp_path / "mark").exists()


# ----------------------------------------------------------------------------------------------------------- dead workers


@needs_fork
@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_worker_is_one_error(method: str, victim: int) -> None:
    """The later ones of forked workers hold connections of the earlier ones open."""
    env = SubprocVecEnv([make_env, make_env, make_env], start_method=method)

    class Kills(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 15:
                os.kill(env.processes[victim].pid, signal.SIGKILL)
            return True

    model = make(env)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="An environment process ended in step"):
        model.learn(1000, callback=Kills())
    assert time.monotonic() - started < 30.0
    assert model.replay_buffer.num_records >= 45
    with pytest.raises(RuntimeError, match="An environment process ended in step 0"):
        model._last_obs = None
        model.learn(10, reset_num_timesteps=False)
    for process in env.processes:
        process.kill()


# ------------------------------------------------------------------------------------------------------- VecNormalize


def normalized(**options: Any) -> VecNormalize:
    return VecNormalize(DummyVecEnv([Clockwork]), **options)


@pytest.mark.parametrize("norm_obs", [True, False])
def test_resumed_training_behind_vec_normalize_is_the_same(norm_obs: bool, tmp_path: Path) -> None:
    """The first observation after resuming was counted before."""
    options = {**OPTIONS, "policy_kwargs": SMALL_POLICY}
    straight = DreamerV2("MlpPolicy", normalized(norm_obs=norm_obs), **options)
    straight.learn(20 * EPISODE)
    stopped = DreamerV2("MlpPolicy", normalized(norm_obs=norm_obs), **options)
    callbacks = [ResumableCheckpointCallback(10 * EPISODE, tmp_path), Stop(10 * EPISODE + 13, PowerCut())]
    with pytest.raises(PowerCut):
        stopped.learn(20 * EPISODE, callback=callbacks)
    resumed = DreamerV2.resume(tmp_path, normalized(norm_obs=norm_obs))
    assert resumed.num_timesteps == 10 * EPISODE
    resumed.learn(10 * EPISODE, reset_num_timesteps=False)
    ours, theirs = (cast(Any, model.get_vec_normalize_env()) for model in (straight, resumed))
    assert theirs.training
    if norm_obs:
        assert ours.obs_rms.count == theirs.obs_rms.count
        np.testing.assert_array_equal(ours.obs_rms.mean, theirs.obs_rms.mean)
    assert ours.ret_rms.var == theirs.ret_rms.var and ours.ret_rms.count == theirs.ret_rms.count
    parameters = zip(straight.policy.state_dict().values(), resumed.policy.state_dict().values(), strict=True)
    assert all(a.equal(b) for a, b in parameters)


class Extreme(Clockwork):
    """The last observation of an episode is far from all others, but inside of the space."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return np.array([9.5, -9.5, 0.0], np.float32) if truncated else observation * 1e-3, reward, terminated, truncated, info


def test_terminal_observations_are_what_the_environment_gave() -> None:
    """Not clipped to ten standard deviations, and without the rounding errors of normalizing and back."""
    env = VecNormalize(DummyVecEnv([Extreme]), clip_obs=1.0)
    model = make(env)
    model.learn(65)
    observations: Any = model.replay_buffer.observations
    last = np.flatnonzero(model.replay_buffer.dones[:, 0])
    assert len(last) == 7
    np.testing.assert_array_equal(observations[last, 0], [[9.5, -9.5, 0.0]] * 7)


class DropsInfos(VecEnvWrapper):
    """Passes on no more than SB3 itself needs."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        *others, infos = self.venv.step_wait()
        known = ("terminal_observation", "TimeLimit.truncated")
        return *others, [{name: info[name] for name in known if name in info} for info in infos]


class StepsByItself(VecNormalize):
    """Does not call ``step_wait`` of the environment inside by its attribute."""

    def step_wait(self) -> Any:
        replaced, self.venv.step_wait = self.venv.step_wait, type(self.venv).step_wait.__get__(self.venv)  # type: ignore
        try:
            return super().step_wait()
        finally:
            self.venv.step_wait = replaced  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: DropsInfos(VecNormalize(env, clip_obs=1.0)),
        lambda env: StepsByItself(env, clip_obs=1.0),
    ],
    ids=["infos", "subclass"],
)
def test_a_terminal_observation_that_cannot_be_captured_is_said_once(wrap: Callable[[VecEnv], VecEnv]) -> None:
    env = wrap(DummyVecEnv([Extreme]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = make(env)
        model.learn(65)
        model.learn(30, reset_num_timesteps=False)
    texts = [str(one.message) for one in said if "could not be captured" in str(one.message)]
    assert len(texts) == 1 and "has clipped it, to 1.0 standard deviations" in texts[0]
    observations: Any = model.replay_buffer.observations
    assert (np.abs(observations[model.replay_buffer.dones[:, 0], 0, :2]) < 9.0).all()


def test_evaluation_behind_vec_normalize_goes_on(tmp_path: Path) -> None:
    """SB3 compares the wrappers of both environments."""
    model = make(normalized())
    model.learn(60, callback=EvalCallback(normalized(training=False), eval_freq=20, n_eval_episodes=1, warn=False, verbose=0))
    assert model.num_timesteps == 60 and type(model.get_vec_normalize_env().venv) is DummyVecEnv  # type: ignore[union-attr]


class Broadcast(Clockwork):
    def step(self, action: Any) -> Any:
        return np.ones(1, np.float32), *super().step(action)[1:]


def test_an_observation_that_a_vec_env_would_repeat_is_named() -> None:
    with pytest.raises(ValueError, match=r"terminal observation of environment 0 has shape \(1,\), expected \(3,\)"):
        make(Broadcast()).learn(20)


class Reuses(Clockwork):
    """Returns the same array again and again."""

    array = np.zeros(3, np.float32)

    def reset(self, **options: Any) -> Any:
        self.array[:] = super().reset(**options)[0] - 7.0
        return self.array, {}

    def step(self, action: Any) -> Any:
        observation, *others = super().step(action)
        self.array[:] = observation
        return self.array, *others


@pytest.mark.parametrize("vectorized", [False, True])
def test_an_environment_that_returns_the_same_array(vectorized: bool) -> None:
    model = make(DummyVecEnv([Reuses]) if vectorized else Reuses())
    model.learn(65)
    observations: Any = model.replay_buffer.observations
    dones = model.replay_buffer.dones[:, 0]
    assert dones.sum() == 7 and (observations[dones, 0] > -1.0).all()
    assert (observations[1 : 3 * EPISODE : EPISODE + 1, 0] > -1.0).all() and (observations[0, 0] == -7.0).all()


class Rewards(Clockwork):
    """Returns one reward of another kind."""

    reward: Any = None

    def step(self, action: Any) -> Any:
        observation, reward, *others = super().step(action)
        return observation, self.reward if self.steps == 4 else reward, *others


class Summed(gym.RewardWrapper):
    """Makes one number of several."""

    def reward(self, reward: Any) -> Any:
        return float(np.sum(reward))


STRINGS: list[Any] = ["3", "abc", b"3", np.str_("3"), np.array("3")]
NO_NUMBERS = [*STRINGS, None, [3.0], {}, 3j, np.complex64(3j), np.ones(2), th.ones(2)]
NUMBERS = [3, 3.0, True, np.float64(3), np.bool_(True), np.array(3.0), th.tensor(3.0), Fraction(6, 2)]


@pytest.mark.parametrize("reward", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("monitored", [False, True])
def test_a_reward_that_is_no_number_is_named(monitored: bool, reward: Any) -> None:
    """``DummyVecEnv`` makes 3.0 of "3" and NaN of None."""

    def make_odd() -> Any:
        env = Rewards()
        env.reward = reward
        return Monitor(env) if monitored else env

    model = make(DummyVecEnv([Clockwork, make_odd]))
    expected = f"The reward of environment 1 is {reward!r} ({type(reward).__name__}), expected a number."
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        model.learn(100)
    assert model.num_timesteps == 6 and model.replay_buffer.rings.written.tolist() == [4, 4], "those of the steps before"


@pytest.mark.parametrize("reward", NUMBERS, ids=repr)
def test_every_kind_of_number_is_a_reward(reward: Any) -> None:
    env = Rewards()
    env.reward = reward
    model = make(env)
    model.learn(6)
    assert model.replay_buffer.rewards[4, 0] == float(reward)


def test_a_wrapper_may_make_the_number() -> None:
    env = Rewards()
    env.reward = [1.0, 2.0]
    model = make(Summed(env))
    model.learn(6)
    assert model.replay_buffer.rewards[4, 0] == 3.0


# ---------------------------------------------------------------------------------------------------------- absurd values


class Absurd(Clockwork):
    """Finite, but no number for training."""

    def step(self, action: Any) -> Any:
        observation, *others = super().step(action)
        return np.full(3, 1e30, np.float32) if self.steps >= 4 else observation, *others


@pytest.mark.parametrize("on_disk", [False, True])
def test_absurd_values_are_named_and_dropped(on_disk: bool, tmp_path: Path) -> None:
    storage = dict(storage_path=str(tmp_path / "replay")) if on_disk else {}
    model = make(Absurd(), replay_buffer_kwargs=storage, max_skipped_updates=2)
    expected = (
        r"has \d+ values beyond 1e\+06, such as observation/observation 1e\+30 in record 4 of ring 0.*drop_outliers\(1e\+06\)"
    )
    with pytest.raises(NonFiniteError, match=expected):
        model.learn(500)
    buffer = model.replay_buffer
    held, count = buffer.num_records, len(buffer.outliers(1e6))
    assert buffer.drop_outliers(1e6) == count > 0 and buffer.num_records == held - count
    assert buffer.outliers(1e6) == [] and buffer.describe_outliers() == ""
    model.set_env(Clockwork())
    model.learn(40, reset_num_timesteps=False)
    if on_disk:
        buffer.storage.close()  # type: ignore[attr-defined]
        again = make(Clockwork(), replay_buffer_kwargs={**storage, "storage_resume": True})
        assert again.replay_buffer.outliers(1e6) == [] and again.replay_buffer.num_records > held - count
