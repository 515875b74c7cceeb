"""Environments with the protocols of the papers, gymnasium ids for them, and wrappers that help a world model."""

from sb3_dreamer.envs.atari import DreamerAtariWrapper, make_dreamer_atari_env
from sb3_dreamer.envs.atari_vec_env import AtariVecEnv
from sb3_dreamer.envs.crafter import CrafterEnv
from sb3_dreamer.envs.dmc import DMCPixels, make_dmc_env
from sb3_dreamer.envs.minatar import make_minatar_env
from sb3_dreamer.envs.procgen import ProcgenEnv
from sb3_dreamer.envs.registration import register_envs
from sb3_dreamer.envs.wrappers import BinaryPlanes, FirstEntries, ScaleObservation, ScaleReward

__all__ = [
    "AtariVecEnv",
    "BinaryPlanes",
    "CrafterEnv",
    "DMCPixels",
    "DreamerAtariWrapper",
    "FirstEntries",
    "ProcgenEnv",
    "ScaleObservation",
    "ScaleReward",
    "make_dmc_env",
    "make_dreamer_atari_env",
    "make_minatar_env",
    "register_envs",
]

# By gymnasium's convention, importing a package of environments registers their ids
register_envs()
