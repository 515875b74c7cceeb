"""Tuned hyperparameters: the sections of ``hyperparams/dreamer.yml`` as constructor arguments of ``DreamerV2``."""

from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from torch import nn

from sb3_dreamer.common.observations import split_space
from sb3_dreamer.common.options import Option
from sb3_dreamer.common.schedules import parse_schedule
from sb3_dreamer.dreamer_v2.dreamer_v2 import OPTIONS

# Keys that speak to rl_zoo3 and not to the algorithm
ZOO_ONLY_KEYS = (
    "n_timesteps",
    "policy",
    "n_envs",
    "env_wrapper",
    "vec_env_wrapper",
    "frame_stack",
    "normalize",
    "callback",
    "monitor_kwargs",
    "env_kwargs",
    "noise_type",
    "noise_std",
)


def default_config() -> Path:
    """
    Where the hyperparameters are: inside the installed package, or at the top of the checkout of an editable install.

    :return: path of ``dreamer.yml``
    :raises FileNotFoundError: if neither place has it
    """
    package = Path(__file__).resolve().parent
    places = [package / "hyperparams" / "dreamer.yml", package.parent / "hyperparams" / "dreamer.yml"]
    for path in places:
        if path.is_file():
            return path
    raise FileNotFoundError(f"sb3_dreamer is installed incompletely, no dreamer.yml at: {', '.join(map(str, places))}")


def sections() -> dict[str, dict[str, Any]]:
    """
    :return: everything in ``dreamer.yml``, as rl_zoo3 would read it
    """
    import yaml  # comes with rl_zoo3; only needed here

    return yaml.safe_load(default_config().read_text())


def default_section(space: spaces.Space) -> tuple[str, str]:
    """
    What fits an environment that has no section of its own.

    :param space: of its observations
    :return: ``"default"`` or, if there is a picture in it, ``"default_pixels"``, and the name of the policy
    """
    has_picture = any(is_image_space(part) for part in split_space(space).values())
    is_dict = isinstance(space, spaces.Dict)
    policy = "MultiInputPolicy" if is_dict else "CnnPolicy" if has_picture else "MlpPolicy"
    return "default_pixels" if has_picture else "default", policy


def evaluate(expression: str) -> Any:
    """
    :param expression: a value of a hyperparameter file, such as ``"dict(net_arch=[64], activation_fn=nn.ReLU)"``
    :return: what rl_zoo3 makes of it, with the same names; as there, a file of hyperparameters is trusted like a program
    """
    return eval(expression, {"th": th, "nn": nn, "np": np})


def preset(name: str) -> dict[str, Any]:
    """
    Hyperparameters that rl_zoo3 would use, for one's own script: ``DreamerV2("CnnPolicy", env, **preset("atari"))``.

    :param name: a section of ``dreamer.yml``: an env id (``ALE/...`` and ``...NoFrameskip-v4`` are ``"atari"``),
        ``"default"``, ``"default_pixels"``, ``"continuous_pixels"``, ``"atari"``, ``"dreamer_v1"``, ...
    :return: constructor arguments of ``DreamerV2``, a new dict at each call; those that concern the env (wrapper,
        number of envs, ...) and the number of steps are left out
    :raises ValueError: if there is no such section
    """
    known = sections()
    is_atari = isinstance(name, str) and name not in known and (name.startswith("ALE/") or "NoFrameskip-v" in name)
    name = "atari" if is_atari else name
    if name not in known:
        raise ValueError(
            f"Unknown preset {name!r}. For an environment without one: 'default', or 'default_pixels' for pictures. "
            f"Known are: {', '.join(sorted(known))}"
        )
    arguments = {key: value for key, value in known[name].items() if key not in ZOO_ONLY_KEYS}
    for key, value in arguments.items():
        if (option := OPTIONS.get(key, Option())).is_schedule:
            arguments[key] = parse_schedule(key, value, *option.words)
        elif key in ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs") and isinstance(value, str):
            arguments[key] = evaluate(value)
        elif key == "train_freq" and isinstance(value, list):
            arguments[key] = tuple(value)
    return arguments
