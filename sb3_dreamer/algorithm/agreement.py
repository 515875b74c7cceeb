"""What all ranks of a run must have in common, and the one error that says where they have not."""

import platform
from collections.abc import Mapping, Sequence
from importlib.resources import files
from inspect import signature
from typing import TYPE_CHECKING, Any

import stable_baselines3
import torch as th

from sb3_dreamer.ranks.distributed import gather, rank

if TYPE_CHECKING:
    from sb3_dreamer.algorithm.sequence_algorithm import SequenceOffPolicyAlgorithm

#: Constructor arguments that every rank may have for itself
FREE = {
    "policy",
    "env",
    "seed",
    "device",
    "verbose",
    "tensorboard_log",
    "stats_window_size",
    "policy_kwargs",
    "_init_setup_model",
}
MOST = 5


def description(algorithm: "SequenceOffPolicyAlgorithm", arguments: Mapping[str, Any]) -> dict[str, str]:
    """
    :param algorithm: set up, with an environment
    :param arguments: of ``learn`` that must be the same everywhere
    :return: everything that ranks are compared by, as text
    """
    versions = {
        "version of sb3_dreamer": files("sb3_dreamer").joinpath("version.txt").read_text().strip(),
        "version of torch": th.__version__,
        "version of stable_baselines3": stable_baselines3.__version__,
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
    }
    env = algorithm.get_env()
    parts: dict[str, Any] = {
        "algorithm": type(algorithm).__name__,
        "n_envs": None if env is None else env.num_envs,
        "environment": environment_name(env),
        "VecNormalize": algorithm.get_vec_normalize_env() is not None,
        "observation_space": algorithm.observation_space,
        "action_space": algorithm.action_space,
        "policy": type(algorithm.policy).__name__,
        "num_timesteps": algorithm.num_timesteps,
        "number of updates": algorithm._n_updates,
        **arguments,
    }
    options = {
        name: getattr(algorithm, name, None) for name in signature(type(algorithm).__init__).parameters if name != "self"
    }
    parts |= {name: option_text(value) for name, value in options.items() if name not in FREE}
    parts |= {
        f"parameter {name}": f"{tuple(value.shape)} {value.dtype}" for name, value in algorithm.policy.state_dict().items()
    }
    return versions | {name: str(value) for name, value in parts.items()}


def option_text(value: Any) -> str:
    """
    :param value: of an option
    :return: text that is the same in another process; schedules by their values
    """
    if isinstance(value, type):
        return value.__name__
    if callable(value):
        return "schedule " + ", ".join(f"{float(value(progress)):g}" for progress in (1.0, 0.5, 0.0))
    return str(value)


def environment_name(env: Any) -> str | None:
    """
    :param env: vectorized
    :return: id of the first environment, if it was registered
    """
    try:
        spec = env.get_attr("spec", [0])[0]
    except Exception:  # a VecEnv of somebody's own may not know the method, or have no such attribute
        return None
    return getattr(spec, "id", None)


def differences(descriptions: Sequence[Mapping[str, str]]) -> list[str]:
    """
    :param descriptions: of all ranks
    :return: one sentence for each thing in which they differ, naming ranks and values
    """
    found = []
    for name in dict.fromkeys(name for one in descriptions for name in one):
        values = [one.get(name, "missing") for one in descriptions]
        if len(set(values)) > 1:
            first = values[0]
            odd = [f"{value} on rank {number}" for number, value in enumerate(values) if value != first]
            found.append(f"{name} is {first} on rank 0, but {', '.join(odd)}")
    return found


def check_agreement(algorithm: "SequenceOffPolicyAlgorithm", arguments: Mapping[str, Any]) -> None:
    """
    Compare all ranks, before anything is trained; every rank comes to the same end.

    :param algorithm: set up, with an environment
    :param arguments: of ``learn`` that must be the same everywhere
    :raises ValueError: naming what differs, with ranks and values
    """
    found = differences(gather(description(algorithm, arguments)))
    if found:
        more = f"; and {len(found) - MOST} things more" if len(found) > MOST else ""
        raise ValueError(
            f"All ranks must train the same thing (said by rank {rank()}): {'; '.join(found[:MOST])}{more}. Start every rank "
            "with the same script, options, packages and files."
        )
