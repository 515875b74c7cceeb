"""Tuned hyperparameters: the sections of ``hyperparams/*.yml`` as constructor arguments of the algorithms."""

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
from sb3_dreamer.dreamer_v2.dreamer_v2 import OPTIONS as OPTIONS_V2
from sb3_dreamer.dreamer_v3.dreamer_v3 import OPTIONS as OPTIONS_V3

#: How values of arguments are read; those that both algorithms have are read in the same way
OPTIONS = OPTIONS_V2 | OPTIONS_V3
#: Keys that concern rl_zoo3 and not the algorithm
ZOO_ONLY_KEYS = frozenset(
    "n_timesteps policy n_envs env_wrapper vec_env_wrapper frame_stack normalize callback monitor_kwargs env_kwargs "
    "noise_type noise_std".split()
)


def default_config(config: str | Path = "dreamer.yml") -> Path:
    """
    Find a hyperparameter file: inside the installed package, or at the top of the checkout of an editable install.

    :param config: name of the file, or the absolute path of any other file
    :return: its path
    :raises FileNotFoundError: if there is no such file
    """
    package = Path(__file__).resolve().parent
    places = [folder / "hyperparams" / config for folder in (package, package.parent)]
    for path in places:
        if path.is_file():
            return path
    if Path(config).is_absolute():
        raise FileNotFoundError(f"There is no hyperparameter file {config}.")
    raise FileNotFoundError(f"sb3_dreamer is installed incompletely, no {config} at: {', '.join(map(str, places))}")


def sections(config: str | Path = "dreamer.yml") -> dict[str, dict[str, Any]]:
    """
    Read a hyperparameter file as rl_zoo3 does.

    :param config: see :func:`default_config`
    :return: all sections
    """
    import yaml  # comes with rl_zoo3; only needed here

    return yaml.safe_load(default_config(config).read_text())


def default_section(space: spaces.Space) -> tuple[str, str]:
    """
    Choose what fits an environment that has no section.

    :param space: of its observations
    :return: ``"default"`` or, if there is an image in it, ``"default_pixels"``, and the name of the policy
    """
    has_image = any(is_image_space(part) for part in split_space(space).values())
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "CnnPolicy" if has_image else "MlpPolicy"
    return "default_pixels" if has_image else "default", policy


def evaluate(expression: str) -> Any:
    """
    Evaluate an expression with the names that rl_zoo3 provides; as there, a hyperparameter file is trusted like a program.

    :param expression: a value of a hyperparameter file, such as ``"dict(net_arch=[64], activation_fn=nn.ReLU)"``
    :return: its value
    """
    return eval(expression, {"th": th, "nn": nn, "np": np})


def preset(name: str, config: str | Path = "dreamer.yml") -> dict[str, Any]:
    """
    Return the hyperparameters that rl_zoo3 would use, for a script: ``DreamerV2("CnnPolicy", env, **preset("atari"))``.

    :param name: a section of ``dreamer.yml``: an env id (``ALE/...`` and ``...NoFrameskip-v4`` are ``"atari"``),
        ``"default"``, ``"default_pixels"``, ``"continuous_pixels"``, ``"atari"``, ``"dreamer_v1"``, ...
    :param config: ``"dreamer.yml"`` for DreamerV2, ``"dreamer_v3.yml"`` for DreamerV3, or the absolute path of any other file
    :return: constructor arguments of the algorithm, a new dict at each call; those that concern the env (wrapper,
        number of envs, ...) and the number of steps are left out
    :raises ValueError: if there is no such section
    """
    known = sections(config)
    if name not in known and isinstance(name, str) and (name.startswith("ALE/") or "NoFrameskip-v" in name):
        name = "atari"
    if name not in known:
        defaults = [section for section in ("default", "default_pixels") if section in known]
        raise ValueError(
            f"Unknown preset {name!r}. For an environment without one: {' or '.join(map(repr, defaults))}. "
            f"Known are: {', '.join(sorted(known))}"
        )
    return {key: _argument(key, value) for key, value in known[name].items() if key not in ZOO_ONLY_KEYS}


def _argument(key: str, value: Any) -> Any:
    """A value of the file as the constructor takes it."""
    option = OPTIONS.get(key, Option())
    if option.is_schedule:
        return parse_schedule(key, value, *option.words)
    if key in ("policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs") and isinstance(value, str):
        return evaluate(value)
    return tuple(value) if key == "train_freq" and isinstance(value, list) else value
