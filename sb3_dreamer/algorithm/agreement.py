"""What all ranks of a run must have in common, and the one error that says where they differ."""

import platform
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import stable_baselines3
import torch as th

from sb3_dreamer.algorithm.learner import Learner
from sb3_dreamer.common.options import Option
from sb3_dreamer.common.version import VERSION
from sb3_dreamer.ranks.distributed import gather, rank

#: Differences that an error lists
MOST = 5


def check_agreement(values: Mapping[str, Any]) -> None:
    """
    Compare all ranks before anything is trained. Every rank comes to the same result.

    :param values: everything that must be the same on all ranks, by name
    :raises ValueError: naming what differs, with ranks and values
    """
    versions = {
        "version of sb3_dreamer": VERSION,
        "version of torch": th.__version__,
        "version of stable_baselines3": stable_baselines3.__version__,
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
    }
    found = _differences(gather({name: _text(value) for name, value in (versions | dict(values)).items()}))
    if found:
        more = f"; and {len(found) - MOST} more things" if len(found) > MOST else ""
        raise ValueError(
            f"All ranks must train the same thing (reported by rank {rank()}): {'; '.join(found[:MOST])}{more}. Start every "
            "rank with the same script, options, packages and files."
        )


def shared_values(learner: Learner, **arguments: Any) -> dict[str, Any]:
    """
    Everything that all ranks of a run must have in common.

    :param learner: set up, with an environment
    :param arguments: of ``learn``
    :return: values by name
    """
    env, names = learner.get_env(), list(signature(type(learner).__init__).parameters)[1:]
    values = {
        "algorithm": type(learner).__name__,
        "n_envs": None if env is None else env.num_envs,
        "environment": _environment_name(env),
        "VecNormalize": learner.get_vec_normalize_env() is not None,
        "observation_space": learner.observation_space,
        "action_space": learner.action_space,
        "policy": type(learner.policy).__name__,
        "num_timesteps": learner.num_timesteps,
        "number of updates": learner._n_updates,
        **arguments,
    }
    values |= {name: getattr(learner, name, None) for name in names if not learner.options.get(name, Option()).may_differ}
    shapes = {name: f"{tuple(value.shape)} {value.dtype}" for name, value in learner.policy.state_dict().items()}
    return values | {f"parameter {name}": text for name, text in shapes.items()}


def _environment_name(env: Any) -> str | None:
    """Id of the first environment of a VecEnv, if it was registered."""
    try:
        spec = env.get_attr("spec", [0])[0]
    except Exception:  # a custom VecEnv may not know the method, or have no such attribute
        return None
    return getattr(spec, "id", None)


def _text(value: Any) -> str:
    """The same in another process; schedules by their values."""
    if isinstance(value, type):
        return value.__name__
    if callable(value):
        return "schedule " + ", ".join(f"{float(value(progress)):g}" for progress in (1.0, 0.5, 0.0))
    return str(value)


def _differences(descriptions: Sequence[Mapping[str, str]]) -> list[str]:
    """One sentence for each thing in which the ranks differ, naming ranks and values."""
    found = []
    for name in dict.fromkeys(name for one in descriptions for name in one):
        first, *others = (one.get(name, "missing") for one in descriptions)
        odd = [f"{value} on rank {number}" for number, value in enumerate(others, 1) if value != first]
        if odd:
            found.append(f"{name} is {first} on rank 0, but {', '.join(odd)}")
    return found
