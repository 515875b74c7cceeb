"""Trained world models as environments, to be watched, played and used for training other agents."""

from sb3_dreamer.dream.env import DreamEnv
from sb3_dreamer.dream.recording import Recording, open_recording, record
from sb3_dreamer.dream.rollout import OpenLoop, open_loop
from sb3_dreamer.dream.vec_env import DreamVecEnv

__all__ = ["DreamEnv", "DreamVecEnv", "OpenLoop", "Recording", "open_loop", "open_recording", "record"]
