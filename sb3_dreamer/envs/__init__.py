"""Environments as the paper sets them up, and wrappers that help a world model."""

from sb3_dreamer.envs.atari import DreamerAtariWrapper, make_dreamer_atari_env
from sb3_dreamer.envs.scaling import ScaleObservation

__all__ = ["DreamerAtariWrapper", "ScaleObservation", "make_dreamer_atari_env"]
