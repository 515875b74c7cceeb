"""Predictions while learning: what is written where, that learning is not disturbed, and what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image
from rl_zoo3.utils import get_callback_list
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_dreamer.callbacks import VideoPredictionCallback
from sb3_dreamer.dream.drawing import film, gif_bytes, in_colors, save_film
from tests.small import LEARN, VECTOR, RandomEnv, image, random_model, same_weights, small_model, weights

BOTH = spaces.Dict({"camera.rgb": image(12, 10, 3), "arm": VECTOR})


def test_films_figures_and_tensorboard(tmp_path: Path) -> None:
    options: dict[str, Any] = dict(seed=0, policy_kwargs=dict(image_size=None), **LEARN)
    model = random_model(BOTH, tensorboard_log=str(tmp_path), **options)
    model.learn(60, VideoPredictionCallback(save_freq=30, context=3, horizon=4, n_sequences=2))
    undisturbed = random_model(BOTH, **options).learn(60)
    assert same_weights(weights(model), weights(undisturbed)), "the same bits with and without the callback"

    folder = tmp_path / "DreamerV2_1" / "videos"
    names = sorted(path.name for path in folder.iterdir())
    assert names == [
        "prediction_arm_32_steps.png",
        "prediction_arm_64_steps.png",
        "prediction_camera-rgb_32_steps.gif",
        "prediction_camera-rgb_64_steps.gif",
    ]
    with Image.open(folder / names[-1]) as picture:
        assert picture.n_frames == 7  # type: ignore[attr-defined]
    (events,) = tmp_path.rglob("*tfevents*")
    log = EventAccumulator(str(events))
    log.Reload()
    assert set(log.Tags()["images"]) == {"prediction/open_loop_arm", "prediction/open_loop_camera-rgb"}
    last = log.Images("prediction/open_loop_camera-rgb")[-1]
    assert last.encoded_image_string == (folder / names[-1]).read_bytes() and last.step == 64


def test_one_line_of_the_zoos_yaml(tmp_path: Path) -> None:
    """In RL Zoo the files lie beside the monitor files, and the line may carry arguments."""
    name = "sb3_dreamer.callbacks.VideoPredictionCallback"
    (plain,) = get_callback_list({"callback": name})
    (callback,) = get_callback_list({"callback": {name: {"save_freq": 1000, "context": 2}}})
    assert isinstance(plain, VideoPredictionCallback) and isinstance(callback, VideoPredictionCallback)
    assert (plain.save_freq, callback.save_freq, callback.context) == (10_000, 1000, 2)
    env = make_vec_env(RandomEnv, 2, monitor_dir=str(tmp_path))
    small_model(env, **LEARN).learn(40, callback)
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["prediction_48_steps.png"]


def test_environments_in_processes_of_their_own(tmp_path: Path) -> None:
    """Their monitors' files are open there, and nobody may ask for them."""
    env = make_vec_env(RandomEnv, 2, monitor_dir=str(tmp_path), vec_env_cls=SubprocVecEnv)
    with pytest.warns(UserWarning, match="has no place for its files"):
        small_model(env, **LEARN).learn(40, VideoPredictionCallback(save_freq=1000, context=2))
    small_model(env, **LEARN).learn(40, VideoPredictionCallback(1000, tmp_path / "videos", context=2))
    env.close()
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["prediction_48_steps.png"]


def test_what_it_cannot_do_is_said(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ValueError, match="save_freq must be a number of at least 1"):
        VideoPredictionCallback(save_freq=0)
    with pytest.raises(ValueError, match=r"Unknown formats \['avi'\]"):
        VideoPredictionCallback(formats=["avi"])
    with pytest.raises(ValueError, match="keys names 'leg', which is no observation key"):
        random_model(BOTH, **LEARN).learn(20, VideoPredictionCallback(folder=tmp_path, keys=["leg"]))
    with pytest.raises(ValueError, match="world models, but PPO has none"):
        PPO("MlpPolicy", RandomEnv(), n_steps=8, batch_size=8, device="cpu").learn(8, VideoPredictionCallback(folder=tmp_path))
    with pytest.warns(UserWarning, match=r"no place for its files, and writes none.* Pass folder="):
        small_model(make_vec_env(RandomEnv), **LEARN).learn(40, VideoPredictionCallback(20))
    with pytest.warns(UserWarning, match=r"made no prediction: the longest episode has 11 steps, no more than context=20"):
        random_model(**LEARN).learn(30, VideoPredictionCallback(folder=tmp_path, context=20))
    assert not list(tmp_path.iterdir())


def test_it_never_ends_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is said before the first step; a disk that is full later is a warning."""
    monkeypatch.setitem(sys.modules, "moviepy", None)
    model = small_model(make_vec_env(RandomEnv), **LEARN)
    with pytest.raises(ImportError, match="needs moviepy: pip install moviepy, or use 'gif'"):
        model.learn(40, VideoPredictionCallback(20, folder=tmp_path, formats=("gif", "mp4")))
    assert model.num_timesteps == 0
    monkeypatch.setattr(Path, "mkdir", raising(OSError(28, "No space left on device")))
    with pytest.warns(UserWarning, match="could not write its prediction of step .*No space left"):
        model.learn(40, VideoPredictionCallback(20, folder=tmp_path / "full"))
    assert model.num_timesteps == 40


def raising(error: Exception) -> Callable[..., None]:
    def method(*args: Any, **kwargs: Any) -> None:
        raise error

    return method


def test_film_by_hand(tmp_path: Path) -> None:
    truth = np.zeros((3, 1, 1, 48, 96), np.uint8)
    model = truth + np.array([0, 50, 100], np.uint8)[:, None, None, None, None]
    frames = film(truth, model, context=2)
    assert frames.shape == (3, 48 + 8, 3 * (96 + 8), 3)
    assert frames[0, 28, 260].tolist() == [128] * 3 and frames[2, 28, 260].tolist() == [178] * 3, "no error is gray"
    assert frames[1, 2, 150].tolist() != frames[2, 2, 150].tolist(), "the frame's color says what was seen"
    assert frames[2, 28, 150].tolist() == [100] * 3
    save_film(frames, tmp_path / "film.gif", 5.0)
    assert (tmp_path / "film.gif").read_bytes() == gif_bytes(frames, 5.0)
    with Image.open(tmp_path / "film.gif") as picture:
        assert picture.info["duration"] == 200 and picture.info["loop"] == 0
    save_film(frames, tmp_path / "film.mp4", 5.0)
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
    with pytest.raises(ValueError, match=r"\.gif or \.mp4, not as 'film\.avi'"):
        save_film(frames, tmp_path / "film.avi", 5.0)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (3, [0, 1, 2]), (4, [3, 3, 3]), (9, [6, 7, 8])])
def test_last_of_stacked_frames_is_shown(channels: int, shown: list[int]) -> None:
    stack = np.arange(channels, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    assert in_colors(stack)[0, 0].tolist() == shown
