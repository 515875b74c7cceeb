"""SB3's callbacks with the recurrent off-policy algorithm."""

import pathlib
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_dreamer.algorithm.reporting import DreamerProgressBar, TrainingClock, format_seconds
from tests.small import DICT, IMAGE, VECTOR, random_envs, random_model, same_weights, weights


class Record(BaseCallback):
    """Notes everything that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.step_locals: dict[str, Any] = {}
        self.start_locals: dict[str, Any] = {}
        self.steps: list[int] = []

    def _init_callback(self) -> None:
        self.events.append("init")

    def _on_training_start(self) -> None:
        self.events.append("training_start")
        self.start_locals = dict(self.locals)

    def _on_rollout_start(self) -> None:
        self.events.append("rollout_start")

    def _on_step(self) -> bool:
        self.step_locals = dict(self.locals)
        self.steps.append(self.num_timesteps)
        return True

    def _on_rollout_end(self) -> None:
        self.events.append("rollout_end")

    def _on_training_end(self) -> None:
        self.events.append("training_end")


@pytest.mark.parametrize("progress_bar", [False, True])
@pytest.mark.parametrize("form", ["single", "list", "CallbackList"])
def test_order_of_events(form: str, progress_bar: bool, algorithm: Any) -> None:
    record = Record()
    callback: Any = {"single": record, "list": [record], "CallbackList": CallbackList([record])}[form]
    random_model(n_envs=2).learn(32, callback=callback, progress_bar=progress_bar)
    assert record.events == ["init", "training_start", *["rollout_start", "rollout_end"] * 2, "training_end"]  # init once
    assert record.steps == list(range(2, 34, 2))


@pytest.mark.parametrize("space", [VECTOR, DICT, IMAGE])
def test_locals_that_callbacks_read(space: spaces.Space, algorithm: Any) -> None:
    record, model = Record(), random_model(space, n_envs=2)
    model.learn(10, callback=record, tb_log_name="name")
    assert record.start_locals["total_timesteps"] == 10 and record.start_locals["tb_log_name"] == "name"
    step = record.step_locals
    assert {"new_obs", "rewards", "dones", "infos", "actions", "self", "env", "replay_buffer"} <= set(step)
    new_obs = step["new_obs"]
    for i in range(2):
        one = {key: value[i] for key, value in new_obs.items()} if isinstance(new_obs, dict) else new_obs[i]
        assert model.observation_space.contains(one) and model.action_space.contains(step["actions"][i])
    assert step["rewards"].shape == step["dones"].shape == (2,) and len(step["infos"]) == 2
    assert step["self"] is model


@pytest.mark.parametrize("stop", [False, np.bool_(False), th.tensor(False)])
def test_function_as_callback_stops_the_training(stop: Any, algorithm: Any) -> None:
    calls: list[Any] = []

    def callback(local_vars: dict[str, Any], global_vars: dict[str, Any]) -> Any:
        calls.append(local_vars["self"].num_timesteps)
        return stop if len(calls) == 3 else True

    assert random_model(n_envs=2).learn(50, callback=callback).num_timesteps == 6 and calls == [2, 4, 6]


def test_eval_callback_saves_the_best_model(tmp_path: pathlib.Path, algorithm: Any) -> None:
    after = Record()
    callback = EvalCallback(
        random_envs(length=5),
        callback_after_eval=after,
        eval_freq=20,
        n_eval_episodes=2,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model = random_model(n_envs=2).learn(120, callback=callback)
    with np.load(tmp_path / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [40, 80, 120] and (evaluations["ep_lengths"] == 5).all()
        best = evaluations["results"].mean(axis=1).max()
    assert callback.best_mean_reward == pytest.approx(best) and len(after.steps) == 3
    loaded = algorithm.load(tmp_path / "best_model", device="cpu")
    assert weights(loaded).keys() == weights(model).keys() and 40 <= loaded.num_timesteps <= 120


def test_checkpoints_can_be_continued(tmp_path: pathlib.Path, algorithm: Any) -> None:
    model = random_model(n_envs=2)
    model.learn(80, callback=CheckpointCallback(20, str(tmp_path), "run", save_replay_buffer=True))
    names = {path.name for path in tmp_path.iterdir()}
    steps = (40, 80)
    assert names == {f"run_{n}_steps.zip" for n in steps} | {f"run_replay_buffer_{n}_steps.pkl" for n in steps}
    loaded = algorithm.load(tmp_path / "run_40_steps", env=random_envs(n_envs=2), device="cpu")
    loaded.load_replay_buffer(tmp_path / "run_replay_buffer_40_steps.pkl")
    assert loaded.num_timesteps == 40 and 38 <= loaded.replay_buffer.num_records <= 46
    loaded.learn(48, reset_num_timesteps=False)
    assert loaded.num_timesteps == 88 and loaded._n_updates == 3 and not same_weights(weights(loaded), weights(model))


def test_stopping_callbacks(algorithm: Any) -> None:
    assert random_model(n_envs=2).learn(400, StopTrainingOnMaxEpisodes(3)).num_timesteps == 60  # 10 steps each
    assert random_model().learn(float("inf"), StopTrainingOnMaxEpisodes(3)).num_timesteps == 30

    def evaluating(**kwargs: Any) -> EvalCallback:
        return EvalCallback(random_envs(length=3), eval_freq=10, n_eval_episodes=1, verbose=0, **kwargs)

    above = StopTrainingOnRewardThreshold(-100.0)
    assert random_model().learn(400, evaluating(callback_on_new_best=above)).num_timesteps == 10
    no_better = StopTrainingOnNoModelImprovement(max_no_improvement_evals=0, min_evals=1)
    callback = evaluating(callback_after_eval=no_better)
    callback.best_mean_reward = 1e9
    assert random_model().learn(400, callback).num_timesteps == 20


class Memory(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.rows[step] = dict(key_values)

    def close(self) -> None:
        pass


def test_event_callbacks() -> None:
    record, memory = Record(), Memory()
    model = random_model(n_envs=2)
    model.set_logger(Logger(None, [memory]))
    model.learn(80, callback=[EveryNTimesteps(20, record), LogEveryNTimesteps(10)], log_interval=None)
    assert record.steps == [20, 40, 60, 80]
    assert list(memory.rows) == list(range(10, 90, 10))
    assert "train/model_loss" not in memory.rows[60] and "train/model_loss" in memory.rows[70]  # first update at 64


# ---------------------------------------------------------------------------------------------------------------- progress bar


@pytest.mark.parametrize("total_timesteps", [80, 1e2, float("inf")])
def test_progress_bar_tells_what_happens(total_timesteps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[int, str] = {}
    on_step = DreamerProgressBar._on_step

    def spy(self: DreamerProgressBar) -> bool:
        set_text = self.pbar.set_description_str
        self.pbar.set_description_str = lambda text, refresh: (
            texts.update({self.num_timesteps: text}),
            set_text(text, refresh),
        )
        try:
            return on_step(self)
        finally:
            self.pbar.set_description_str = set_text

    monkeypatch.setattr(DreamerProgressBar, "_on_step", spy)
    model = random_model()
    model.learn(total_timesteps, callback=lambda local_vars, _: model.num_timesteps < 90, progress_bar=True)
    assert all(texts[n] == "collecting first steps" for n in range(1, 51))
    assert all(texts[n].startswith("training, ETA ") for n in range(57, 81))  # first update at 56
    assert (texts[80] == "training, ETA unknown") == (total_timesteps == float("inf"))
    assert total_timesteps != 80 or texts[80] == "training, ETA 0:00:00"


def test_progress_bar_of_sb3_and_one_that_ends_twice() -> None:
    callback = ProgressBarCallback()
    random_model().learn(20, callback=callback)
    callback.on_training_end()  # rl_zoo3 does
    record = Record()
    random_model(n_envs=3).learn(20, callback=[record, CallbackList([EveryNTimesteps(5, Record())])], progress_bar=True)
    record.on_training_end()
    assert record.events[-2:] == ["training_end"] * 2


def test_remaining_time_is_counted_from_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sb3_dreamer.algorithm.reporting.time.perf_counter", lambda: now)
    clock = TrainingClock()
    assert clock.remaining(40, 100) is None and clock.updates_per_second(0) is None
    clock.first_update(50, 0)
    assert clock.remaining(50, 100) is None and clock.updates_per_second(0) is None
    now = 110.0
    clock.first_update(60, 2)  # has no effect
    assert clock.remaining(60, 100) == pytest.approx(40.0) and clock.updates_per_second(5) == pytest.approx(0.5)
    assert clock.remaining(120, 100) == 0.0
    assert [format_seconds(s) for s in (0.4, 59.6, 3600, 100_000)] == ["0:00:00", "0:01:00", "1:00:00", "27:46:40"]
