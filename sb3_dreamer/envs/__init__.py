"""Environments as the paper sets them up; this room imports no other one."""

from sb3_dreamer.envs.atari import DreamerAtariWrapper, make_dreamer_atari_env

__all__ = ["DreamerAtariWrapper", "make_dreamer_atari_env"]
