"""Experience as one ring of arrival records per environment, sampled as sub-sequences."""

from sb3_dreamer.replay.buffer import SequenceReplayBuffer
from sb3_dreamer.replay.context_buffer import ContextReplayBuffer
from sb3_dreamer.replay.states import StateSizes
from sb3_dreamer.replay.storage import RamStorage

__all__ = ["ContextReplayBuffer", "RamStorage", "SequenceReplayBuffer", "StateSizes"]
