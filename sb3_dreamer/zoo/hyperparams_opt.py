"""Search space of ``python -m rl_zoo3.train --algo dreamer -optimize``."""

import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch as th

if TYPE_CHECKING:
    import optuna

#: ``policy_kwargs`` of the section that is being tuned: what a trial does not draw stays as it is there
section_policy_kwargs: ContextVar[dict[str, Any] | None] = ContextVar("section_policy_kwargs", default=None)

# Sizes that matter are changed together; "large" is the Atari agent of the paper.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(
        deterministic_size=64, hidden_size=64, stochastic_size=8, stochastic_classes=8, net_arch=[64, 64], cnn_depth=8
    ),
    "small": dict(
        deterministic_size=128, hidden_size=128, stochastic_size=16, stochastic_classes=16, net_arch=[128, 128], cnn_depth=16
    ),
    "medium": dict(
        deterministic_size=256, hidden_size=256, stochastic_size=32, stochastic_classes=16, net_arch=[256] * 3, cnn_depth=32
    ),
    "large": dict(
        deterministic_size=600, hidden_size=600, stochastic_size=32, stochastic_classes=32, net_arch=[400] * 4, cnn_depth=48
    ),
}


def chosen_sizes(trial: "optuna.Trial") -> list[str]:
    """
    The sizes that are tried: those of the study's earlier trials, since all have to draw from the same; of a new study those
    that the environment variable ``SB3_DREAMER_SIZES`` names, otherwise all with a GPU, and without one, where a trial of the
    larger ones would take hours, ``tiny`` and ``small``.

    :param trial: for its study
    :return: keys of ``SIZES``
    :raises KeyError: for another name; no error of a trial, which rl_zoo3 would prune
    """
    for earlier in trial.study.get_trials(deepcopy=False):
        if "size" in earlier.distributions:
            return list(earlier.distributions["size"].choices)  # type: ignore[attr-defined]
    feasible = ",".join(SIZES) if th.cuda.is_available() else "tiny,small"
    names = [name.strip() for name in os.environ.get("SB3_DREAMER_SIZES", feasible).split(",")]
    unknown = [name for name in names if name not in SIZES]
    if unknown:
        raise KeyError(f"SB3_DREAMER_SIZES names {unknown}; known are {list(SIZES)}.")
    return names


def sample_dreamer_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw the hyperparameters of one trial.

    :param trial: the trial
    :param n_actions: number of actions of a continuous env (unused)
    :param n_envs: number of parallel envs (unused)
    :param additional_args: what rl_zoo3 says about hindsight replay (unused)
    :return: constructor arguments of ``DreamerV2``
    """
    params = {
        "learning_rate": trial.suggest_float("learning_rate", 5e-5, 3e-3, log=True),
        "actor_learning_rate": trial.suggest_float("actor_learning_rate", 1e-5, 1e-3, log=True),
        "critic_learning_rate": trial.suggest_float("critic_learning_rate", 3e-5, 1e-3, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.001, 0.03, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-5, 3e-2, log=True),
        "kl_scale": trial.suggest_float("kl_scale", 0.03, 3.0, log=True),
        "train_freq": trial.suggest_categorical("train_freq", [2, 4, 8, 16]),
        "batch_size": trial.suggest_categorical("batch_size", [16, 32, 50]),
        "batch_length": trial.suggest_categorical("batch_length", [16, 32, 50]),
        "imagination_horizon": trial.suggest_int("imagination_horizon", 5, 20),
        "size": trial.suggest_categorical("size", chosen_sizes(trial)),
    }
    for name, value in convert_dreamer_params(params).items():
        # what the raw numbers of the study's report stand for
        trial.set_user_attr(name, value)
    drawn = convert_dreamer_params(params)
    drawn["policy_kwargs"] = merge_policy_kwargs(section_policy_kwargs.get() or {}, drawn["policy_kwargs"])
    return drawn


def merge_policy_kwargs(section: dict[str, Any], drawn: dict[str, Any]) -> dict[str, Any]:
    """
    :param section: what is not drawn holds
    :param drawn: by a trial
    :return: both; Gaussian latents have no classes
    """
    merged = section | drawn
    if section.get("latent") == "gaussian":
        del merged["stochastic_classes"]
    return merged


def convert_dreamer_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the numbers kept in an Optuna study into constructor arguments (``--trial-id``).

    :param sampled_params: ``trial.params``
    :return: constructor arguments of ``DreamerV2``
    """
    params = dict(sampled_params)
    params["gamma"] = 1.0 - params.pop("one_minus_gamma")
    sizes = SIZES[params.pop("size")]
    # lists are copied: one trial must not be able to change the next
    params["policy_kwargs"] = {key: list(value) if isinstance(value, list) else value for key, value in sizes.items()}
    return params
