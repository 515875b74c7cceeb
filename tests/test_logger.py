"""What is logged and printed."""

import csv
import json
import pathlib
import re
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.logger import configure

from sb3_dreamer.algorithm import reporting
from tests.small import BOX, DICT, IMAGE, VECTOR, random_model

LOSSES = {"reward_loss", "discount_loss", "kl_loss", "kl", "model_loss", "actor_loss", "critic_loss"}
LOSSES |= {"reward_variance", "skipped_updates"}
OTHERS = {
    "posterior_entropy",
    "prior_entropy",
    "actor_entropy",
    "value_mean",
    "target_value_mean",
    "return_mean",
    "imagined_reward_mean",
    "imagined_reward_std",
    "normed_reward_mean",
    "normed_reward_std",
    "imagined_discount_mean",
    "model_grad_norm",
    "actor_grad_norm",
    "critic_grad_norm",
    "learning_rate",
    "actor_learning_rate",
    "critic_learning_rate",
    "n_updates",
}
TRAIN_KEYS = {f"train/{name}" for name in LOSSES | OTHERS}
OTHER_KEYS = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "time/episodes",
    "time/fps",
    "time/time_elapsed",
    "time/total_timesteps",
    "time/updates_per_second",
}
SPACES: dict[str, tuple[spaces.Space, set[str]]] = {
    "vector": (VECTOR, {"vector_loss"}),
    "image": (IMAGE, {"image_loss"}),
    "dict": (DICT, {"arm_loss", "leg_loss"}),
}


@pytest.mark.parametrize("kind", SPACES)
def test_documented_keys_in_every_format(kind: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    space, names = SPACES[kind]
    keys = TRAIN_KEYS | OTHER_KEYS | {f"train/{name}" for name in names}
    model = random_model(space)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_logger(configure(str(tmp_path), ["stdout", "csv", "json", "log"]))
        model.learn(80, log_interval=8)
    with open(tmp_path / "progress.csv") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    rows += [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert len(rows) == 2
    for row in rows:
        assert set(row) == keys
        assert all(np.isfinite(float(value)) for value in row.values())
    assert rows[1]["train/n_updates"] == 3 and rows[1]["time/total_timesteps"] == 80 and rows[1]["time/episodes"] == 8
    assert rows[1]["rollout/ep_len_mean"] == 10
    table = capsys.readouterr().out
    for key in keys:
        assert re.search(rf"\|\s+{key.split('/')[1]}\s+\|", table), key
        assert len(key) <= 36


def test_tensorboard(tmp_path: pathlib.Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = random_model(tensorboard_log=str(tmp_path)).learn(80, log_interval=8)
    model.learn(80, log_interval=8, tb_log_name="other")
    assert {path.name for path in tmp_path.iterdir()} == {"DreamerV2_1", "other_1"}
    events = accumulator.EventAccumulator(str(tmp_path / "DreamerV2_1"))
    events.Reload()
    excluded = {"train/n_updates", "time/episodes", "time/time_elapsed", "time/total_timesteps"}
    assert set(events.Tags()["scalars"]) == (TRAIN_KEYS | OTHER_KEYS | {"train/vector_loss"}) - excluded
    assert [event.step for event in events.Scalars("train/kl")] == [80]


def test_long_and_similar_names_of_observations(tmp_path: pathlib.Path) -> None:
    names = [f"a_very_long_name_of_an_observation_{i}" for i in range(12)] + ["kl", "n_updates", "reward", "model"]
    space = spaces.Dict({name: spaces.Box(-1.0, 1.0, (2,), np.float32) for name in names})
    model = random_model(space)
    model.set_logger(configure(str(tmp_path), ["stdout", "csv"]))
    model.learn(80, log_interval=8)  # the table refuses two keys that are equal once cut
    with open(tmp_path / "progress.csv") as file:
        keys = set(next(csv.DictReader(file)))
    assert len(keys) == len(TRAIN_KEYS | OTHER_KEYS) + len(names) and max(map(len, keys)) <= 36


def test_means_over_the_updates_since_the_last_log(tmp_path: pathlib.Path) -> None:
    model, losses, counts = random_model(train_freq=4), [], []
    model.set_logger(configure(str(tmp_path), ["json"]))
    update = model.update

    def spy(*args: Any, **kwargs: Any) -> Any:
        result = update(*args, **kwargs)
        losses.append(result.metrics["model_loss"].item())
        return result

    model.update = spy  # type: ignore[method-assign]
    for _ in range(2):
        model.learn(64, log_interval=None, reset_num_timesteps=False)
        model.dump_logs()
        counts.append(len(losses))
    assert counts == [4, 20]
    rows = [json.loads(line)["train/model_loss"] for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert rows == pytest.approx([np.mean(losses[:4]), np.mean(losses[4:])], rel=1e-5)


def test_dump_before_any_training() -> None:
    model = random_model()
    model.set_logger(configure(None, []))
    model.learn(1, log_interval=None)
    model.dump_logs()
    model.learn(20, log_interval=1)
    assert random_model(n_envs=2, stats_window_size=3).learn(100).ep_info_buffer.maxlen == 3  # type: ignore[union-attr]


def test_entropy_of_continuous_actors_and_no_discount_head() -> None:
    model = random_model(VECTOR, BOX, policy_kwargs=dict(use_discount_head=False)).learn(60, log_interval=None)
    metrics = model._metrics.pop()
    assert "discount_loss" not in metrics and all(np.isfinite(value) for value in metrics.values())
    assert metrics["imagined_discount_mean"] == pytest.approx(0.999)


# --------------------------------------------------------------------------------------------------------------------- summary


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(IMAGE, n_envs=2, verbose=1, buffer_size=10_000, gradient_steps=3)
    capsys.readouterr()
    model.learn(100)
    text = capsys.readouterr().out
    counts = reporting.parameter_counts(model.policy)
    trained = [
        o.parameters for o in (model.policy.world_model_optimizer, model.policy.actor_optimizer, model.policy.critic_optimizer)
    ]
    assert list(counts) == ["encoder", "RSSM", "decoder", "reward", "discount", "actor", "critic"]
    assert sum(counts.values()) == sum(p.numel() for part in trained for p in part)
    assert (
        f"DreamerV2 on cpu, float32: {sum(counts.values()) / 1e6:.2f}M parameters (encoder {counts['encoder'] / 1e6:.2f}M"
        in text
    )
    assert "Replay: 10,000 steps take 0.04 GB of memory when full (0.00 GB in this run)" in text  # 64 x 64 bytes each
    assert "Updates: 3 per 16 environment steps, each on 4 sequences of 8 steps, after 50 random steps" in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(train_freq=16), "1 per 16 environment steps"),
        (dict(gradient_steps=-1), "8 per 8 environment steps"),
        (dict(train_freq=(2, "episode")), "1 per 2 episodes"),
        (dict(train_freq=(1, "episode"), gradient_steps=-1), "1 per environment step"),
        (dict(gradient_steps=0), "0 per 8 environment steps"),
    ],
)
def test_train_ratio(options: dict[str, Any], text: str) -> None:
    assert reporting.train_ratio_text(random_model(**options)) == text


def test_silent_without_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    random_model(verbose=0).learn(60)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_warning_when_the_buffer_cannot_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(IMAGE, buffer_size=10_000)
    needed = model.replay_buffer.memory_bytes()
    assert needed == pytest.approx(10_000 * 64 * 64, rel=0.01)
    monkeypatch.setattr(reporting, "available_memory", lambda: needed - 1.0)
    with pytest.warns(
        UserWarning, match=r"enough memory to store the complete replay buffer 0.04GB > 0.04GB.*buffer_size smaller"
    ):
        model.learn(8)
    for memory in (needed + 1.0, None):
        monkeypatch.setattr(reporting, "available_memory", lambda memory=memory: memory)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.learn(8)
    on_disk = random_model(IMAGE, buffer_size=10_000, replay_buffer_kwargs=dict(storage_path=str(tmp_path)), verbose=1)
    with warnings.catch_warnings():  # a buffer larger than the memory is what it is for
        warnings.simplefilter("error")
        monkeypatch.setattr(reporting, "available_memory", lambda: 1.0)
        on_disk.learn(8)
    assert "steps take 0.04 GB on the disk when full" in capsys.readouterr().out
    monkeypatch.setattr(reporting.shutil, "disk_usage", lambda folder: SimpleNamespace(free=needed / 2))
    with pytest.warns(UserWarning, match="enough room on the disk to store the complete replay buffer"):
        on_disk.learn(8)
    monkeypatch.undo()
    assert (reporting.available_memory() or 1e9) > 1e6
