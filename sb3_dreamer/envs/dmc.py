"""The DeepMind Control Suite through shimmy, as in the Dreamer papers: from sensors (proprio) or from pixels (vision)."""

import os
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_dreamer.envs.optional import optional_import

#: The 20 tasks of Dreamer (arXiv 1912.01603), by domain
TASKS: dict[str, str] = {
    "acrobot": "swingup",
    "ball_in_cup": "catch",
    "cartpole": "balance balance_sparse swingup swingup_sparse",
    "cheetah": "run",
    "finger": "spin turn_easy turn_hard",
    "hopper": "hop stand",
    "pendulum": "swingup",
    "quadruped": "run walk",
    "reacher": "easy hard",
    "walker": "run stand walk",
}


def make_dmc_env(
    domain: str, task: str, render_mode: str | None = None, render_kwargs: dict[str, Any] | None = None
) -> gym.Env:
    """
    Create a task of the suite; an episode ends by truncation after 1,000 steps.

    :param domain: such as ``"walker"``
    :param task: such as ``"walk"``
    :param render_mode: as in shimmy
    :param render_kwargs: as in shimmy
    :return: environment with a Dict of float64 sensors as observation
    :raises ImportError: if dm_control or shimmy is not installed
    """
    headless = not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if sys.platform.startswith("linux") and headless:
        # Without a display, dm_control would still choose an installed windowing library, which fails
        os.environ.setdefault("MUJOCO_GL", "egl")
    suite = optional_import("dm_control.suite", "The DeepMind Control Suite")
    shimmy = optional_import("shimmy", "The DeepMind Control Suite")
    return shimmy.DmControlCompatibilityV0(suite.load(domain, task), render_mode=render_mode, render_kwargs=render_kwargs)


class DMCPixels(gym.ObservationWrapper):
    """
    Replaces the sensors by an image. Put it outside a frame skip, so that skipped frames are not rendered.

    :param env: a task of dm_control through shimmy
    :param image_size: height and width in pixels. Papers: 64
    :param camera_id: of the task. Papers: 0, for quadruped 2
    :raises TypeError: if the environment is not a task of dm_control
    """

    def __init__(self, env: gym.Env, image_size: int = 64, camera_id: int = 0) -> None:
        super().__init__(env)
        if not hasattr(env.unwrapped, "physics"):
            raise TypeError(
                f"DMCPixels renders tasks of dm_control, such as 'dmc_vision/walker-walk-v0', but was given {env}."
            )
        self.image_size, self.camera_id = image_size, camera_id
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)

    def observation(self, observation: Any) -> np.ndarray:
        """An image of the current state; the sensors are not used."""
        physics: Any = self.unwrapped.physics  # type: ignore[attr-defined]
        return physics.render(self.image_size, self.image_size, camera_id=self.camera_id)
