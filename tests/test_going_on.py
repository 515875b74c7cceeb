"""Going on from older files, at other places, behind other wrappers and callbacks: nothing is lost, nothing ignored."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_dreamer import DreamerV2
from sb3_dreamer.algorithm.diagnostics import NonFiniteError
from sb3_dreamer.algorithm.reporting import training_summary
from sb3_dreamer.algorithm.team import refuse_inner
from sb3_dreamer.callbacks import ResumableCheckpointCallback, VideoPredictionCallback
from sb3_dreamer.common.files import FormatError, StorageError
from sb3_dreamer.dream.__main__ import main as dream
from sb3_dreamer.dream.recording import read_buffer
from sb3_dreamer.dreamer_v2.exchange import export_model, import_model
from sb3_dreamer.dreamer_v2.policies import MlpPolicy
from sb3_dreamer.saving.checkpoint import checkpoints
from tests.small import SMALL, SMALL_POLICY, VECTOR, RandomEnv


def make_env() -> gym.Env:
    return RandomEnv(VECTOR, length=10)


def make(env: Any = None, **options: Any) -> DreamerV2:
    return DreamerV2("MlpPolicy", env or make_env(), policy_kwargs=SMALL_POLICY, **{**SMALL, **options})


def on_disk(folder: Path, **more: Any) -> dict[str, Any]:
    return {"replay_buffer_kwargs": dict(storage_path=str(folder), **more)}


def rewards(model: DreamerV2) -> list[float]:
    """Of all records, the oldest first."""
    buffer = model.replay_buffer
    return buffer.recall(np.array([0]), buffer.rings.first, int(buffer.rings.rows[0])).rewards[:, 0].tolist()


# ------------------------------------------------------------------------------------------------------ the buffer on disk


@pytest.mark.parametrize("level", [None, 1])
def test_looking_at_an_older_checkpoint_changes_nothing(level: int | None, tmp_path: Path) -> None:
    model = make(**on_disk(tmp_path / "records", storage_compression=level))
    model.learn(200, callback=ResumableCheckpointCallback(100, tmp_path / "all", keep=None))
    old, new = checkpoints(tmp_path / "all")
    whole = rewards(model)
    del model
    seen = rewards(DreamerV2.resume(old, make_env()))
    assert 100 < len(seen) < len(whole) and seen == whole[: len(seen)]
    dream(["inspect", str(old / "model.zip"), "--context", "2", "--horizon", "2", "--sequences", "2"])  # the buffer beside it
    assert (old / "inspection.png").exists()
    assert rewards(DreamerV2.resume(new, make_env())) == whole

    again = DreamerV2.resume(old, make_env())
    again.learn(30, reset_num_timesteps=False)
    assert len(rewards(again)) > len(seen) + 30 and rewards(again)[: len(seen)] == seen
    del again
    with pytest.raises(StorageError, match=r"refers to records on the disk.*has \[\d+\] records, fewer than .*gone on"):
        DreamerV2.resume(new, make_env())


def test_records_that_were_overwritten_are_counted_in_a_warning(tmp_path: Path) -> None:
    model = make(**on_disk(tmp_path / "records"), buffer_size=100)
    model.learn(90)
    early = int(model.replay_buffer.rings.written[0])
    model.save_replay_buffer(tmp_path / "early.pkl")
    model.learn(60, reset_num_timesteps=False)
    newest = rewards(model)
    model.save_replay_buffer(tmp_path / "late.pkl")
    left = 100 - (int(model.replay_buffer.rings.written[0]) - early)
    assert 0 < left < 100 < early
    with pytest.warns(UserWarning, match=f"has {left} of the 100 records that it had"):
        model.load_replay_buffer(tmp_path / "early.pkl")
    assert rewards(model) == newest[:left]
    model.load_replay_buffer(tmp_path / "late.pkl")
    assert rewards(model) == newest


def test_a_checkpoint_whose_records_were_replaced_is_refused_however_many_there_are(tmp_path: Path) -> None:
    model = make(**on_disk(tmp_path / "records"))
    model.learn(200, callback=ResumableCheckpointCallback(100, tmp_path / "all", keep=None))
    old, new = checkpoints(tmp_path / "all")
    del model
    again = DreamerV2.resume(old, make_env())
    again.learn(150, reset_num_timesteps=False)
    with pytest.raises(StorageError, match="has other records than this file refers to"):
        again.load_replay_buffer(new / "replay_buffer.pkl")
    again.learn(10, reset_num_timesteps=False)


def test_loading_one_buffer_after_another_touches_neither(tmp_path: Path) -> None:
    wholes = []
    for name, steps in (("a", 60), ("b", 100)):
        model = make(**on_disk(tmp_path / name))
        model.learn(steps)
        model.save_replay_buffer(tmp_path / f"{name}.pkl")
        model.learn(40, reset_num_timesteps=False)
        model.save_replay_buffer(tmp_path / f"{name}_late.pkl")
        wholes.append(rewards(model))
        del model
    model = make()
    for name in ("a", "a_late", "a", "b", "b_late", "a_late"):
        model.load_replay_buffer(tmp_path / f"{name}.pkl")
        whole = wholes[name.startswith("b")]
        assert rewards(model) == (whole if "late" in name else whole[: len(rewards(model))])
        assert len(rewards(model)) > 50
    with pytest.raises(FileNotFoundError):
        model.load_replay_buffer(tmp_path / "c.pkl")
    (tmp_path / "b").rename(tmp_path / "gone")
    model.load_replay_buffer(tmp_path / "a.pkl")
    held = rewards(model)
    with pytest.raises(StorageError, match=r"b.pkl refers to records on the disk. The records .* there is no such buffer"):
        model.load_replay_buffer(tmp_path / "b.pkl")
    assert rewards(model) == held, "the present one is kept, with the newer records out of sight"


def test_a_buffer_file_of_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    model.learn(20)
    with monkeypatch.context() as patch:
        patch.setattr("sb3_dreamer.replay.buffer.PICKLE_FORMAT", 2)
        patch.setattr("sb3_dreamer.replay.buffer.VERSION", "0.0.7")
        model.save_replay_buffer(tmp_path / "old.pkl")
    held = rewards(model)
    with pytest.raises(
        FormatError, match=r"old\.pkl cannot be read\. .* saved in format 2 by sb3_dreamer 0\.0\.7; .* format 3"
    ):
        model.load_replay_buffer(tmp_path / "old.pkl")
    assert rewards(model) == held


def test_a_folder_with_records_is_not_filled_with_others(tmp_path: Path) -> None:
    source = make()
    source.learn(60)
    source.save_replay_buffer(tmp_path / "memory.pkl")
    source.save(tmp_path / "model")
    model = make(**on_disk(tmp_path / "records"))
    model.learn(40)
    whole = rewards(model)
    del model
    for again in (
        lambda: make(**on_disk(tmp_path / "records", storage_resume=True)),
        lambda: DreamerV2.load(tmp_path / "model", make_env(), **on_disk(tmp_path / "records", storage_resume=True)),
    ):
        model = again()
        with pytest.raises(ValueError, match=f"already holds a replay buffer of {len(whole)} records, which a copy would"):
            model.load_replay_buffer(tmp_path / "memory.pkl")
        del model
    model = make(**on_disk(tmp_path / "records", storage_resume=True))
    assert rewards(model) == whole


def test_a_buffer_that_is_in_use_is_left_alone(tmp_path: Path) -> None:
    first = make(**on_disk(tmp_path / "first"))
    first.learn(40)
    first.save_replay_buffer(tmp_path / "first.pkl")
    source = make()
    source.learn(60)
    source.save_replay_buffer(tmp_path / "memory.pkl")
    source.save(tmp_path / "model")
    other = DreamerV2.load(tmp_path / "model", make_env(), **on_disk(tmp_path / "first"))
    with pytest.raises(ValueError, match="first is in use by another buffer"):
        other.load_replay_buffer(tmp_path / "memory.pkl")
    first.learn(20, reset_num_timesteps=False)
    whole = rewards(first)
    assert read_buffer(first, tmp_path / "first.pkl") is first.replay_buffer, "not opened twice"
    assert rewards(first) == whole

    other.load_replay_buffer(tmp_path / "first.pkl")
    unrelated = make(**on_disk(tmp_path / "unrelated"))  # its files may have the numbers that those of the first had
    unrelated.learn(40)
    for call in (lambda: rewards(first), lambda: first.save_replay_buffer(tmp_path / "late.pkl")):
        with pytest.raises(ValueError, match="first has been closed, or opened again by another one"):
            call()


def test_models_of_strangers_get_the_folder_too(tmp_path: Path) -> None:
    source = make()
    source.learn(60)
    export_model(source, tmp_path / "model")
    source.save_replay_buffer(tmp_path / "memory.pkl")
    model = import_model(tmp_path / "model", make_env(), **on_disk(tmp_path / "records"))
    with pytest.warns(UserWarning, match="its episodes were copied"):
        model.load_replay_buffer(tmp_path / "memory.pkl")
    assert model.replay_buffer.storage_path == str(tmp_path / "records") and rewards(model) == rewards(source)


def test_the_same_folder_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = make(replay_buffer_kwargs=dict(storage_path="records"))
    model.learn(40, callback=ResumableCheckpointCallback(20, tmp_path / "all"))
    whole = rewards(model)
    del model
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert rewards(DreamerV2.resume(tmp_path / "all", make_env())) == whole, "the folder was given when it was made"
    for name in (tmp_path / "link" / "records", Path("../records")):
        assert rewards(DreamerV2.resume(tmp_path / "all", make_env(), **on_disk(name))) == whole
    assert not any((tmp_path / "elsewhere").iterdir())


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    model = make(**on_disk(tmp_path / "records"))
    model.learn(40)
    with pytest.raises(ValueError, match=f"{tmp_path}.*cannot be copied"):
        copy.deepcopy(model)
    model.learn(20, reset_num_timesteps=False)
    in_memory = make()
    in_memory.learn(44)
    copied = copy.deepcopy(in_memory)
    assert rewards(copied) == rewards(in_memory)
    copied.learn(20, reset_num_timesteps=False)
    assert len(rewards(copied)) > len(rewards(in_memory))


@pytest.mark.parametrize("source", ["memory", "disk"])
def test_a_buffer_goes_where_it_is_told(source: str, tmp_path: Path) -> None:
    model = make(**({} if source == "memory" else on_disk(tmp_path / "first")))
    model.learn(100, callback=ResumableCheckpointCallback(50, tmp_path / "all"))
    whole = rewards(model)
    del model
    with pytest.warns(UserWarning, match=f"that of this model in {tmp_path / 'second'}: its episodes were copied."):
        moved = DreamerV2.resume(tmp_path / "all", make_env(), **on_disk(tmp_path / "second", storage_compression=1))
    assert moved.replay_buffer.storage_path == str(tmp_path / "second") and rewards(moved) == whole
    moved.learn(20, callback=ResumableCheckpointCallback(10, tmp_path / "more"), reset_num_timesteps=False)
    whole = rewards(moved)
    del moved
    with pytest.warns(UserWarning, match="that of this model in memory: its episodes were copied."):
        back = DreamerV2.resume(tmp_path / "more", make_env(), replay_buffer_kwargs=dict(storage_path=None))
    assert back.replay_buffer.storage_path is None and rewards(back) == whole
    back.learn(10, reset_num_timesteps=False)
    with pytest.warns(UserWarning, match="keeps its own storage_compression=1"):
        same = DreamerV2.resume(tmp_path / "more", make_env(), **on_disk(tmp_path / "second"))
    assert same.replay_buffer.storage_path == str(tmp_path / "second") and rewards(same) == whole


# --------------------------------------------------------------------------------------------------- callbacks and options


class Spy(BaseCallback):
    """Notes whether checkpoints appear."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.seen = folder, [0]

    def _on_step(self) -> bool:
        self.seen.append(len(checkpoints(self.folder)))
        return True


@pytest.mark.parametrize("nested", [False, True])
def test_checkpoints_at_the_events_of_other_callbacks(nested: bool, tmp_path: Path) -> None:
    inner: BaseCallback = ResumableCheckpointCallback(1, tmp_path / "all", keep=None)
    inner = CallbackList([inner]) if nested else inner
    spy = Spy(tmp_path / "all")
    model = make()
    model.learn(100, callback=[EveryNTimesteps(40, inner), spy])
    steps = [int(path.name.removeprefix("step_")) for path in checkpoints(tmp_path / "all")]
    assert steps == [40, 80] and spy.seen[40] == 0 and spy.seen[41] == 1, "after the updates that follow the step"
    resumed = DreamerV2.resume(checkpoints(tmp_path / "all")[-1], make_env())
    assert resumed.num_timesteps == 80 and resumed._n_updates > 0 and len(rewards(resumed)) == 80 + 8


def test_checkpoints_of_the_best_and_films_at_events(tmp_path: Path) -> None:
    best = ResumableCheckpointCallback(1, tmp_path / "best", keep=None)
    evaluation = EvalCallback(DummyVecEnv([make_env]), best, eval_freq=24, n_eval_episodes=1, verbose=0)
    film = EveryNTimesteps(50, VideoPredictionCallback(1, folder=tmp_path / "films", context=2, horizon=3))
    make().learn(60, callback=[evaluation, film])
    assert len(checkpoints(tmp_path / "best")) >= 1
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["prediction_50_steps.png"]


def test_what_all_ranks_do_is_not_called_by_one(tmp_path: Path) -> None:
    inner = ResumableCheckpointCallback(1, tmp_path)
    best = EvalCallback(DummyVecEnv([make_env]), inner)
    for given in (EveryNTimesteps(5, inner), [CallbackList([EveryNTimesteps(5, CallbackList([inner]))])], [best]):
        with pytest.raises(ValueError, match="All ranks take part in ResumableCheckpointCallback: pass it to learn"):
            refuse_inner(given)
    refuse_inner([inner, EveryNTimesteps(5, VideoPredictionCallback()), lambda *_: True])
    refuse_inner(None)


def test_checkpoints_are_not_for_every_algorithm(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ResumableCheckpointCallback is for DreamerV2, not PPO"):
        PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).learn(8, ResumableCheckpointCallback(1, tmp_path))


def test_learning_rates_that_are_changed_by_hand() -> None:
    model = make()
    model.learn(60)
    model.lr_schedule = lambda _: 7e-7
    model.learn(20, reset_num_timesteps=False)
    assert model.policy.optimizer.param_groups[0]["lr"] == 7e-7
    assert model.policy.actor_optimizer.optimizer.param_groups[0]["lr"] == model.actor_learning_rate
    model.learning_rate = 5e-7
    model._setup_lr_schedule()
    model.learn(20, reset_num_timesteps=False)
    assert model.policy.optimizer.param_groups[0]["lr"] == 5e-7


def test_a_seed_given_to_resume_counts(tmp_path: Path) -> None:
    make(seed=0).learn(60, callback=ResumableCheckpointCallback(50, tmp_path))

    def drawn(**options: Any) -> tuple[float, ...]:
        model = DreamerV2.resume(tmp_path, make_env(), **options)
        return float(th.rand(1)), float(np.random.rand()), float(model.replay_buffer._rng.random())

    assert drawn() == drawn()
    assert drawn(seed=4) == drawn(seed=4)
    for values in zip(drawn(), drawn(seed=3), drawn(seed=4), strict=True):
        assert len(set(values)) == 3, "of torch, NumPy, buffer"


def test_options_given_to_resume_count(tmp_path: Path) -> None:
    make(seed=0).learn(60, callback=ResumableCheckpointCallback(50, tmp_path))
    model = DreamerV2.resume(tmp_path, make_env(), ent_coef=0.0, batch_size=3)
    assert (model.ent_coef, model.batch_size) == (0.0, 3)
    model.learn(10, reset_num_timesteps=False)
    assert model.ent_coef == 0.0


def test_a_summary_counts_the_random_steps_that_are_left() -> None:
    model = make()
    model.learn(20)
    assert f"after {50 - model.num_timesteps} random steps" in training_summary(model, 100)
    model.learn(40, reset_num_timesteps=False)
    assert "after 0 random steps" in training_summary(model, 100)


@pytest.mark.parametrize("name", ["optimize_memory_usage", "n_envs", "device", "buffer_size"])
def test_buffer_options_that_are_given_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*, not of replay_buffer_kwargs"):
        make(replay_buffer_kwargs={name: 1})


def test_noise_objects_are_refused_afterwards_too() -> None:
    model = make()
    with pytest.raises(TypeError, match="exploration_noise"):
        model.action_noise = NormalActionNoise(np.zeros(2), np.ones(2))
    assert model.action_noise is None


class Doubled(MlpPolicy):
    """Another ``_predict``."""

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return 2.0 * super()._predict(observation, deterministic)


def test_policies_can_be_called() -> None:
    model = make()
    observations = th.rand(2, 3)
    actions = model.policy(observations, deterministic=True)
    assert actions.shape == (2, 3) and actions.sum(-1).tolist() == [1.0, 1.0]
    assert th.equal(actions, model.policy._predict(observations, deterministic=True))
    doubled = DreamerV2(Doubled, make_env(), policy_kwargs=SMALL_POLICY, **SMALL)
    assert doubled.policy(observations, deterministic=True).sum(-1).tolist() == [2.0, 2.0]


def test_exported_files_are_found_without_their_suffix(tmp_path: Path) -> None:
    model = make()
    export_model(model, tmp_path / "model")
    again = import_model(tmp_path / "model")
    assert all(th.equal(a, b) for a, b in zip(model.policy.parameters(), again.policy.parameters(), strict=True))


def test_a_trial_that_diverges_ends_itself_alone() -> None:
    """What rl_zoo3 prunes a trial for (``ExperimentManager.objective``)."""
    assert issubclass(NonFiniteError, ValueError) and issubclass(NonFiniteError, FloatingPointError)


# ----------------------------------------------------------------------------------------------------------- environments


@pytest.mark.parametrize("wrong", ["CartPole-v1", object(), gym.Env])
def test_what_is_no_environment_is_named(wrong: Any, tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model")
    for call in (lambda: model.set_env(wrong), lambda: DreamerV2.load(tmp_path / "model", env=wrong)):
        with pytest.raises(ValueError, match="not a Gymnasium environment"):
            call()


def test_stacking_around_normalising_is_refused_before_the_first_step() -> None:
    env = VecFrameStack(VecNormalize(DummyVecEnv([make_env])), 2)
    with pytest.raises(
        ValueError, match=r"shape \(3,\) in VecNormalize, but \(6,\) after the wrappers outside.*VecFrameStack"
    ):
        make(env).learn(10)
    make(VecNormalize(VecFrameStack(DummyVecEnv([make_env]), 2))).learn(10)
    make(VecFrameStack(VecNormalize(DummyVecEnv([make_env]), norm_obs=False), 2)).learn(10)


def test_going_on_without_vec_normalize_is_told(tmp_path: Path) -> None:
    make(VecNormalize(DummyVecEnv([make_env]))).learn(20).save(tmp_path / "model")
    model = DreamerV2.load(tmp_path / "model", env=make_env())
    with pytest.warns(UserWarning, match="has learned behind VecNormalize, but continues without"):
        model.learn(10)
