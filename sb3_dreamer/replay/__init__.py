"""Experience as one ring of arrival records per environment, sampled as sub-sequences."""

from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.replay.storage import RamStorage

__all__ = ["RamStorage", "SequenceReplayBuffer"]
