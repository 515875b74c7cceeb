"""Bringing the latent states of updates back into the replay buffer, without waiting for a GPU."""

import numpy as np
import torch as th

from sb3_dreamer.common.type_aliases import LatentState
from sb3_dreamer.replay.context_buffer import ContextReplayBuffer


class WriteBack:
    """
    Takes the states of one update after the other into the replay buffer.

    On a GPU the states of an update are written when the next one has been started, so that the two machines never wait for
    each other; as in V3's code, an update may therefore begin in states that are one update older than they could be.
    """

    def __init__(self) -> None:
        self._waiting: tuple[np.ndarray, np.ndarray, LatentState, th.cuda.Event | None] | None = None

    def add(self, buffer: ContextReplayBuffer, envs: np.ndarray, firsts: np.ndarray, states: LatentState) -> None:
        """
        Take the states of an update that may still be running.

        :param buffer: where they belong
        :param envs: of the update's sample
        :param firsts: likewise
        :param states: posterior states, (T, B, ...); valid until the next update
        """
        if states.deterministic.device.type != "cuda":
            return buffer.write_back(envs, firsts, states)
        self.finish(buffer)
        copied = LatentState(*(_to_host(part) for part in states))
        event = th.cuda.Event()
        event.record()
        self._waiting = envs, firsts, copied, event
        return None

    def finish(self, buffer: ContextReplayBuffer) -> None:
        """Write what is waiting."""
        if self._waiting is not None:
            (envs, firsts, states, event), self._waiting = self._waiting, None
            if event is not None:
                event.synchronize()
            buffer.write_back(envs, firsts, states)


def _to_host(tensor: th.Tensor) -> th.Tensor:
    """A copy in main memory that is complete when the stream gets there."""
    target = th.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor.detach(), non_blocking=True)
