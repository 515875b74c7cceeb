"""DreamerV2 and DreamerV3 for Stable-Baselines3."""

from sb3_dreamer.behavior.exploration import Exploration, Plan2Explore
from sb3_dreamer.common.version import VERSION as __version__
from sb3_dreamer.dreamer_v2 import DreamerV2
from sb3_dreamer.dreamer_v3 import DreamerV3
from sb3_dreamer.presets import preset
from sb3_dreamer.replay import ContextReplayBuffer, SequenceReplayBuffer

__all__ = [
    "ContextReplayBuffer",
    "DreamerV2",
    "DreamerV3",
    "Exploration",
    "Plan2Explore",
    "SequenceReplayBuffer",
    "__version__",
    "preset",
]
