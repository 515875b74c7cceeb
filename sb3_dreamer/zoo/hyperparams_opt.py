"""Search spaces of ``python -m rl_zoo3.train --algo dreamer -optimize`` and ``--algo dreamer_v3``."""

import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch as th

if TYPE_CHECKING:
    import optuna

#: ``policy_kwargs`` of the section that is being tuned: what a trial does not draw stays as it is there
section_policy_kwargs: ContextVar[dict[str, Any] | None] = ContextVar("section_policy_kwargs", default=None)

NETWORKS = ("deterministic_size", "hidden_size", "stochastic_size", "stochastic_classes", "net_arch", "cnn_depth")
#: Sizes that matter are changed together; "large" is the Atari agent of the paper
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(zip(NETWORKS, (64, 64, 8, 8, [64, 64], 8), strict=True)),
    "small": dict(zip(NETWORKS, (128, 128, 16, 16, [128, 128], 16), strict=True)),
    "medium": dict(zip(NETWORKS, (256, 256, 32, 16, [256] * 3, 32), strict=True)),
    "large": dict(zip(NETWORKS, (600, 600, 32, 32, [400] * 4, 48), strict=True)),
}


def _chosen_sizes(trial: "optuna.Trial") -> list[str]:
    """
    The sizes that a trial draws from: those of the study's earlier trials, since all must draw from the same, or those that
    the environment variable ``SB3_DREAMER_SIZES`` names. Otherwise they are all sizes with a GPU, and ``tiny`` and ``small``
    without one, where a trial of the larger ones would take hours.
    """
    for earlier in trial.study.get_trials(deepcopy=False):
        if "size" in earlier.distributions:
            return list(earlier.distributions["size"].choices)  # type: ignore[attr-defined]
    feasible = ",".join(SIZES) if th.cuda.is_available() else "tiny,small"
    names = [name.strip() for name in os.environ.get("SB3_DREAMER_SIZES", feasible).split(",")]
    unknown = [name for name in names if name not in SIZES]
    if unknown:  # not a ValueError, which rl_zoo3 would take as the end of one trial
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
        "size": trial.suggest_categorical("size", _chosen_sizes(trial)),
    }
    for name, value in convert_dreamer_params(params).items():
        trial.set_user_attr(name, value)  # for the report of the study
    drawn = convert_dreamer_params(params)
    drawn["policy_kwargs"] = merge_policy_kwargs(section_policy_kwargs.get() or {}, drawn["policy_kwargs"])
    return drawn


def merge_policy_kwargs(section: dict[str, Any], drawn: dict[str, Any]) -> dict[str, Any]:
    """
    Combine ``policy_kwargs``.

    :param section: of the section that is tuned
    :param drawn: by a trial
    :return: both, those of the trial first; Gaussian latents have no classes
    """
    merged = section | drawn
    if section.get("latent") == "gaussian":
        merged.pop("stochastic_classes", None)
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
    # Copies of the lists, so that one trial cannot change the next
    params["policy_kwargs"] = {key: list(value) if isinstance(value, list) else value for key, value in sizes.items()}
    return params


def sample_dreamer_v3_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Draw the hyperparameters of one trial of DreamerV3, which is meant to need none but its train ratio; sizes of networks are
    those of the section that is tuned.

    :param trial: the trial
    :param n_actions: number of actions of a continuous env (unused)
    :param n_envs: number of parallel envs (unused)
    :param additional_args: what rl_zoo3 says about hindsight replay (unused)
    :return: constructor arguments of ``DreamerV3``
    """
    params = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 0.001, 0.03, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-5, 3e-2, log=True),
        "train_ratio": trial.suggest_categorical("train_ratio", [32, 64, 128, 256, 512, 1024]),
        "batch_size": trial.suggest_categorical("batch_size", [8, 16, 32]),
        "batch_length": trial.suggest_categorical("batch_length", [16, 32, 64]),
        "imagination_horizon": trial.suggest_int("imagination_horizon", 5, 20),
    }
    drawn = convert_dreamer_v3_params(params)
    for name, value in drawn.items():
        trial.set_user_attr(name, value)  # for the report of the study
    return drawn


def convert_dreamer_v3_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the numbers kept in an Optuna study into constructor arguments (``--trial-id``).

    :param sampled_params: ``trial.params``
    :return: constructor arguments of ``DreamerV3``
    """
    params = dict(sampled_params)
    params["gamma"] = 1.0 - params.pop("one_minus_gamma")
    return params
