"""What an algorithm checks and builds when it is set up."""

import warnings
from collections.abc import Mapping
from inspect import signature
from typing import Any

from sb3_dreamer.algorithm.learner import Learner
from sb3_dreamer.common.options import whole_number
from sb3_dreamer.common.schedules import parse_schedule
from sb3_dreamer.ranks.distributed import rank, share, world_size
from sb3_dreamer.ranks.rank_files import folder_of_rank
from sb3_dreamer.replay.buffer import SequenceReplayBuffer

#: Arguments of the buffer that are given elsewhere
NOT_OF_THE_BUFFER = dict.fromkeys(("batch_length", "buffer_size", "device"), "an argument of the algorithm") | {
    "states": "decided by the policy",
    "image_size": "one of policy_kwargs",
    "n_envs": "the number of environments",
    "float_images": "decided by policy_kwargs=dict(normalize_images=...)",
    "optimize_memory_usage": "not needed, since every frame is stored once anyway",
}
#: Names that SB3's tools write into every model that they load, see rl_zoo3's ``enjoy``
WRITTEN_BY_TOOLS = {"lr_schedule", "clip_range", "n_envs"}


def warn_of_unknown_arguments(algorithm_class: type, kwargs: Mapping[str, Any]) -> None:
    """
    Warn of arguments of ``load`` that would be ignored.

    :param algorithm_class: that is loaded
    :param kwargs: constructor arguments to change
    """
    unknown = set(kwargs) - set(signature(algorithm_class).parameters) - WRITTEN_BY_TOOLS
    if unknown:
        name = algorithm_class.__name__
        warnings.warn(f"{name}.load() was given unknown arguments, which have no effect: {sorted(unknown)}", stacklevel=3)


def check_setup(algorithm: Learner, is_loading: bool) -> None:
    """
    Refuse what can be refused before anything is built, and convert options from strings and floats.

    :param algorithm: with the arguments of its constructor
    :param is_loading: whether it is read from a file, which may come from a run with another number of ranks
    :raises ValueError: naming what was given and what is expected
    """
    _check_classes(algorithm)
    for name, option in algorithm.options.items():
        if option.least is not None:
            setattr(algorithm, name, whole_number(name, getattr(algorithm, name), option.least))
        if option.is_schedule:
            setattr(algorithm, name, parse_schedule(name, getattr(algorithm, name), *option.words))
    if not is_loading:
        share("batch_size", algorithm.batch_size)
    if getattr(algorithm, "n_envs", None) == 0:
        raise ValueError(f"Rank {rank()}: n_envs is {algorithm.n_envs}, but every rank needs an environment of its own.")


def _check_classes(algorithm: Learner) -> None:
    """Refuse classes that do not fit an algorithm of sequences, and arguments of the buffer that belong elsewhere."""
    name, policy, expected = type(algorithm).__name__, algorithm.policy_class, algorithm.base_policy_class.__name__
    if not issubclass(policy, algorithm.base_policy_class):
        raise ValueError(
            f"{name} needs a policy derived from {expected}, but {policy.__name__} was given (was this file saved by another "
            "algorithm?)."
        )
    if not issubclass(algorithm.replay_buffer_class, SequenceReplayBuffer):
        raise ValueError(
            f"{name} learns from sequences: replay_buffer_class must be derived from SequenceReplayBuffer, but "
            f"{algorithm.replay_buffer_class.__name__} was given."
        )
    given = algorithm.replay_buffer_kwargs
    for option in set(NOT_OF_THE_BUFFER) & set(given):
        raise ValueError(f"{option} is {NOT_OF_THE_BUFFER[option]}, not of replay_buffer_kwargs, which are {given}.")


def make_replay_buffer(algorithm: Learner, options: dict[str, Any]) -> SequenceReplayBuffer:
    """
    The replay buffer of this rank.

    :param algorithm: with a policy
    :param options: of ``replay_buffer_kwargs``
    :return: the buffer, empty unless its folder is to be resumed
    """
    if options.get("storage_path") is not None:
        options = {**options, "storage_path": folder_of_rank(options["storage_path"])}
    return algorithm.replay_buffer_class(
        max(algorithm.buffer_size // world_size(), 1),
        algorithm.observation_space,
        algorithm.action_space,
        device=algorithm.device,
        n_envs=algorithm.n_envs,
        batch_length=algorithm.batch_length,
        image_size=algorithm.policy.image_size,
        float_images=not algorithm.policy.normalize_images,
        **options,
    )
