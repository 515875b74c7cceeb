"""One acting step: from the policy's choice to actions for the environment and for the replay buffer."""

from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_dreamer.algorithm.policy import ActingState
from sb3_dreamer.common.preprocessing import decode_actions, encode_actions, scale_actions


class Choice(NamedTuple):
    """What an agent does now."""

    actions: np.ndarray  # for the environments, (n, *shape)
    buffer_actions: np.ndarray  # for the replay buffer, (n, *shape); Box values in [-1, 1]
    state: ActingState  # which remembers these actions


def choice_of_policy(state: ActingState, space: spaces.Space) -> Choice:
    """
    What the policy has chosen.

    :param state: of :meth:`WorldModelPolicy.act`
    :param space: of actions
    :return: its actions
    """
    actions = buffer_actions = decode_actions(state.actions, space)
    if isinstance(space, spaces.Box):
        buffer_actions = state.actions.cpu().numpy().reshape(actions.shape)
    return Choice(actions, buffer_actions, state)


def random_choice(state: ActingState, space: spaces.Space) -> Choice:
    """
    Uniformly random actions. The latent state follows the posterior meanwhile, and remembers the executed actions, so that
    acting sees the same history as training.

    :param state: of :meth:`WorldModelPolicy.act`
    :param space: of actions, which draws them
    :return: random actions
    """
    count, device = len(state.actions), state.actions.device
    actions = buffer_actions = np.array([space.sample() for _ in range(count)])
    if isinstance(space, spaces.Box):
        buffer_actions = scale_actions(actions, space)
    executed = th.as_tensor(buffer_actions.reshape(count, -1), device=device)
    return Choice(actions, buffer_actions, state._replace(actions=encode_actions(executed, space)))
